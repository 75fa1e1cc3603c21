//! A worker on its way to its thread, and what the server and publishers ask of it there.
//!
//! May not enter: what a worker does.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::handover::Ask;
use crate::broker::{memory, redis};
use crate::channel::Channel;
use crate::config::Config;
use crate::message::NotPublished;
use crate::metrics::{Metrics, Shard};

/// What the server asks of its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Serve,
    Drain,
}

/// A message from [`crate::Publisher`].
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
    pub(crate) tell: oneshot::Sender<Result<(), NotPublished>>,
}

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
    pub(crate) requests: Option<mpsc::Receiver<PublishRequest>>,
    pub(crate) orders: watch::Receiver<Order>,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Whether it begins at rest, because another process' sessions are to come.
    pub(crate) rests: bool,
}
