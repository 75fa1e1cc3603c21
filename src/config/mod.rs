//! Every setting: what it means, its unit, its default and why.
//!
//! A [`Config`] is plain data. `file.rs` reads it from TOML and the environment,
//! `validate.rs` checks it and reports all faults at once, `redis_url.rs` reads broker
//! addresses. May not enter: I/O. Nothing is opened before a configuration validated.

mod file;
mod redis_url;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use redis_url::{Broker, RedisAddress, RedisUrl};

/// One or more faults in a configuration, a line each: where, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct ConfigError {
    faults: Vec<String>,
}

impl ConfigError {
    pub(crate) fn new(faults: Vec<String>) -> Self {
        Self { faults }
    }

    /// The faults, one sentence each.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(String::as_str)
    }
}

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
    /// Where to listen: `unix:PATH` or `tcp:ADDRESS:PORT`. Default
    /// `unix:/run/webws/webws.sock`. Sockets that systemd hands over take its place.
    pub listen: Vec<Listen>,
    /// Permissions of a Unix socket we bind, octal. Default `0660`: its group is who may connect.
    pub socket_mode: SocketMode,
    /// Group of a Unix socket we bind: nginx's. Default: none, the group of this process.
    pub socket_group: Option<String>,
    /// Worker threads; each has its own links to the broker. Default 0: one per core,
    /// as nginx's `worker_processes auto`.
    pub workers: usize,
    /// `memory` (this process only) or the Redis to use: `redis://`, `rediss://`, `unix://` or
    /// `redis+sentinel://`, several with blanks between to share the channels; or
    /// `redis+cluster://` (`rediss+cluster://` by TLS).
    /// Default `redis://127.0.0.1:6379`.
    pub broker: Broker,
    /// Over how long the sessions are closed when the sidecar stops (1001), or after a gap
    /// (1012, see [`GapPolicy::Close`]), so that clients do not all come back at once. Default 3 s.
    #[serde(with = "duration")]
    pub drain_time: Duration,
    /// How long messages of a busy channel may be held back while most of its clients have not
    /// read what was sent before, because nginx or they are behind: several then leave in one
    /// system call and one turn of nginx. Who has caught up does not wait. Default 5 ms; `0s` is
    /// never.
    #[serde(with = "duration")]
    pub pace: Duration,
    /// A Unix socket for `webws upgrade`, which only root and our user may open. Default: none;
    /// SIGUSR2 does the same, without an answer.
    pub control: Option<PathBuf>,
    /// What is logged: `error`, `warn`, `info`, `debug` or `off`, or several `TARGET=LEVEL` with commas between.
    /// Default `info`. A wrong one is a warning, and `info`. An embedding program's subscriber is its own.
    pub log: String,
    /// How to speak with Redis.
    pub redis: RedisConfig,
    /// What one process takes on.
    pub limits: Limits,
    /// The paths that are served. Default: `/webws` as the Lua handler served it.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<EndpointConfig>,
}

/// How to speak with Redis. The URL's user and password win over these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisConfig {
    /// ACL user. Default: none, Redis' `default` user.
    pub username: Option<String>,
    /// File whose first line is the password. Default: none; the systemd credential
    /// `redis-password` is read when there is one.
    pub password_file: Option<PathBuf>,
    /// PEM file with the authorities to trust for `rediss://`. Default: none, the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate (and those between it and an authority) that we show to a
    /// `rediss://` that asks for one, and the file with its key. Default: none.
    pub certificate_file: Option<PathBuf>,
    /// See [`RedisConfig::certificate_file`]; the two stand together.
    pub key_file: Option<PathBuf>,
    /// The name that the certificate of `rediss://` must have. Default: none, the address' host.
    pub server_name: Option<String>,
    /// How long connecting (TCP, TLS and the greeting) may take. Default 2 s.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long Redis may take to answer before its link is given up and made anew.
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
    /// Longest pause between two attempts to connect; the first is 50 ms, each doubles,
    /// all jittered. Default 1 s.
    #[serde(with = "duration")]
    pub max_reconnect_delay: Duration,
}

/// What one process takes on. Beyond a limit a handshake is answered 503 with `Retry-After`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Limits {
    /// Open sessions. Default 0: as many as the descriptor limit allows, less 128.
    pub max_sessions: usize,
    /// Connections per worker that wait for their handshake; only 64 are worked on at a time,
    /// the rest waits as bare descriptors. Default 16384.
    pub max_handshakes: usize,
    /// From accept to the 101. Default 10 s.
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    /// What `Retry-After` says on a 503, whole seconds. Default 2 s.
    #[serde(with = "duration")]
    pub retry_after: Duration,
    /// Bytes of clients' texts that may wait for the broker in one worker (for several servers,
    /// each its share); beyond, clients are not read. Default 64 MiB.
    pub max_unpublished_bytes: usize,
}

/// One path and what happens to the WebSockets opened there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// The request's path, exactly. With `channel = "path"`, what goes before `/NAME`. Default `/webws`.
    pub path: String,
    /// How payloads look to clients. Default `lua`.
    pub wire: WireName,
    /// How the channel is found in the request. Default `json`.
    pub channel: ChannelRule,
    /// The query argument that names the channel (`json` and `plain`). Default `channel`.
    pub argument: String,
    /// Goes before the channel's name in Redis. Default `chat:`.
    pub prefix: String,
    /// Whether clients receive what is published. Default true.
    pub subscribe: bool,
    /// Whether clients' texts are published; else a text is answered with close 1008. Default true.
    pub publish: bool,
    /// Longest message of a client; longer: close 1009. Default 65535, the Lua handler's.
    pub max_message_bytes: usize,
    /// Ping after this much silence of the client. Default 5 s, the Lua handler's; `0s` is never.
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    /// Give a client up after this long without a byte from it (or to it, while bytes wait
    /// for it). Default 30 s: six pings unanswered; `0s` is never.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Bytes that may wait for a client behind the message being sent to it; beyond: close 1013.
    /// Default 1 MiB.
    pub max_queue_bytes: usize,
    /// Close a client whose socket takes nothing for this long while bytes wait. Default 10 s.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// Bytes of a client's texts that may wait for the broker; beyond, the client is not read.
    /// Default 256 KiB.
    pub max_unpublished_bytes: usize,
    /// Close with 1013 when a text could not be published for this long. Default 10 s.
    #[serde(with = "duration")]
    pub publish_timeout: Duration,
    /// What clients are told when messages may be missing, because a link to Redis was away.
    /// Default `keep`, as the Lua handler.
    pub on_gap: GapPolicy,
    /// In a Redis Cluster: whether channels are sharded (`SPUBLISH`, `SSUBSCRIBE`), so that a message
    /// burdens the nodes of its slot and no other; producers must use `SPUBLISH` then. It is so for
    /// all channels with this `prefix`. Default false: `PUBLISH`, as everywhere else.
    pub sharded: bool,
}

/// What clients are told after a gap. It is logged and counted in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GapPolicy {
    /// Nothing: the WebSocket stays open, and what comes next comes.
    Keep,
    /// Close with 1012, spread over `drain_time`: clients come back and fetch what they missed.
    Close,
}

/// How payloads look to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WireName {
    /// As the Lua handler: the channel's name follows the payload, a close is answered `88 00`.
    Lua,
    /// The payload unchanged; a close is answered with its own code (RFC 6455 §5.5.1).
    Plain,
}

/// How the channel is found in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChannelRule {
    /// The query argument is a JSON string or number: `?channel="zhang"`.
    Json,
    /// The query argument as it stands: `?channel=zhang`.
    Plain,
    /// The path's last segment: `/webws/zhang`.
    Path,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listen {
    /// A Unix domain socket.
    Unix(PathBuf),
    /// A TCP address, for development.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let fault = |what: &str| ConfigError::new(vec![format!("'{text}' is no address to listen on: {what}")]);
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(fault("the path of a Unix socket starts with '/'")),
            Some(("tcp", address)) => {
                address.parse().map(Self::Tcp).map_err(|_| fault("write tcp:127.0.0.1:8080 or tcp:[::1]:8080"))
            }
            _ => Err(fault("write unix:PATH or tcp:ADDRESS:PORT")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
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
            _ => Err(ConfigError::new(vec![format!("'{text}' is no file mode: write it in octal, as \"0660\"")])),
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
as_text!(Listen, SocketMode, Broker);

/// Durations as people write them: `"500ms"`, `"5s"`, `"2m"`.
mod duration {
    use super::{Deserialize, Duration};

    pub(super) fn serialize<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_| {
            serde::de::Error::custom(format!("'{text}' is no duration: write \"500ms\", \"5s\" or \"2m\""))
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Unix("/run/webws/webws.sock".into())],
            socket_mode: SocketMode(0o660),
            socket_group: None,
            workers: 0,
            broker: Broker::default(),
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
            ca_file: None,
            certificate_file: None,
            key_file: None,
            server_name: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(15),
            subscribe_timeout: Duration::from_secs(3),
            subscription_linger: Duration::from_secs(1),
            max_reconnect_delay: Duration::from_secs(1),
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
            max_unpublished_bytes: 64 << 20,
        }
    }
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            path: "/webws".to_owned(),
            wire: WireName::Lua,
            channel: ChannelRule::Json,
            argument: "channel".to_owned(),
            prefix: "chat:".to_owned(),
            subscribe: true,
            publish: true,
            max_message_bytes: 65_535,
            ping_interval: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            max_queue_bytes: 1 << 20,
            stall_timeout: Duration::from_secs(10),
            max_unpublished_bytes: 256 << 10,
            publish_timeout: Duration::from_secs(10),
            on_gap: GapPolicy::Keep,
            sharded: false,
        }
    }
}

impl EndpointConfig {
    /// The endpoint of the test page besides `/webws`: `/plain?channel=zhang`, payloads unchanged.
    pub fn plain() -> Self {
        Self { path: "/plain".to_owned(), wire: WireName::Plain, channel: ChannelRule::Plain, ..Self::default() }
    }
}
