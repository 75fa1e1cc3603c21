//! The users whose processes are believed when they say what a client may do: nginx's (the setting `trusted_users`).
//!
//! May not enter: what is said (`claims.rs`).

use std::os::fd::BorrowedFd;

use crate::config::{ClaimsSource, Config};
use crate::os;

/// The trusted users' ids.
#[derive(Debug)]
pub(super) struct TrustedUsers(Vec<u32>);

impl TrustedUsers {
    /// The users of the configuration, and the user of this process. A name that no user has is left out: the default
    /// names are those of several distributions.
    pub(super) fn of(config: &Config) -> Self {
        let mut users = vec![os::limit::own_user()];
        if config.endpoints.iter().any(|endpoint| endpoint.claims == ClaimsSource::Headers) {
            users.extend(config.trusted_users.iter().filter_map(|name| os::user::named(name)));
        }
        Self(users)
    }

    /// Whether a process of that user is believed.
    fn trusts(&self, user: u32) -> bool {
        self.0.contains(&user)
    }

    /// Whether the process is believed that sent a request: the one that handed the client off, else the one at the
    /// other end. Over TCP no process is: TCP does not name its user.
    pub(super) fn trusts_sender(&self, handed_off_by: Option<u32>, socket: BorrowedFd<'_>) -> bool {
        handed_off_by.or_else(|| os::user::of_peer(socket)).is_some_and(|user| self.trusts(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EndpointConfig;

    #[test]
    fn names_are_looked_up_where_an_endpoint_has_claims() {
        let mut config = Config { trusted_users: vec!["root".into(), "4711".into(), "?".into()], ..Config::default() };
        assert!(!TrustedUsers::of(&config).trusts(4711));
        config.endpoints = vec![EndpointConfig::new("/a").with_claims(ClaimsSource::Headers)];
        let trusted = TrustedUsers::of(&config);
        assert!([0, 4711, os::limit::own_user()].iter().all(|user| trusted.trusts(*user)));
        assert!(!trusted.trusts(65534));
    }
}
