//! The setting `rate` of an endpoint: how fast each of its clients may send. May not enter: the counting
//! (`protocol/session`).

use serde::{Deserialize, Serialize};

use super::size;

/// How fast a client may send, as an average; a second's worth may come at once. Both bounds apply.
///
/// ```
/// use webws::{EndpointConfig, RateConfig, RatePolicy};
///
/// let mut rate = RateConfig::default();
/// rate.messages = 5;
/// rate.over = RatePolicy::Close;
/// let chat = EndpointConfig::new("/chat").with_rate(rate);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RateConfig {
    /// Messages per second. Default 50: more than people type, draw or play.
    pub messages: usize,
    /// Bytes of messages per second. Default 128 kB: two of the longest messages.
    #[serde(deserialize_with = "size::deserialize")]
    pub bytes: usize,
    /// What happens to a client that sends faster. Default `wait`.
    pub over: RatePolicy,
}

/// What happens to a client that sends faster than its endpoint's [`RateConfig`] allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RatePolicy {
    /// webws reads the client's next bytes when its time has come: no message is lost, and the client's own queue grows.
    Wait,
    /// Close the WebSocket with 1008.
    Close,
}

impl Default for RateConfig {
    fn default() -> Self {
        Self { messages: 50, bytes: 128_000, over: RatePolicy::Wait }
    }
}
