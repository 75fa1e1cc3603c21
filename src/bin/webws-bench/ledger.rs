//! The publications that each receiver got: counts those that are lost, come twice, or come out of order.
//!
//! One track per (receiver, sender). A receiver must get all publications that are sent after it joined, and may get
//! those that were under way at that moment. May not enter: time, frames.

use std::collections::HashMap;
use std::ops::Range;

/// Counts of publications by their fate, over all receivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Sent and never received.
    pub(crate) lost: u64,
    /// Received more than once.
    pub(crate) duplicated: u64,
    /// Received after one that was sent later.
    pub(crate) reordered: u64,
}

impl Faults {
    pub(crate) fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a publication was owed to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Yes, and it had not come before.
    Awaited,
    /// No: it was sent before the receiver joined.
    Early,
    /// No: it had come before.
    Duplicate,
}

/// The tracks of one load thread's receivers.
#[derive(Debug)]
pub(crate) struct Ledger {
    tracks: Vec<Track>,
    senders: usize,
    /// Skipped sequences by track; separate, because they are rare.
    missing: HashMap<usize, Vec<Range<u32>>>,
    faults: Faults,
}

/// The publications that one receiver got from one sender.
#[derive(Debug, Clone, Copy, Default)]
struct Track {
    /// The number of publications sent before the receiver joined: all later ones are owed.
    base: u32,
    /// The sequence expected next.
    next: u32,
    /// Whether a publication has come.
    begun: bool,
}

impl Ledger {
    /// For `receivers`, each of which gets publications of at most `senders`.
    pub(crate) fn new(receivers: usize, senders: usize) -> Self {
        let tracks = vec![Track::default(); receivers.saturating_mul(senders)];
        Self { tracks, senders, missing: HashMap::new(), faults: Faults::default() }
    }

    /// Bytes that such a ledger takes.
    pub(crate) fn bytes(receivers: usize, senders: usize) -> usize {
        receivers.saturating_mul(senders).saturating_mul(size_of::<Track>())
    }

    /// `receiver` joins; this sender has sent `sent` so far.
    pub(crate) fn join(&mut self, receiver: usize, sender: usize, sent: u32) {
        if let Some(track) = self.tracks.get_mut(receiver * self.senders + sender) {
            *track = Track { base: sent, next: sent, begun: false };
        }
    }

    /// `receiver` joins with a position: it is owed exactly the publications from `next` on.
    pub(crate) fn resume(&mut self, receiver: usize, sender: usize, next: u32) {
        if let Some(track) = self.tracks.get_mut(receiver * self.senders + sender) {
            *track = Track { base: next, next, begun: true };
        }
    }

    /// Whether `receiver` has got everything that it is owed of this sender before `sequence`.
    pub(crate) fn is_whole(&self, receiver: usize, sender: usize, sequence: u32) -> bool {
        let index = receiver * self.senders + sender;
        let has_come = self.tracks.get(index).is_some_and(|track| track.next >= sequence);
        has_come && self.missing.get(&index).is_none_or(Vec::is_empty)
    }

    /// `receiver` got the publication `sequence` of `sender`.
    pub(crate) fn on_received(&mut self, receiver: usize, sender: usize, sequence: u32) -> Verdict {
        let index = receiver * self.senders + sender;
        let Some(track) = self.tracks.get_mut(index) else { return Verdict::Duplicate };
        let verdict = if sequence >= track.base { Verdict::Awaited } else { Verdict::Early };
        if !track.begun && sequence <= track.base {
            track.begun = true;
            track.next = sequence + 1;
            return verdict;
        }
        track.begun = true;
        if sequence == track.next {
            track.next += 1;
            return verdict;
        }
        if sequence > track.next {
            self.missing.entry(index).or_default().push(track.next..sequence);
            track.next = sequence + 1;
            return verdict;
        }
        if self.missing.get_mut(&index).is_some_and(|missing| take_out(missing, sequence)) {
            self.faults.reordered += 1;
            return verdict;
        }
        self.faults.duplicated += 1;
        Verdict::Duplicate
    }

    /// `receiver` got `count` publications from `first` on. False, and nothing is noted, unless exactly these were owed
    /// next.
    pub(crate) fn on_successive(&mut self, receiver: usize, sender: usize, first: u32, count: u32) -> bool {
        let Some(track) = self.tracks.get_mut(receiver * self.senders + sender) else { return false };
        if track.next != first || first < track.base {
            return false;
        }
        track.begun = true;
        track.next += count;
        true
    }

    /// Whether `receiver` is still owed the publication `sequence` of `sender`.
    pub(crate) fn is_owed(&self, receiver: usize, sender: usize, sequence: u32) -> bool {
        self.tracks
            .get(receiver * self.senders + sender)
            .is_some_and(|track| sequence >= track.base && sequence >= track.next)
    }

    /// `receiver` leaves: publications under way are no longer owed, and skipped ones are lost.
    pub(crate) fn leave(&mut self, receiver: usize, sender: usize) {
        let index = receiver * self.senders + sender;
        self.faults.lost += skipped(self.missing.remove(&index));
    }

    /// The run is over for `receiver`, which should have got all `sent` publications of this sender.
    pub(crate) fn close(&mut self, receiver: usize, sender: usize, sent: u32) {
        let index = receiver * self.senders + sender;
        if let Some(track) = self.tracks.get(index) {
            self.faults.lost += u64::from(sent.saturating_sub(track.next.max(track.base)));
        }
        self.faults.lost += skipped(self.missing.remove(&index));
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults
    }

    /// Adds the counts of another thread's ledger.
    pub(crate) fn add_faults(&mut self, other: Faults) {
        self.faults.lost += other.lost;
        self.faults.duplicated += other.duplicated;
        self.faults.reordered += other.reordered;
    }
}

/// Takes one sequence out of the ranges; false if it is in none.
fn take_out(missing: &mut Vec<Range<u32>>, sequence: u32) -> bool {
    let Some(at) = missing.iter().position(|range| range.contains(&sequence)) else { return false };
    let range = missing.swap_remove(at);
    missing.extend([range.start..sequence, sequence + 1..range.end].into_iter().filter(|range| !range.is_empty()));
    true
}

fn skipped(missing: Option<Vec<Range<u32>>>) -> u64 {
    missing.unwrap_or_default().iter().map(|range| range.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of one receiver that joined after `base` and got `sequences` of `sent`.
    fn faults(base: u32, sequences: &[u32], sent: u32) -> (u64, u64, u64) {
        let mut ledger = Ledger::new(2, 3);
        ledger.join(1, 2, base);
        for sequence in sequences {
            ledger.on_received(1, 2, *sequence);
        }
        ledger.close(1, 2, sent);
        let Faults { lost, duplicated, reordered } = ledger.faults();
        (lost, duplicated, reordered)
    }

    #[test]
    fn what_is_complete_and_in_order_is_clean() {
        assert_eq!(faults(0, &[0, 1, 2, 3], 4), (0, 0, 0));
        assert_eq!(faults(0, &[], 0), (0, 0, 0));
    }

    #[test]
    fn a_loss_is_counted_at_the_start_in_the_middle_and_at_the_end() {
        assert_eq!(faults(0, &[1, 2, 3], 4), (1, 0, 0));
        assert_eq!(faults(0, &[0, 3], 4), (2, 0, 0));
        assert_eq!(faults(0, &[0, 1], 4), (2, 0, 0));
        assert_eq!(faults(0, &[], 4), (4, 0, 0));
    }

    #[test]
    fn a_duplicate_is_counted_whenever_it_comes() {
        assert_eq!(faults(0, &[0, 0, 1, 2, 3], 4), (0, 1, 0));
        assert_eq!(faults(0, &[0, 1, 2, 3, 1, 1], 4), (0, 2, 0));
        assert_eq!(faults(0, &[0, 2, 1, 1, 3], 4), (0, 1, 1));
    }

    #[test]
    fn a_late_one_is_reordered_and_not_lost() {
        assert_eq!(faults(0, &[1, 0, 2, 3], 4), (0, 0, 1));
        assert_eq!(faults(0, &[0, 3, 2, 1], 4), (0, 0, 2));
        assert_eq!(faults(0, &[3, 1], 4), (2, 0, 1));
    }

    #[test]
    fn what_was_on_its_way_when_a_receiver_joined_may_come_or_not() {
        assert_eq!(faults(5, &[5, 6], 7), (0, 0, 0));
        assert_eq!(faults(5, &[3, 4, 5, 6], 7), (0, 0, 0));
        assert_eq!(faults(5, &[3, 5, 6], 7), (1, 0, 0), "once it hears, it hears all");
        assert_eq!(faults(5, &[6], 7), (1, 0, 0));
        assert_eq!(faults(5, &[], 7), (2, 0, 0));
        assert_eq!(faults(5, &[3], 5), (0, 0, 0));
    }

    #[test]
    fn who_leaves_is_owed_nothing_more_but_what_was_skipped() {
        let mut ledger = Ledger::new(1, 1);
        ledger.join(0, 0, 0);
        assert_eq!(ledger.on_received(0, 0, 1), Verdict::Awaited);
        assert!(ledger.is_owed(0, 0, 2) && !ledger.is_owed(0, 0, 1));
        ledger.leave(0, 0);
        ledger.join(0, 0, 10);
        assert_eq!(ledger.on_received(0, 0, 9), Verdict::Early);
        assert_eq!(ledger.on_received(0, 0, 10), Verdict::Awaited);
        assert_eq!(ledger.on_received(0, 0, 10), Verdict::Duplicate);
        ledger.close(0, 0, 11);
        assert_eq!(ledger.faults(), Faults { lost: 1, duplicated: 1, reordered: 0 });
    }

    #[test]
    fn who_shows_a_position_is_owed_exactly_what_is_behind_it() {
        let faults = |sequences: &[u32]| {
            let mut ledger = Ledger::new(1, 1);
            ledger.resume(0, 0, 1);
            for sequence in sequences {
                ledger.on_received(0, 0, *sequence);
            }
            let whole = ledger.is_whole(0, 0, 4);
            ledger.close(0, 0, 4);
            let Faults { lost, duplicated, reordered } = ledger.faults();
            (whole, lost, duplicated, reordered)
        };
        assert_eq!(faults(&[1, 2, 3]), (true, 0, 0, 0));
        assert_eq!(faults(&[1, 2]), (false, 1, 0, 0));
        assert_eq!(faults(&[0, 1, 2, 3]), (true, 0, 1, 0), "the one at its position is not owed");
        assert_eq!(faults(&[3, 1]), (false, 1, 0, 1));
        assert_eq!(faults(&[1, 3, 2]), (true, 0, 0, 1));
    }

    #[test]
    fn what_comes_at_once_is_noted_only_if_it_is_owed_next() {
        let mut ledger = Ledger::new(1, 1);
        ledger.join(0, 0, 5);
        assert!(!ledger.on_successive(0, 0, 4, 2), "the first is early");
        assert!(!ledger.on_successive(0, 0, 6, 2), "one is skipped");
        assert!(ledger.on_successive(0, 0, 5, 3));
        assert!(!ledger.on_successive(0, 0, 5, 3), "again");
        assert_eq!(ledger.on_received(0, 0, 8), Verdict::Awaited);
        ledger.close(0, 0, 9);
        assert!(ledger.faults().is_clean());
    }

    #[test]
    fn tracks_do_not_mix() {
        let mut ledger = Ledger::new(2, 2);
        for (receiver, sender) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            ledger.on_received(receiver, sender, 0);
            ledger.close(receiver, sender, 1);
        }
        assert!(ledger.faults().is_clean());
    }
}
