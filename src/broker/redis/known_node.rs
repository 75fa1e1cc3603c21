//! A node, as all workers know it: its settings and its health. May not enter: links.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::connect::Settings;
use super::health::Health;
use crate::config::RedisUrl;

/// A node for all workers; clones share its health.
#[derive(Debug, Clone)]
pub(super) struct KnownNode {
    pub(super) settings: Arc<Settings>,
    pub(super) health: Arc<Health>,
    /// Whether a worker keeps the node's replication log, for all.
    is_log_kept: Arc<AtomicBool>,
}

impl KnownNode {
    /// A node with the links of this number of workers.
    pub(super) fn new(settings: Arc<Settings>, workers: usize) -> Self {
        let health = Arc::new(Health::new(settings.server(), workers));
        Self { settings, health, is_log_kept: Arc::default() }
    }

    /// Whether the caller is to keep the node's replication log: the first one that asks.
    pub(super) fn is_log_to_keep(&self) -> bool {
        self.settings.keeps_log && !self.is_log_kept.swap(true, Ordering::Relaxed)
    }

    /// The address of the node.
    pub(super) fn server(&self) -> &RedisUrl {
        self.settings.server()
    }

    /// Whether `other` is the same node, not another one at the same address.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.health, &other.health)
    }
}
