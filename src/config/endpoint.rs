//! What an `[[endpoint]]` says: a path, how it names channels, how payloads look, its limits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;

/// One path and what happens to the WebSockets opened there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// The request's path, and all paths below it (`/webws/`, `/webws/foo`) that belong to no endpoint
    /// with a longer path. With `channel = "path"`, what goes before `/NAME`. Default `/webws`.
    pub path: String,
    /// How payloads look to clients. Default `lua`.
    pub wire: WireName,
    /// How the channel is found in the request. Default `json`.
    pub channel: ChannelRule,
    /// The query argument that names the channel (`json` and `plain`). Default `channel`.
    pub argument: String,
    /// Goes before the channel's name in Redis. Default `chat:`.
    pub prefix: String,
    /// Whether `prefix` may be empty, so that clients name any channel of that Redis but those that Redis and
    /// webws use themselves. Default false: an empty prefix is more often a forgotten one.
    pub allow_empty_prefix: bool,
    /// Longest name of a channel that a client may ask for, in bytes, decoded and without the prefix;
    /// longer: 400. Default 512: the name goes to Redis and back with each message, so a long one
    /// makes small messages dear.
    pub max_channel_bytes: usize,
    /// Subprotocols that the `plain` wire speaks: the first that a client offers and that is listed here
    /// is answered, else none. Default: none. The `lua` wire answers the first that is offered.
    pub subprotocols: Vec<String>,
    /// Whether clients receive what is published. Default true.
    pub subscribe: bool,
    /// Whether clients' messages are published; else a message is answered with close 1008. Default true.
    pub publish: bool,
    /// What becomes of a client's binary message on the `plain` wire. Default `close`. The `lua` wire
    /// reads and ignores binary messages, as the Lua handler.
    pub binary: BinaryPolicy,
    /// How the `plain` wire delivers what is published and is not UTF-8. Default `binary`. On the `lua`
    /// wire it is always a text with U+FFFD in the place of each bad byte.
    pub not_utf8: NotUtf8Policy,
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

/// What becomes of a client's binary message on the `plain` wire. It is counted in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BinaryPolicy {
    /// It is published as a text is. Subscribers get it as a text where it is UTF-8.
    Publish,
    /// The WebSocket is closed with 1003.
    Close,
}

/// How the `plain` wire delivers a publication that is not UTF-8. It is counted in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NotUtf8Policy {
    /// As a binary message, unchanged.
    Binary,
    /// As a text with U+FFFD in the place of each bad byte.
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
            subprotocols: Vec::new(),
            subscribe: true,
            publish: true,
            binary: BinaryPolicy::Close,
            not_utf8: NotUtf8Policy::Binary,
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
