//! What `webws check` asks of a running Redis. May not enter: what makes a configuration valid.

use super::setup::redis_deployment;
use crate::config::{BrokerConfig, Config, ReplayPolicy};

/// How far back the replication log of each Redis reaches, a line each; none where `redis.replay` is off. Connects to each Redis for some seconds at most.
pub async fn replay_outlook(config: &Config) -> Vec<String> {
    let BrokerConfig::Redis(urls) = &config.broker else { return Vec::new() };
    if config.redis.replay == ReplayPolicy::Off {
        return Vec::new();
    }
    match redis_deployment(config, urls, 1) {
        Ok(deployment) => deployment.replay_outlook(config.redis.replay).await,
        // Told as faults of the configuration.
        Err(_) => Vec::new(),
    }
}
