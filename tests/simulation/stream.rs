//! A byte stream between a worker and a server: pieces of any length, after any time, until it is cut at any byte.
//!
//! May not enter: what the bytes mean.

use super::node_links::Which;

/// A stream; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Towards {
    Server,
    Worker,
}

/// Bytes on their way in one direction.
#[derive(Debug, Default)]
pub(crate) struct Way {
    pub(crate) bytes: Vec<u8>,
    /// Whether a delivery is scheduled.
    pub(crate) is_moving: bool,
    /// The end follows the bytes.
    pub(crate) is_ended: bool,
    /// The end has arrived.
    pub(crate) is_over: bool,
    /// Nothing arrives until then.
    pub(crate) frozen_until: u64,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) worker: usize,
    pub(crate) which: Which,
    pub(crate) server: usize,
    to_server: Way,
    to_worker: Way,
    /// Since when the server delivers nothing on it any more, if it is deaf.
    pub(crate) incomplete_since: Option<u64>,
}

impl Stream {
    pub(crate) fn new(worker: usize, which: Which, server: usize) -> Self {
        let (to_server, to_worker) = (Way::default(), Way::default());
        Self { worker, which, server, to_server, to_worker, incomplete_since: None }
    }

    pub(crate) fn way(&mut self, towards: Towards) -> &mut Way {
        match towards {
            Towards::Server => &mut self.to_server,
            Towards::Worker => &mut self.to_worker,
        }
    }

    /// Whether both ends know that it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.to_server.is_over && self.to_worker.is_over
    }

    /// Cuts it: of what is on its way, only a part arrives, and then the end.
    pub(crate) fn cut(&mut self, rng: &mut fastrand::Rng) {
        for way in [&mut self.to_server, &mut self.to_worker] {
            way.bytes.truncate(rng.usize(..=way.bytes.len()));
            way.is_ended = true;
        }
    }
}
