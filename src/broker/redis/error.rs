//! Why a link to Redis cannot be made, was not made, or ended: the errors of this room, and what an operator can do
//! about them. The room's floor, beside `resp.rs`. May not enter: how a link is made, or what follows from its end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use redis::RedisError;

use crate::os::limit::is_out_of_descriptors;

/// Why links cannot be made with these settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(
        "the password file {path} ({setting}) cannot be read: {error}; the user that webws runs as must be able to \
         read it"
    )]
    Password { path: PathBuf, setting: &'static str, error: io::Error },
    #[error("the first line of {path} ({setting}) is empty: write the password there, and nothing else")]
    EmptyPassword { path: PathBuf, setting: &'static str },
    #[error(
        "the broker's address {0} has a user and no password: if the text before '@' is the password, write \
         redis://:PASSWORD@HOST (with the colon); if it is a user, its password is missing (redis.password_file)"
    )]
    NoPassword(String),
    #[error("{path} ({setting}) cannot be used: {error}; it must be a PEM file with CERTIFICATE or PRIVATE KEY blocks")]
    Certificates { path: PathBuf, setting: &'static str, error: Box<dyn std::error::Error + Send + Sync> },
    #[error("the system has no trusted certificates: install ca-certificates or set redis.ca_file")]
    NoAuthorities,
    #[error("TLS cannot be set up: {0}")]
    Tls(tokio_rustls::rustls::Error),
    #[error("'{0}' is not a host name that TLS can verify")]
    ServerName(String),
}

/// Why a link was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the name '{0}' cannot be looked up: {1}{advice}", advice = advice(.1))]
    LookUp(String, io::Error),
    #[error("the name '{0}' was not resolved within {1:?}: a nameserver does not answer (/etc/resolv.conf)")]
    LookUpSlow(String, Duration),
    #[error("{0} cannot be reached: {1}{advice}", advice = advice(.1))]
    Unreachable(String, io::Error),
    #[error("{address} {what} within {limit:?}{advice}", what = step.missed(), advice = advice_on_silence(*step, address))]
    Late { step: Step, address: String, limit: Duration },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Each(Vec<LinkError>),
    #[error("{0} did not answer within {1:?}")]
    Silent(String, Duration),
    #[error("Redis refuses the link: {0} ({1})")]
    Refused(RedisError, &'static str),
    #[error("Redis ended the link: {0}")]
    Ended(RedisError),
    #[error("Redis closed the link")]
    Closed,
    #[error("the Sentinel {0}: {1}")]
    Sentinel(String, Box<LinkError>),
    #[error("it does not know a master named '{0}'")]
    UnknownMaster(String),
    #[error(
        "it refuses to name the master: {0} (user and password of the Sentinels: redis.sentinel_username and \
         redis.sentinel_password_file; without them, those of Redis are tried)"
    )]
    NotTold(String),
    #[error("the Sentinels say that the master is at {0}:{1} now")]
    Moved(String, u16),
    #[error("the subscribing link is connected to a different master")]
    Elsewhere,
    /// The node's address, and what the node is instead of a master.
    #[error("{0} {1}")]
    NoMaster(String, &'static str),
    #[error("Redis has {0} fewer subscriptions than it confirmed, even after all were subscribed again")]
    Fewer(usize),
    #[error("Redis accepts messages but does not deliver them: the subscribing link has received no message for {0:?}")]
    Deaf(Duration),
    #[error("Redis sent a reply that no command asked for")]
    OutOfStep,
    #[error("Redis sent bytes that are not its protocol")]
    Malformed,
    #[error("the node reports that its cluster is down")]
    ClusterDown,
    #[error("{0}:{1} is not a node of a cluster: write redis:// instead of redis+cluster://")]
    NoCluster(String, u16),
    #[error("the answer to CLUSTER SLOTS is not a list of slots and their nodes")]
    NoTopology,
    /// With advice.
    #[error("{0}; {1}")]
    WrongPort(Box<LinkError>, &'static str),
}

impl LinkError {
    /// The kind of a fault that lasts until an operator acts.
    pub(crate) fn lasting(&self) -> Option<&'static str> {
        match self {
            Self::NoMaster(..) => Some("role"),
            Self::LookUp(_, error) | Self::Unreachable(_, error) if is_out_of_descriptors(error) => Some("descriptors"),
            Self::Each(errors) => errors.iter().find_map(Self::lasting),
            Self::Sentinel(_, error) => error.lasting(),
            _ => None,
        }
    }
}

/// A part of an attempt with its own deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// TCP, or a Unix socket.
    Connect,
    Tls,
    /// HELLO, AUTH and the role.
    Greeting,
    /// AUTH, and where the master is.
    Sentinel,
}

impl Step {
    /// What the server did not do in time.
    fn missed(self) -> &'static str {
        match self {
            Self::Connect => "did not accept the connection",
            Self::Tls => "did not finish the TLS handshake",
            Self::Greeting => "accepted the connection and did not answer the greeting",
            Self::Sentinel => "accepted the connection and did not say where the master is",
        }
    }
}

/// A refusal, as Redis sent it.
pub(crate) fn refusal_text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// Whether Redis answered, and the answer was no.
pub(crate) fn is_refusal(error: &RedisError) -> bool {
    !error.is_unrecoverable_error() && error.code().is_some()
}

/// Whether a refusal is temporary: the command was not executed, and may succeed at another node or later.
pub(crate) fn is_for_now(code: Option<&str>) -> bool {
    const CODES: [&str; 7] = ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY"];
    code.is_some_and(|code| CODES.contains(&code))
}

/// Whether the ACL forbids the command.
pub(crate) fn is_not_allowed(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// What an operator can do about `error`, as the end of a sentence.
fn advice(error: &io::Error) -> &'static str {
    if is_out_of_descriptors(error) {
        return "; no descriptor is free: raise LimitNOFILE or lower limits.max_sessions";
    }
    ""
}

/// What an operator can do when no packet comes back from `address`. systemd's filter for a unit's addresses drops
/// packets without an error (systemd.resource-control(5), `IPAddressDeny=`).
fn advice_on_silence(step: Step, address: &str) -> String {
    let is_in_a_unit = || std::env::var_os("INVOCATION_ID").is_some();
    match address.parse::<SocketAddr>() {
        Ok(address) if step == Step::Connect && !address.ip().is_loopback() && is_in_a_unit() => format!(
            "; the unit as shipped allows only localhost: add IPAddressAllow={} (redis-remote.conf)",
            address.ip()
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::limit::out_of_descriptors;

    #[test]
    fn a_process_without_descriptors_is_named() {
        assert!(advice(&out_of_descriptors()).contains("LimitNOFILE"));
        assert_eq!(advice(&io::ErrorKind::ConnectionRefused.into()), "");
    }
}
