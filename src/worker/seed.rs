//! A worker on its way to its thread.
//!
//! May not enter: how a worker runs.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::command::{Command, Mailbox};
use super::handshakes::Handshakes;
use crate::broker::{memory, redis};
use crate::config::Config;
use crate::memory::Budget;
use crate::metrics::{Metrics, Shard};

/// A worker's broker on its way to the worker's thread.
#[derive(Debug)]
pub(crate) enum BrokerSeed {
    Memory(memory::PortSeed),
    Redis(redis::Deployment),
}

/// A worker on its way to its thread.
#[derive(Debug)]
pub(crate) struct WorkerSeed {
    pub(crate) config: Arc<Config>,
    pub(crate) broker: BrokerSeed,
    pub(crate) shard: Arc<Shard>,
    pub(crate) metrics: Metrics,
    pub(crate) max_sessions: usize,
    pub(crate) budget: Budget,
    pub(crate) mailbox: mpsc::Receiver<Command>,
    /// The other end of the mailbox.
    pub(crate) own: Mailbox,
    /// The mailboxes of the server's other workers.
    pub(crate) siblings: Vec<Mailbox>,
    pub(crate) handshakes: Arc<Handshakes>,
    /// Whether the worker begins frozen, because another process' sessions will be adopted.
    pub(crate) awaits_sessions: bool,
}
