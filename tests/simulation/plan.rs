//! What a seed makes of a run: its size, its settings, what may happen. May not enter: what happens.

use std::time::Duration;

use fastrand::Rng;

use crate::broker::redis::resp::Protocol;
use crate::config::{Config, EndpointConfig, GapPolicy};

/// What kind of run a seed makes.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) protocol: Protocol,
    pub(crate) workers: usize,
    pub(crate) clients: usize,
    pub(crate) channels: usize,
    pub(crate) has_faults: bool,
    pub(crate) hands_over: bool,
    pub(crate) is_fast: bool,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self {
            protocol: if rng.u8(..5) == 0 { Protocol::Resp2 } else { Protocol::Resp3 },
            workers: rng.usize(1..=2),
            clients: rng.usize(2..=7),
            channels: rng.usize(1..=4),
            has_faults: rng.u8(..10) > 0,
            hands_over: rng.u8(..3) == 0,
            is_fast: rng.bool(),
        }
    }
}

/// Settings of a run: limits that are reached, and both policies for a gap.
pub(crate) fn config(rng: &mut Rng) -> Config {
    let endpoint = EndpointConfig {
        max_queue_bytes: rng.usize(200..5_000),
        max_unpublished_bytes: rng.usize(200..2_000),
        publish_timeout: Duration::from_secs(rng.u64(3..8)),
        stall_timeout: Duration::from_secs(rng.u64(3..8)),
        ping_interval: Duration::from_secs(4),
        ..EndpointConfig::default()
    };
    let of = |path: &str, on_gap| EndpointConfig { path: path.to_owned(), on_gap, ..endpoint.clone() };
    let mut config = Config {
        endpoints: vec![of("/stay", GapPolicy::Keep), of("/close", GapPolicy::Close)],
        pace: Duration::ZERO,
        ..Config::default()
    };
    config.redis.subscription_linger = Duration::from_millis(rng.u64(..2_000));
    config.limits.max_unpublished_bytes = rng.usize(1_000..20_000);
    config
}
