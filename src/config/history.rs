//! The setting `history` of an endpoint: how much of each of its channels is kept. May not enter: the history itself
//! (`protocol/hub`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, size};

/// How many publications of each channel a worker keeps, for clients that come back. All three bounds apply.
///
/// ```
/// use std::time::Duration;
/// use webws::{EndpointConfig, HistoryConfig};
///
/// let mut history = HistoryConfig::default();
/// history.age = Duration::from_secs(30);
/// let news = EndpointConfig::new("/news").with_history(history);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct HistoryConfig {
    /// Maximum of publications of a channel. Default 200.
    pub messages: usize,
    /// How long a publication is kept, and a channel stays subscribed after its last client left. Default 2 min: a
    /// page that is loaded again, or a phone that changes its network, is back sooner.
    #[serde(with = "duration")]
    pub age: Duration,
    /// Maximum bytes of a channel's payloads. Default 64 kB.
    #[serde(deserialize_with = "size::deserialize")]
    pub bytes: usize,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { messages: 200, age: Duration::from_secs(120), bytes: 64_000 }
    }
}
