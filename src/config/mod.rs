//! Every setting: what it means, its unit, its default and why.
//!
//! A [`Config`] is plain data; `endpoint` has the settings of an `[[endpoint]]`, `endpoint_builder` their methods, and
//! `history`, `token`, `origin`, `channel_names` and `rate` those of its settings that have parts. `file` reads a
//! configuration from TOML and the environment: `syntax` finds invalid TOML, `schema` knows the settings' names, `check`
//! checks each value. `validate` checks the settings together and reports all faults at once, `advice` warns of likely
//! mistakes, `redis_url` parses broker addresses; `error` has the faults. Validation comes before any file or socket is
//! opened. May not enter: I/O.

mod address_fault;
mod advice;
pub(crate) mod channel_names;
mod check;
mod endpoint;
mod endpoint_builder;
mod error;
mod file;
mod history;
mod origin;
mod rate;
mod redis_url;
mod reserved;
mod schema;
mod size;
mod syntax;
mod token;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use endpoint::{
    BinaryPolicy, ChannelRule, ClaimsSource, EndpointConfig, GapPolicy, NoOriginPolicy, NotUtf8Policy, SlowPolicy,
    WireName,
};
pub use error::{ConfigError, ConfigFault};
pub use file::{Reading, examine};
pub use history::HistoryConfig;
pub use origin::OriginRule;
pub(crate) use origin::WebOrigin;
pub use rate::{RateConfig, RatePolicy};
pub use redis_url::{BrokerConfig, RedisAddress, RedisUrl};
use reserved::could_become_reserved;
pub(crate) use reserved::reserved;
pub use token::TokenConfig;

/// All settings. `Config::default()` is what the shipped package runs with: the drop-in
/// for the Lua handler at `/webws`, Redis on this machine.
///
/// ```
/// let mut config = webws::Config::default();
/// config.broker = "memory".parse()?;
/// config.listen = vec!["unix:/tmp/webws.sock".parse()?];
/// config.validate()?;
/// # Ok::<(), webws::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen: `unix:PATH`, `tcp:ADDRESS:PORT`, or `handoff:PATH` for clients that nginx hands off. Default
    /// `unix:/run/webws/webws.sock`. Sockets from systemd replace it.
    pub listen: Vec<Listen>,
    /// Permissions of a Unix socket we bind, octal. Default `0660`: its group may connect.
    pub socket_mode: SocketMode,
    /// Group of a Unix socket we bind: nginx's. Default: none, the group of this process.
    pub socket_group: Option<String>,
    /// The user, by name or number, whose processes may hand off clients: nginx's. Root may as well. Default: none;
    /// then the processes of the group of the handoff socket may, and those of webws' own user.
    pub handoff_user: Option<String>,
    /// The users, by name or number, whose processes are believed on a Unix socket when they say what a client may do
    /// (see [`ClaimsSource::Headers`]); webws' own user is one of them always. A name that no user has is left out. TCP
    /// names no user, so claims are not believed there. Default: root, and nginx' user of the distributions.
    pub trusted_users: Vec<String>,
    /// Worker threads; each has its own links to the broker. Default 0: one per core,
    /// like nginx's `worker_processes auto`.
    pub workers: usize,
    /// `memory` (this process only) or the Redis to use: `redis://`, `rediss://`, `unix://` or
    /// `redis+sentinel://` (`rediss+sentinel://` for TLS); several, separated by blanks, share the
    /// channels. Or `redis+cluster://` (`rediss+cluster://` for TLS).
    /// Default `redis://127.0.0.1:6379`.
    pub broker: BrokerConfig,
    /// The time over which sessions are closed when the sidecar stops (1001), or after a gap
    /// (1012, see [`GapPolicy::Close`]), so that clients do not all come back at once. Default 3 s.
    #[serde(with = "duration")]
    pub drain_time: Duration,
    /// How long messages of a busy channel may wait while most of its clients have not read earlier
    /// ones, because nginx or the clients are behind. Several messages then leave in one system call
    /// and one turn of nginx. A client that has caught up does not wait. Default 5 ms; `0s` is never.
    #[serde(with = "duration")]
    pub pace: Duration,
    /// A Unix socket for `webws upgrade`, which only root and webws' own user may open. Default: none;
    /// SIGUSR2 does the same, without a reply.
    pub control: Option<PathBuf>,
    /// The log level: `error`, `warn`, `info`, `debug` or `off`, or several `TARGET=LEVEL` separated by commas.
    /// Default `info`. An invalid value causes a warning, and `info` applies. An embedding program sets up its
    /// own subscriber.
    pub log: String,
    /// How to speak with Redis.
    pub redis: RedisConfig,
    /// What one process accepts.
    pub limits: Limits,
    /// The paths that are served. Default: `/webws` as the Lua handler served it.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<EndpointConfig>,
}

/// How to speak with Redis. The URL's user and password take precedence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisConfig {
    /// ACL user. Default: none, Redis' `default` user.
    pub username: Option<String>,
    /// File whose first line is the password, read for each link. Default: none; then the systemd credential
    /// `redis-password` is read, if there is one. systemd copies a credential when its unit starts.
    pub password_file: Option<PathBuf>,
    /// ACL user at the Sentinels of `redis+sentinel://`. Default: none, their `default` user.
    pub sentinel_username: Option<String>,
    /// File whose first line is the Sentinels' password. Default: none; then the systemd credential
    /// `redis-sentinel-password` is read, if there is one. Without either, a Sentinel that requires a
    /// password gets Redis' user and password.
    pub sentinel_password_file: Option<PathBuf>,
    /// PEM file with the authorities to trust for `rediss://`. Each certificate in it is also trusted as a
    /// server's. Default: none, the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the only certificates that a `rediss://` server may show, compared byte for byte; names and
    /// dates do not matter. Replaces `ca_file`. List several during a renewal. Default: none.
    pub pinned_certificate_file: Option<PathBuf>,
    /// PEM file with the client certificate, and its intermediates, for a `rediss://` server that requires
    /// one. Default: none.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the key of [`RedisConfig::certificate_file`]; each needs the other. Default: none.
    pub key_file: Option<PathBuf>,
    /// The name that the certificate of a `rediss://` server must have. Default: none, the address' host.
    pub server_name: Option<String>,
    /// How long each step of connecting may take: TCP to one address, TLS, the greeting. A name with several
    /// addresses is tried at each address. A slower look-up is logged and continues, for 30 s at most.
    /// Default 2 s.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long Redis may take to answer before a new link replaces the old one.
    /// Default 15 s: longer than `publish_timeout`, so that a Redis that is only slow
    /// loses no message.
    #[serde(with = "duration")]
    pub response_timeout: Duration,
    /// How long a handshake waits for its subscription before it is refused with 503.
    /// Default 3 s.
    #[serde(with = "duration")]
    pub subscribe_timeout: Duration,
    /// How long a channel stays subscribed after its last session left, for clients that
    /// come back at once. Default 1 s.
    #[serde(with = "duration")]
    pub subscription_linger: Duration,
    /// Longest pause between two attempts to connect. The first pause is 50 ms, each next one is
    /// twice as long, and all are jittered. Default 1 s.
    #[serde(with = "duration")]
    pub max_reconnect_delay: Duration,
    /// Whether publications that were missed are read back from Redis' replication log. Default `auto`.
    pub replay: ReplayPolicy,
}

/// Whether publications that were missed are read back from Redis' replication log, which Redis Cluster does not have.
/// Needs the rights `+info +replconf +psync`. For as long as it reads, webws looks like a replica to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ReplayPolicy {
    /// Never.
    Off,
    /// From a log that Redis keeps anyway, as it does while it has a replica, and where webws has the rights.
    Auto,
    /// As `auto`; webws also makes the log where there is none, and keeps it (Redis 7.0 or newer).
    On,
}

/// What one process accepts. Beyond a limit a handshake gets 503 with `Retry-After`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum of open sessions. Default 0: the descriptor limit minus 120 and minus 4 per worker and Redis server,
    /// which is also the most that counts.
    pub max_sessions: usize,
    /// Maximum of connections per worker that wait for their handshake. The worker handles 64 at a
    /// time; the rest wait as bare descriptors. Default 16384.
    pub max_handshakes: usize,
    /// From accept to the 101. Default 10 s.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// What `Retry-After` says on a 503, whole seconds; and the shortest pause before a client of server-sent
    /// events comes back (`retry:`), spread up to twice as long. Default 2 s.
    #[serde(with = "duration")]
    pub retry_after: Duration,
    /// How much memory the process may use beyond what it uses at its start. Beyond, handshakes get 503, and the
    /// sessions that use most of it are closed with 1013, before the kernel ends the process. Default 0: half of what
    /// the machine has, or of what its cgroup may use (`MemoryMax=`). A program that embeds webws needs
    /// [`Metered`](crate::Metered) as its global allocator; without it nothing is counted, and the limit never applies.
    pub memory: usize,
    /// Maximum bytes of clients' messages that wait for the broker in one worker (with several servers,
    /// each has its share); beyond, clients are not read. Default 64 MiB.
    pub max_unpublished_bytes: usize,
    /// Maximum bytes of all publications that one worker keeps for endpoints with a `history`; beyond, the oldest
    /// of all go. Default 64 MiB.
    pub max_history_bytes: usize,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listen {
    /// A Unix domain socket.
    Unix(PathBuf),
    /// A TCP address, for development.
    Tcp(SocketAddr),
    /// A Unix domain socket for datagrams, on which nginx hands off clients: a request and the client's own socket.
    Handoff(PathBuf),
}

impl FromStr for Listen {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fault = |what: &str| ConfigError::new(vec![format!("'{text}' is not an address to listen on: {what}")]);
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("handoff", path)) if path.starts_with('/') => Ok(Self::Handoff(path.into())),
            Some(("unix" | "handoff", _)) => Err(fault("the path of a Unix socket starts with '/'")),
            Some(("tcp", address)) => address
                .parse()
                .map(Self::Tcp)
                .map_err(|_| fault("write an IP address and a port, as tcp:127.0.0.1:8080 or tcp:[::1]:8080")),
            _ if text.starts_with('/') => Err(fault(&format!("write unix:{text}"))),
            _ if text.parse::<SocketAddr>().is_ok() => Err(fault(&format!("write tcp:{text}"))),
            _ => Err(fault("write unix:PATH, tcp:ADDRESS:PORT or handoff:PATH")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Handoff(path) => write!(f, "handoff:{}", path.display()),
        }
    }
}

/// Permissions of a socket file, written in octal: `"0660"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match u32::from_str_radix(text, 8) {
            Ok(mode @ 0..=0o777) => Ok(Self(mode)),
            _ => Err(ConfigError::new(vec![format!("'{text}' is not a file mode: write it in octal, as \"0660\"")])),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// serde through `FromStr` and `Display`.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Listen, SocketMode, BrokerConfig, OriginRule);

/// Durations as people write them: `"500ms"`, `"5s"`, `"2m"`.
mod duration {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_| {
            serde::de::Error::custom(format!("'{text}' is not a duration: write \"500ms\", \"5s\" or \"2m\""))
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Unix("/run/webws/webws.sock".into())],
            socket_mode: SocketMode(0o660),
            socket_group: None,
            handoff_user: None,
            trusted_users: ["root", "www-data", "nginx"].map(str::to_owned).to_vec(),
            workers: 0,
            broker: BrokerConfig::default(),
            drain_time: Duration::from_secs(3),
            pace: Duration::from_millis(5),
            control: None,
            log: "info".to_owned(),
            redis: RedisConfig::default(),
            limits: Limits::default(),
            endpoints: vec![EndpointConfig::default()],
        }
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            username: None,
            password_file: None,
            sentinel_username: None,
            sentinel_password_file: None,
            ca_file: None,
            pinned_certificate_file: None,
            certificate_file: None,
            key_file: None,
            server_name: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(15),
            subscribe_timeout: Duration::from_secs(3),
            subscription_linger: Duration::from_secs(1),
            max_reconnect_delay: Duration::from_secs(1),
            replay: ReplayPolicy::Auto,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 0,
            max_handshakes: 16_384,
            handshake_timeout: Duration::from_secs(10),
            retry_after: Duration::from_secs(2),
            memory: 0,
            max_unpublished_bytes: 64 << 20,
            max_history_bytes: 64 << 20,
        }
    }
}
