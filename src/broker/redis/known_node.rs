//! A node as all workers see it: how to make links to it, and their health.

use std::sync::Arc;

use super::connect::Settings;
use super::health::Health;
use crate::config::RedisUrl;

/// A node for all workers; clones are one.
#[derive(Debug, Clone)]
pub(super) struct KnownNode {
    pub(super) settings: Arc<Settings>,
    pub(super) health: Arc<Health>,
}

impl KnownNode {
    /// A node with the links of so many workers.
    pub(super) fn new(settings: Arc<Settings>, workers: usize) -> Self {
        let health = Arc::new(Health::new(settings.server(), workers));
        Self { settings, health }
    }

    /// Its address.
    pub(super) fn server(&self) -> &RedisUrl {
        self.settings.server()
    }

    /// Whether `other` is the same, and not another with the same address.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.health, &other.health)
    }
}
