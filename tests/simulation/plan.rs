//! What a seed makes of a run: its size, its settings, what may happen. May not enter: what happens.

use std::time::Duration;

use fastrand::Rng;

use super::client::PREFIX;
use super::redis::Acl;
use crate::broker::redis::resp::Protocol;
use crate::config::{Config, EndpointConfig, GapPolicy, HistoryConfig};

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
    /// Whether endpoints have histories, and what the servers keep.
    pub(crate) history: Option<HistoryPlan>,
}

/// What kind of run with positions a seed makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistoryPlan {
    pub(crate) acl: Acl,
    /// Whether the log may be read.
    pub(crate) may_replay: bool,
    /// Whether there is a log at first, and whether one is made where none is.
    pub(crate) has_log: bool,
    pub(crate) keeps_log: bool,
    pub(crate) log_bytes: usize,
    /// Whether another process has clients on the same channels.
    pub(crate) has_fleet: bool,
}

impl HistoryPlan {
    fn new(rng: &mut Rng) -> Self {
        Self {
            acl: match rng.u8(..20) {
                0 => Acl::NoLog,
                1 => Acl::NoInfo,
                2 => Acl::NoMilestones,
                _ => Acl::All,
            },
            may_replay: rng.u8(..10) > 0,
            has_log: rng.u8(..5) > 0,
            keeps_log: rng.u8(..4) > 0,
            log_bytes: if rng.u8(..4) == 0 { rng.usize(500..8_000) } else { 1 << 20 },
            has_fleet: rng.bool(),
        }
    }
}

impl Plan {
    /// One run of so many has histories.
    pub(crate) fn new(rng: &mut Rng, one_of: u64) -> Self {
        Self {
            protocol: if rng.u8(..5) == 0 { Protocol::Resp2 } else { Protocol::Resp3 },
            workers: rng.usize(1..=2),
            clients: rng.usize(2..=7),
            channels: rng.usize(1..=4),
            has_faults: rng.u8(..10) > 0,
            hands_over: rng.u8(..3) == 0,
            is_fast: rng.bool(),
            history: rng.u64(..one_of).eq(&0).then(|| HistoryPlan::new(rng)),
        }
    }
}

/// Settings of a run: limits that are reached, and both policies for a gap.
pub(crate) fn config(plan: &Plan, rng: &mut Rng) -> Config {
    let endpoint = EndpointConfig {
        prefix: PREFIX.to_owned(),
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
    if plan.history.is_some() {
        let history = HistoryConfig {
            messages: if rng.bool() { 200 } else { rng.usize(1..30) },
            age: Duration::from_millis(rng.u64(500..30_000)),
            bytes: if rng.bool() { 64_000 } else { rng.usize(100..2_000) },
        };
        let kept = config.endpoints.clone().into_iter();
        let kept =
            kept.map(|of| EndpointConfig { path: format!("{}-kept", of.path), history: Some(history.clone()), ..of });
        config.endpoints.extend(kept.collect::<Vec<_>>());
        config.limits.max_history_bytes = if rng.u8(..4) == 0 { rng.usize(300..5_000) } else { 1 << 20 };
    }
    config.redis.subscription_linger = Duration::from_millis(rng.u64(..2_000));
    config.limits.max_unpublished_bytes = rng.usize(1_000..20_000);
    config
}
