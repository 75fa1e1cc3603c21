//! A cluster's topology as a worker follows it: the next one, until when the one before certainly held, and the
//! channels without a node. May not enter: links.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio::time::Instant;

use super::cluster::{Cluster, Topology};
use super::node_state::NEWS;
use super::unplaced::Unplaced;

/// A cluster's topology that is followed.
pub(super) struct Following {
    pub(super) cluster: Arc<Cluster>,
    /// Asks the cluster, if this worker does it for all.
    watching: Pin<Box<dyn Future<Output = ()>>>,
    /// The next topology.
    next: NextTopology,
    version: u64,
    followed_at: Instant,
    /// Until when the topology before it certainly held.
    pub(super) old_until: Instant,
    /// Channels whose slot has no owner.
    pub(super) unplaced: Unplaced,
}

type NextTopology = Pin<Box<dyn Future<Output = watch::Receiver<Arc<Topology>>>>>;

impl Following {
    pub(super) fn new(cluster: Arc<Cluster>, now: Instant) -> Self {
        let watching = cluster.clone();
        Self {
            watching: Box::pin(async move { watching.watch().await }),
            next: next_topology(cluster.topology()),
            cluster,
            version: 0,
            followed_at: now,
            old_until: now,
            unplaced: Unplaced::new(now),
        }
    }

    /// Links follow this topology from `now` on.
    pub(super) fn on_topology(&mut self, topology: &Topology, now: Instant) {
        let is_next = topology.version == self.version + 1;
        let old_until = topology.old_until.filter(|_| is_next).unwrap_or(self.followed_at);
        self.old_until = old_until.checked_sub(NEWS).unwrap_or(old_until);
        (self.version, self.followed_at) = (topology.version, now);
    }

    /// The next topology.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arc<Topology>> {
        let watched = self.watching.as_mut().poll(cx);
        debug_assert!(watched.is_pending(), "a cluster is watched for ever");
        let Poll::Ready(mut topology) = self.next.as_mut().poll(cx) else { return Poll::Pending };
        let now = topology.borrow_and_update().clone();
        self.next = next_topology(topology);
        Poll::Ready(now)
    }
}

fn next_topology(mut topology: watch::Receiver<Arc<Topology>>) -> NextTopology {
    Box::pin(async move {
        if topology.changed().await.is_err() {
            // Its sender is the cluster's, which outlives this.
            return std::future::pending().await;
        }
        topology
    })
}
