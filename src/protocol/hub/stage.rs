//! What the tests of the hub share: names, and sessions that keep their bytes. May not enter: tests.

use std::time::Instant;

use super::{Hub, Outlet};
use crate::channel::Channel;
use crate::id::SessionKey;
use crate::position::{Milestone, MilestoneId, Position};
use crate::protocol::outbound::Batch;

pub(super) fn key(index: u32) -> SessionKey {
    SessionKey { index, generation: 0 }
}

pub(super) fn channel(name: &str) -> Channel {
    Channel::from(name.to_owned())
}

pub(super) fn milestone(id: u64) -> Milestone {
    Milestone { id: MilestoneId(id), log: None }
}

pub(super) fn position(id: u64, count: u32) -> Position {
    Position { milestone: milestone(id), count }
}

/// Sessions that keep their bytes.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) batches: Vec<(u32, Vec<u8>)>,
    /// Sessions from this index on have not caught up.
    pub(super) behind_from: Option<u32>,
}

impl Outlet for Kept {
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
        self.batches.push((session.index, batch.bytes().to_vec()));
    }

    fn is_behind(&mut self, session: SessionKey) -> bool {
        self.behind_from.is_some_and(|from| session.index >= from)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// What each session gets, by its index.
pub(super) fn flushed(hub: &mut Hub) -> Vec<(u32, Vec<u8>)> {
    let mut kept = Kept::default();
    hub.flush(&mut kept);
    kept.batches.sort();
    kept.batches
}

/// What all sessions get, in the order of delivery.
pub(super) fn sent(hub: &mut Hub) -> String {
    let mut kept = Kept::default();
    hub.flush(&mut kept);
    kept.batches.iter().map(|(_, batch)| String::from_utf8_lossy(batch)).collect()
}
