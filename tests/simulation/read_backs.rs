//! Clients that come back to a worker whose history is too short: the process' other workers are asked, one after the
//! other. Stands in for the mailboxes of `worker/recovery.rs`. May not enter: what follows from the answers.

use std::sync::Arc;

use super::world::{Happening, MILLISECOND, World};
use crate::position::MilestoneId;
use crate::protocol::hub::HistoriesSnapshot;
use crate::worker::simulated::{HEARD_WITHIN, ReadBack, WAIT};

/// How long a worker that is asked may take to hear a milestone.
const LATE: u64 = HEARD_WITHIN.subsec_millis() as u64 * MILLISECOND;

/// After what time a client that waits is looked at again.
const LOOK_AGAIN: u64 = WAIT.subsec_millis() as u64 * MILLISECOND;

/// A client, and what was collected for it.
#[derive(Debug)]
pub(crate) struct Asking {
    worker: usize,
    client: ReadBack,
    /// The last milestone that the worker had heard: another one is asked when it has heard that, too, or is late.
    heard: Option<MilestoneId>,
    is_late_at: u64,
    /// Workers that are still to be asked.
    left: Vec<usize>,
    /// `None` where there are no others.
    parts: Option<Vec<HistoriesSnapshot>>,
}

impl Asking {
    /// The worker that has the next step.
    pub(crate) fn at(&self) -> usize {
        self.left.last().copied().unwrap_or(self.worker)
    }
}

impl World {
    /// A worker has a client that needs more history than it keeps.
    pub(crate) fn ask_others(&mut self, worker: usize, client: ReadBack) {
        let Some(node) = self.workers[worker].as_ref() else { return };
        let (health, heard) = (node.health.clone(), node.worker.last_milestone());
        let is_sibling = |(other, node): &(usize, &Option<super::world::Node1>)| {
            *other != worker && node.as_ref().is_some_and(|node| Arc::ptr_eq(&node.health, &health))
        };
        let left: Vec<_> = self.workers.iter().enumerate().filter(is_sibling).map(|(other, _)| other).collect();
        self.next_asking += 1;
        let id = self.next_asking;
        // A worker without others goes on at once.
        let delay = if left.is_empty() { 0 } else { self.delay() };
        let parts = (!left.is_empty()).then(Vec::new);
        let is_late_at = self.now + delay + LATE;
        self.askings.insert(id, Asking { worker, client, heard, is_late_at, left, parts });
        self.at(self.now + delay, Happening::Ask(id));
    }

    /// The next one is asked, or all have answered.
    pub(crate) fn ask(&mut self, id: u64) {
        let now = self.millis();
        let Some(mut asking) = self.askings.remove(&id) else { return };
        let Some(other) = asking.left.pop() else {
            if let Some(node) = self.workers[asking.worker].as_mut() {
                let waits = node.worker.on_read_back(asking.client, asking.parts.take(), now);
                self.pump(asking.worker);
                if let Some(client) = waits {
                    self.askings.insert(id, Asking { client, parts: Some(Vec::new()), ..asking });
                    self.at(self.now + LOOK_AGAIN, Happening::Ask(id));
                }
            }
            return;
        };
        if let Some(node) = self.workers[other].as_ref() {
            if asking.heard.is_some_and(|heard| !node.worker.has_heard(heard)) && self.now < asking.is_late_at {
                asking.left.push(other);
                self.askings.insert(id, asking);
                return self.at(self.now + MILLISECOND, Happening::Ask(id));
            }
            asking.parts.get_or_insert_default().push(node.worker.history_for(&asking.client, now));
        }
        let delay = self.delay();
        asking.is_late_at = self.now + delay + LATE;
        self.askings.insert(id, asking);
        self.at(self.now + delay, Happening::Ask(id));
    }
}
