//! Settings that are allowed and likely a mistake. May not enter: settings that are not allowed (`validate.rs`).

use super::{BrokerConfig, Config};

impl Config {
    /// Settings that are allowed and likely a mistake, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for outer in &self.endpoints {
            let reaches = |inner: &&super::EndpointConfig| {
                inner.prefix.len() > outer.prefix.len() && inner.prefix.starts_with(&outer.prefix)
            };
            for inner in self.endpoints.iter().filter(reaches) {
                let name = inner.prefix.get(outer.prefix.len()..).unwrap_or_default();
                warnings.push(format!(
                    "endpoint {}: its prefix {:?} is the beginning of endpoint {}'s {:?}, so its clients reach that \
                     endpoint's channels as \"{name}NAME\": choose prefixes of which none begins with the other",
                    outer.path, outer.prefix, inner.path, inner.prefix
                ));
            }
        }
        warnings
    }
}

impl BrokerConfig {
    /// Whether a password is part of an address. On a command line every local user can read it.
    pub fn has_password(&self) -> bool {
        matches!(self, Self::Redis(urls) if urls.iter().any(|url| url.password.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::EndpointConfig;
    use super::*;

    #[test]
    fn a_prefix_that_begins_anothers_is_said_and_an_equal_one_is_not() {
        let at = |path: &str, prefix: &str| EndpointConfig {
            path: path.to_owned(),
            prefix: prefix.to_owned(),
            allow_empty_prefix: true,
            ..EndpointConfig::default()
        };
        let warnings = |endpoints: Vec<EndpointConfig>| Config { endpoints, ..Config::default() }.warnings();
        assert!(Config::default().warnings().is_empty());
        assert!(warnings(vec![at("/a", "chat:"), at("/b", "chat:"), at("/c", "news:")]).is_empty());
        for endpoints in [[at("/a", "chat:"), at("/b", "chat:admin:")], [at("/b", "chat:admin:"), at("/a", "chat:")]] {
            let said = warnings(endpoints.to_vec());
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("endpoint /a:") && said[0].contains("\"admin:NAME\""), "{said:?}");
        }
        assert_eq!(warnings(vec![at("/a", ""), at("/b", "chat:"), at("/c", "")]).len(), 2);
    }

    #[test]
    fn a_password_in_an_address_is_known() {
        for (broker, has_password) in [
            ("memory", false),
            ("redis://localhost", false),
            ("redis://web@localhost", false),
            ("redis://web:pw@localhost", true),
            ("redis://a unix:///b?pass=pw", true),
        ] {
            assert_eq!(broker.parse::<BrokerConfig>().unwrap().has_password(), has_password, "{broker}");
        }
    }
}
