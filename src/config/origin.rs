//! Web origins (RFC 6454): the rules of the setting `origins`, and the origin that a request names.
//!
//! An origin is a scheme, a host and a port. Equal origins have one form here: lower case, the scheme's default port, no
//! dot at the end of the host, one spelling of an IPv6 address. Text that is not exactly one serialized origin has no
//! form: `null`, a list, a path, a user. May not enter: headers, what becomes of a request.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::ConfigError;

/// A rule of the setting `origins`: pages of which origins an endpoint serves.
///
/// - `https://a.example`: this scheme, host and port. Without a port, the scheme's default port.
/// - `https://*.b.example`: hosts below `b.example` with one label more or several; `b.example` itself is another rule.
/// - `same-host`: the origin of the request's own URL, from its Host field. If the proxy names the URL's scheme
///   (`X-Forwarded-Proto`), the page must have that scheme.
///
/// ```
/// use webws::{EndpointConfig, OriginRule};
///
/// let rules: [OriginRule; 2] = ["same-host".parse()?, "https://*.b.example".parse()?];
/// let news = EndpointConfig::new("/news").with_origins(rules);
/// # Ok::<(), webws::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRule(Rule);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    SameHost,
    Exact(WebOrigin),
    /// All hosts below this one.
    Below(WebOrigin),
}

/// The origin of a page, or of a request's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebOrigin {
    scheme: String,
    host: Host,
    /// `None` for the default port of a scheme whose default port is not known here.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl WebOrigin {
    /// The origin that `text` is the serialization of (RFC 6454 §6.2), as a browser sends it.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let (scheme, authority) = std::str::from_utf8(text).ok()?.split_once("://")?;
        Self::at(scheme, authority)
    }

    /// The origin of a URL with this scheme whose request has the field `Host: authority`.
    pub(crate) fn at(scheme: &str, authority: &str) -> Option<Self> {
        // RFC 3986 §3.1; extensions and apps have schemes of their own.
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon is one of the address.
            Some((_, end)) if end.ends_with(']') => (authority, None),
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (authority, None),
        };
        let port = port.or_else(|| default_port(&scheme));
        Some(Self { scheme, host: Host::parse(host)?, port })
    }

    pub(crate) fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Whether its host is below the host of `domain`, and everything else is equal.
    fn is_below(&self, domain: &Self) -> bool {
        let (Host::Name(own), Host::Name(above)) = (&self.host, &domain.host) else { return false };
        let is_below = own.strip_suffix(above.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        is_below && (&self.scheme, self.port) == (&domain.scheme, domain.port)
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            // No zone: it names an interface of one machine (RFC 6874 §1).
            return inner.strip_suffix(']')?.parse().ok().map(Self::V6);
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(is_plain);
        if name.len() > 253 || !name.split('.').all(is_label) {
            return None;
        }
        // A name whose last label is a number is an IPv4 address, or none (WHATWG URL, "ends in a number").
        let last = name.rsplit('.').next().unwrap_or_default();
        let ends_in_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        if ends_in_number { name.parse().ok().map(Self::V4) } else { Some(Self::Name(name)) }
    }
}

impl OriginRule {
    /// The rule `same-host`.
    pub(crate) fn same_host() -> Self {
        Self(Rule::SameHost)
    }

    /// Whether the rule allows pages of `origin`. `own` is the origin of the request's URL, if the request names one.
    pub(crate) fn allows(&self, origin: &WebOrigin, own: Option<&WebOrigin>) -> bool {
        match &self.0 {
            Rule::SameHost => own == Some(origin),
            Rule::Exact(allowed) => allowed == origin,
            Rule::Below(domain) => origin.is_below(domain),
        }
    }
}

/// As browsers write it: no sign, no leading zero.
fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_number)
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl FromStr for OriginRule {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "same-host" {
            return Ok(Self(Rule::SameHost));
        }
        let fault = |what: &str| ConfigError::new(vec![format!("'{}' is not an origin: {what}", text.escape_debug())]);
        let wildcard = text.split_once("://*.").map(|(scheme, rest)| format!("{scheme}://{rest}"));
        let origin = wildcard.as_deref().unwrap_or(text);
        let is_of_pages = |origin: &WebOrigin| !["ws", "wss"].contains(&origin.scheme.as_str());
        match WebOrigin::parse(origin.as_bytes()).filter(is_of_pages) {
            Some(WebOrigin { host: Host::V4(_) | Host::V6(_), .. }) if wildcard.is_some() => {
                Err(fault("an address has no names below it"))
            }
            Some(origin) if wildcard.is_some() => Ok(Self(Rule::Below(origin))),
            Some(origin) => Ok(Self(Rule::Exact(origin))),
            None => Err(fault(remedy(text))),
        }
    }
}

/// What to write instead of `text`.
fn remedy(text: &str) -> &'static str {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    match (scheme, rest) {
        _ if !text.is_ascii() => "write the host as browsers send it, as in https://xn--mnchen-3ya.example",
        ("", "*") => "without the setting, every origin is allowed",
        ("", "null") => "any page can give itself the origin null, so it is never allowed",
        ("", _) => "it begins with a scheme: write https://a.example, or same-host",
        (_, rest) if rest.contains(['/', '?', '#', '@']) => {
            "an origin ends with its host and port: write https://a.example"
        }
        (_, rest) if rest.contains('*') => "only the first label can be *, as in https://*.a.example",
        ("ws" | "wss", _) => "write the page's scheme: https://a.example",
        _ => "write a scheme, a host and, if it is not the default, a port: https://a.example:8443",
    }
}

impl fmt::Display for OriginRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (origin, below) = match &self.0 {
            Rule::SameHost => return f.write_str("same-host"),
            Rule::Exact(origin) => (origin, ""),
            Rule::Below(origin) => (origin, "*."),
        };
        write!(f, "{}://{below}", origin.scheme)?;
        match &origin.host {
            Host::Name(name) => f.write_str(name)?,
            Host::V4(address) => write!(f, "{address}")?,
            Host::V6(address) => write!(f, "[{address}]")?,
        }
        match origin.port.filter(|port| default_port(&origin.scheme) != Some(*port)) {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: [&str; 6] = [
        "https://a.example",
        "https://*.b.example",
        "http://localhost:3000",
        "https://[2001:db8::1]:8443",
        "capacitor://localhost",
        "https://xn--mnchen-3ya.example",
    ];

    fn rule(text: &str) -> OriginRule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn is_allowed(origin: &str) -> bool {
        let origin = WebOrigin::parse(origin.as_bytes());
        origin.is_some_and(|origin| RULES.iter().any(|text| rule(text).allows(&origin, None)))
    }

    const ALLOWED: [&str; 14] = [
        "https://a.example",
        "HTTPS://A.Example",
        "https://a.example:443",
        "https://a.example.",
        "https://a.example.:443",
        "https://c.b.example",
        "https://d.c.B.example",
        "https://c.b.example.:443",
        "http://localhost:3000",
        "https://[2001:db8::1]:8443",
        "https://[2001:0DB8:0:0:0:0:0:1]:8443",
        "capacitor://localhost",
        "https://xn--mnchen-3ya.example",
        "https://XN--MNCHEN-3YA.example",
    ];

    const REFUSED: [&str; 56] = [
        "",
        "null",
        "*",
        "a.example",
        "//a.example",
        "http://a.example",
        "https://a.example:80",
        "https://a.example:8443",
        "https://a.example:0443",
        "https://a.example:+443",
        "https://a.example:443443",
        "https://a.example:",
        "https://a.example:443:443",
        "https://a.example..",
        "https://.a.example",
        "https://a.example.evil.com",
        "https://evil.com/a.example",
        "https://evil.com#a.example",
        "https://evila.example",
        "https://x.a.example",
        "https://a.example/",
        "https://a.example?",
        "https://a.example@evil.com",
        "https://evil.com@a.example",
        "https://a.example:x@evil.com",
        "https://a.example\\.evil.com",
        "https://a%2eexample",
        "https://a.example\0",
        " https://a.example",
        "https://a.example ",
        "https://a.example https://evil.com",
        "https://a.example, https://evil.com",
        "https://evil.com,https://a.example",
        "https://b.example",
        "https://.b.example",
        "https://..b.example",
        "https://evilb.example",
        "https://c.b.example.evil.com",
        "http://c.b.example",
        "https://c.b.example:444",
        "https://*.b.example",
        "http://localhost",
        "http://localhost:3001",
        "https://localhost:3000",
        "http://127.0.0.1:3000",
        "https://[2001:db8::1]",
        "https://[2001:db8::1%25eth0]:8443",
        "https://[2001:db8::1%eth0]:8443",
        "https://2001:db8::1:8443",
        "https://[2001:db8::1]8443",
        "https://[[2001:db8::1]]:8443",
        "capacitor://localhost:443",
        "https://m\u{fc}nchen.example",
        "https://\u{430}.example",
        "https://a\u{3002}example",
        "file://",
    ];

    #[test]
    fn an_origin_passes_in_every_form_and_no_other_origin_does() {
        for origin in ALLOWED {
            assert!(is_allowed(origin), "{origin}");
        }
        for origin in REFUSED {
            assert!(!is_allowed(origin), "{origin}");
        }
        assert!(!is_allowed(&format!("https://{}.b.example", "x".repeat(64))));
        assert!(!is_allowed(&format!("https://{}b.example", "x.".repeat(130))));
        assert_eq!(WebOrigin::parse(b"https://a.example\xff"), None);
    }

    #[test]
    fn a_page_of_the_same_host_has_the_scheme_the_host_and_the_port_of_the_request() {
        for (origin, scheme, host, expected) in [
            ("https://a.example", "https", "a.example", true),
            ("https://a.example", "https", "A.EXAMPLE.:443", true),
            ("http://a.example", "http", "a.example:80", true),
            ("http://a.example", "https", "a.example", false),
            ("https://a.example", "http", "a.example", false),
            ("https://a.example:8443", "https", "a.example", false),
            ("https://a.example", "https", "a.example:8443", false),
            ("https://a.example", "https", "a.example.evil.com", false),
            ("http://127.0.0.1:8080", "http", "127.0.0.1:8080", true),
            ("http://[::1]:8080", "http", "[0:0::1]:8080", true),
            ("http://[::1]", "http", "::1", false),
            ("https://a.example", "https", "", false),
            ("https://a.example", "https", "a.example, b.example", false),
            ("https://a.example", "https", "x@a.example", false),
        ] {
            let (origin, own) = (WebOrigin::parse(origin.as_bytes()).unwrap(), WebOrigin::at(scheme, host));
            assert_eq!(rule("same-host").allows(&origin, own.as_ref()), expected, "{origin:?} {scheme} {host}");
            assert!(!rule("https://b.example").allows(&origin, own.as_ref()));
        }
        let page = WebOrigin::parse(b"https://a.example").unwrap();
        assert!(!rule("same-host").allows(&page, None));
    }

    #[test]
    fn a_rule_is_shown_as_it_is_compared() {
        for (text, shown) in RULES.map(|text| (text, text)).into_iter().chain([
            ("HTTPS://A.example.:443", "https://a.example"),
            ("http://*.A.example:80", "http://*.a.example"),
            ("https://[0:0:0::1]", "https://[::1]"),
            ("same-host", "same-host"),
        ]) {
            assert_eq!(rule(text).to_string(), shown);
            assert_eq!(rule(shown), rule(text));
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_remedy() {
        for (text, remedy) in [
            ("*", "every origin is allowed"),
            ("null", "never allowed"),
            ("", "begins with a scheme"),
            ("a.example", "begins with a scheme"),
            ("Same-Host", "begins with a scheme"),
            ("https://a.example/", "ends with its host"),
            ("https://x@a.example", "ends with its host"),
            ("https://*", "first label"),
            ("https://a.*.example", "first label"),
            ("https://*.*.example", "first label"),
            ("https://*a.example", "first label"),
            ("https://*.127.0.0.1", "no names below"),
            ("https://*.[::1]", "no names below"),
            ("https://m\u{fc}nchen.example", "xn--mnchen"),
            ("https://a.example:0", ":8443"),
            ("wss://a.example", "the page's scheme"),
            ("https://127.1", ":8443"),
            ("https://0x7f000001", ":8443"),
            ("https://a.example, https://b.example", "ends with its host"),
        ] {
            let said = text.parse::<OriginRule>().unwrap_err().to_string();
            assert!(said.contains(remedy), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_an_origin_with_one_form_or_none(text in "[a-z]{0,3}(://)?[a-zA-Z0-9.:*@/%_\\[\\]-]{0,12}") {
            if let Ok(rule) = text.parse::<OriginRule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
            if let Some(origin) = WebOrigin::parse(text.as_bytes()) {
                prop_assert!(!origin.scheme.is_empty() && !text.contains(['@', '%', '*']));
                prop_assert_eq!(text.matches('/').count(), 2);
            }
        }
    }
}
