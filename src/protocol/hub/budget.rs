//! What bounds the histories of a worker's channels together. May not enter: channels, what is evicted when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::history::History;
use crate::clock::Millis;

/// The bounds of all histories together.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Payloads of all histories.
    pub(super) bytes: usize,
    pub(super) max_bytes: usize,
    /// Channels by when their oldest publication is too old, or earlier: one entry for each history that is not empty,
    /// as (time, channel, the history's serial number).
    pub(super) oldest: BinaryHeap<Reverse<(Millis, usize, u64)>>,
    pub(super) serials: u64,
    /// The longest time for which a channel is kept.
    pub(super) longest: Millis,
    /// The time of the last tick.
    pub(super) now: Millis,
}

impl Budget {
    /// Whether the histories keep more than they may.
    pub(super) fn is_exceeded(&self) -> bool {
        self.bytes > self.max_bytes
    }

    /// Ends a history, because its subscription is lost or its channel is given up.
    pub(super) fn end(&mut self, history: Option<&mut History>) {
        self.bytes -= history.map_or(0, History::end);
    }
}
