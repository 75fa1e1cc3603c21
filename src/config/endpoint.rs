//! The settings of an `[[endpoint]]`: its path, how it names channels, how payloads look, its limits. May not enter:
//! the reading of a request (`protocol/endpoint.rs`).

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HistoryConfig, OriginRule, RateConfig, TokenConfig, duration};

/// One path, and what happens to its clients: WebSockets, server-sent events for requests that accept
/// `text/event-stream`, and long-poll for those that accept `application/json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// The request's path, and all paths below it (`/webws/`, `/webws/foo`) without an endpoint of a longer
    /// path. With `channel = "path"`, the part before `/NAME`. Default `/webws`.
    pub path: String,
    /// How payloads look to clients. Default `lua`.
    pub wire: WireName,
    /// Where the request names the channel. Default `json`.
    pub channel: ChannelRule,
    /// The query argument that names the channel (`json` and `plain`). Default `channel`.
    pub argument: String,
    /// Precedes the channel's name in Redis. Default `chat:`.
    pub prefix: String,
    /// Whether `prefix` may be empty. Clients then name any channel of that Redis, except those that Redis and
    /// webws use themselves. Default false: an empty prefix is usually a forgotten one.
    pub allow_empty_prefix: bool,
    /// Longest channel name that a client may use, in bytes, decoded and without the prefix;
    /// longer: 400. Default 512: the name travels to Redis and back with each message, so a long
    /// name makes small messages expensive.
    pub max_channel_bytes: usize,
    /// The names of channels that clients may use, without the prefix; others get 403. A `*` stands for any characters.
    /// Default: none, every name.
    pub channels: Vec<String>,
    /// The characters of which such a name consists, with ranges: `a-z0-9_-`; a name with others gets 400. Default:
    /// empty, all characters.
    pub channel_characters: String,
    /// File with the keys that sign the names of channels, one a line; several count at a time. Or
    /// `credential:NAME`, a credential of systemd. Clients then name a channel by its signed name, as Rails'
    /// `MessageVerifier` makes it; other names get 403. A changed file is read again within a second or so. Default:
    /// none, names are not signed.
    pub channel_keys_file: Option<PathBuf>,
    /// Subprotocols of the `plain` wire. The answer is the first one that a client offers and this list
    /// contains, else none. Default: none. The `lua` wire answers the first one offered.
    pub subprotocols: Vec<String>,
    /// Whether clients receive what is published. Default true.
    pub subscribe: bool,
    /// Whether clients' messages are published; else a message is answered with close 1008. Default true.
    pub publish: bool,
    /// What happens to a client's binary message on the `plain` wire. Default `close`. The `lua` wire
    /// reads and ignores binary messages, as the Lua handler did.
    pub binary: BinaryPolicy,
    /// How the `plain` wire and server-sent events deliver a publication that is not UTF-8. Default `binary`.
    /// WebSockets of the `lua` wire always get a text with U+FFFD for each invalid byte.
    pub not_utf8: NotUtf8Policy,
    /// The origins whose pages may connect; another page's request gets 403. `https://a.example`,
    /// `https://*.b.example` and `same-host` are rules (see [`OriginRule`]). An allowed page of another origin may also
    /// read server-sent events, with credentials (CORS). Default: none, then every page may connect, and no
    /// CORS field is sent; but with `claims`, `same-host`: a browser sends cookies for pages of other sites as well.
    pub origins: Vec<OriginRule>,
    /// What becomes of a request without an Origin field, if there are `origins` or `claims`. Default `auto`.
    pub no_origin: NoOriginPolicy,
    /// From where webws learns what a client may do. Default `none`: each client may do what the endpoint allows.
    pub claims: ClaimsSource,
    /// With `claims`: whether a request without any, or from a sender that is not trusted, gets 403; else its client
    /// may do what the endpoint allows. Default true.
    pub claims_required: bool,
    /// How fast each client may send. Default: none, as fast as Redis takes messages.
    pub rate: Option<RateConfig>,
    /// The tokens of `claims = "token"`. Default: none.
    pub token: Option<TokenConfig>,
    /// Longest message of a client; longer: close 1009. Default 65535, the Lua handler's.
    pub max_message_bytes: usize,
    /// Ping a client after this much silence from it. Default 5 s, the Lua handler's; `0s` is never. Server-sent
    /// events have a comment instead.
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    /// How long a client that polls waits for a message before it gets 204. At most 60 s: the shipped nginx location
    /// ends a request that is silent for 65 s. Default 25 s: platforms in front of nginx cut requests after 30 s.
    #[serde(with = "duration")]
    pub poll_timeout: Duration,
    /// Close a client after this long without a byte from it (or to it, while bytes wait
    /// for it). Default 30 s: six unanswered pings; `0s` is never. Not for server-sent events, whose clients are
    /// always silent.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// Maximum bytes that wait for a client behind the message being sent; beyond, `on_slow` applies.
    /// Default 1 MiB.
    pub max_queue_bytes: usize,
    /// What becomes of publications for a client that reads too slowly. Default `close`.
    pub on_slow: SlowPolicy,
    /// Close a client whose socket takes nothing for this long while bytes wait. Default 10 s.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// Maximum bytes of a client's messages that wait for the broker; beyond, the client is not read.
    /// Default 256 KiB.
    pub max_unpublished_bytes: usize,
    /// Close with 1013 when a message could not be published for this long. Default 10 s.
    #[serde(with = "duration")]
    pub publish_timeout: Duration,
    /// What clients learn when messages may be missing, because a link to Redis was away.
    /// Default `keep`, as with the Lua handler.
    pub on_gap: GapPolicy,
    /// What is kept of each channel for clients that come back. Default: none, nothing is kept.
    pub history: Option<HistoryConfig>,
    /// In a Redis Cluster: whether all channels with this `prefix` are sharded (`SPUBLISH`, `SSUBSCRIBE`),
    /// so that a message loads only the nodes of its slot. Producers must then use `SPUBLISH`.
    /// Default false: `PUBLISH`.
    pub sharded: bool,
}

/// What clients learn after a gap. Each gap is logged and counted in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GapPolicy {
    /// Nothing: the WebSocket stays open, and later messages arrive.
    Keep,
    /// Close with 1012, spread over `drain_time`: clients come back and fetch what they missed.
    Close,
}

/// What becomes of publications for a client that reads more slowly than they come. Redis and other clients never wait
/// for such a client, and one that takes nothing for `stall_timeout` is closed in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SlowPolicy {
    /// They wait, and beyond `max_queue_bytes` the client is closed with 1013: it comes back and fetches.
    Close,
    /// They wait, and beyond `max_queue_bytes` the oldest are dropped. Server-sent events and clients of `ws+meta.nchan`
    /// are told so: `event: gap`.
    Drop,
    /// Only the newest waits: for channels whose every message has the whole state, as a price or a position.
    Latest,
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
    /// Server-sent events and no WebSockets, whatever a request accepts.
    Sse,
}

/// Where the request names the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChannelRule {
    /// The query argument is a JSON string or number: `?channel="zhang"`.
    Json,
    /// The query argument is the name itself: `?channel=zhang`.
    Plain,
    /// The path's last segment: `/webws/zhang`.
    Path,
}

/// What becomes of a request without an Origin field at an endpoint with `origins`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NoOriginPolicy {
    /// It is served, unless it is for a WebSocket at an endpoint with `claims`. Browsers send the field with each
    /// WebSocket, and not with server-sent events of the page's own origin.
    Auto,
    /// It is served: its client is no browser, or the page has the request's own origin.
    Allow,
    /// 403. For WebSockets of browsers: these always have the field.
    Refuse,
}

/// From where webws learns what a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClaimsSource {
    /// From nowhere: each client may do what the endpoint allows.
    None,
    /// From the headers `X-Webws-User`, `X-Webws-Channels` and `X-Webws-Expires` of a request that a process of
    /// [`trusted_users`](super::Config::trusted_users) sends: nginx.
    Headers,
    /// From a JSON Web Token of the request (see [`TokenConfig`]).
    Token,
}

/// What the `plain` wire does with a client's binary message, which is counted in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BinaryPolicy {
    /// Publish the message as a text is. Subscribers get a text if the message is UTF-8.
    Publish,
    /// Close the WebSocket with 1003.
    Close,
}

/// How the `plain` wire and server-sent events deliver a publication that is not UTF-8, which is counted in either
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NotUtf8Policy {
    /// As a binary message, unchanged; as an event of the type `binary`, in base64.
    Binary,
    /// As a text with U+FFFD for each invalid byte.
    Replace,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            path: "/webws".to_owned(),
            wire: WireName::Lua,
            channel: ChannelRule::Json,
            argument: "channel".to_owned(),
            prefix: "chat:".to_owned(),
            allow_empty_prefix: false,
            max_channel_bytes: 512,
            channels: Vec::new(),
            channel_characters: String::new(),
            channel_keys_file: None,
            subprotocols: Vec::new(),
            subscribe: true,
            publish: true,
            binary: BinaryPolicy::Close,
            not_utf8: NotUtf8Policy::Binary,
            origins: Vec::new(),
            no_origin: NoOriginPolicy::Auto,
            claims: ClaimsSource::None,
            claims_required: true,
            rate: None,
            token: None,
            max_message_bytes: 65_535,
            ping_interval: Duration::from_secs(5),
            poll_timeout: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(30),
            max_queue_bytes: 1 << 20,
            on_slow: SlowPolicy::Close,
            stall_timeout: Duration::from_secs(10),
            max_unpublished_bytes: 256 << 10,
            publish_timeout: Duration::from_secs(10),
            on_gap: GapPolicy::Keep,
            history: None,
            sharded: false,
        }
    }
}
