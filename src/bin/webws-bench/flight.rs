//! Publications under way: the number of receivers that each has not reached.
//!
//! A closed loop sends the next publication when one has reached all receivers. The publisher opens a slot for each
//! publication, and the load threads count its arrivals down. Each publication carries its number, so that a late
//! arrival of an earlier publication in the same slot does not count. May not enter: time, sockets.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most publications in flight.
pub(crate) const MAX_IN_FLIGHT: u32 = 1 << 16;

/// The number of a publication without a slot, as in an open loop.
pub(crate) const UNTRACKED: u32 = u32::MAX;

/// The publications of one publisher.
#[derive(Debug)]
pub(crate) struct Flight {
    publisher: u8,
    slots: Vec<Slot>,
    /// Publications that landed, and that the publisher has not taken.
    landed: AtomicU32,
}

#[derive(Debug, Default)]
struct Slot {
    /// The number; in the lower half, the receivers that the publication has not reached.
    state: AtomicU64,
    /// The sender and the sequence.
    key: AtomicU64,
}

/// A publication that waits for receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) number: u32,
    pub(crate) sender: u32,
    pub(crate) sequence: u32,
}

impl Flight {
    /// For a publisher that keeps `window` publications in flight.
    pub(crate) fn new(publisher: u8, window: u32) -> Self {
        // Four times as many slots, so that a free one is found at once although publications land out of order.
        let slots = window.clamp(1, MAX_IN_FLIGHT).next_power_of_two() as usize * 4;
        Self { publisher, slots: (0..slots).map(|_| Slot::default()).collect(), landed: AtomicU32::new(0) }
    }

    /// Opens a slot for the publication and returns its number; `counter` is the publisher's.
    pub(crate) fn open(&self, counter: &mut u32, sender: u32, sequence: u32, receivers: u32) -> u32 {
        // The window is smaller than the ring, so this ends.
        loop {
            let number = u32::from(self.publisher) << 24 | *counter & 0x00ff_ffff;
            *counter = counter.wrapping_add(1);
            if let Some(slot) = self.slot(number)
                && half(slot.state.load(Ordering::Relaxed)) == 0
            {
                slot.key.store(u64::from(sender) << 32 | u64::from(sequence), Ordering::Relaxed);
                slot.state.store(u64::from(number) << 32 | u64::from(receivers), Ordering::Release);
                return number;
            }
        }
    }

    /// `count` receivers got publication `number`; true when it has reached all.
    pub(crate) fn on_landed(&self, number: u32, count: u32) -> bool {
        let Some(slot) = self.slot(number) else { return false };
        let update = slot.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let left = half(state);
            (half(state >> 32) == number && left > 0).then(|| state - u64::from(left.min(count)))
        });
        let done = update.is_ok_and(|before| half(before) <= count);
        if done {
            self.landed.fetch_add(1, Ordering::Release);
        }
        done
    }

    /// The number of publications that landed since the last call.
    pub(crate) fn take_landed(&self) -> u32 {
        self.landed.swap(0, Ordering::AcqRel)
    }

    /// Whether publication `number` has not reached all receivers.
    pub(crate) fn is_waiting(&self, number: u32) -> bool {
        let state = self.slot(number).map_or(0, |slot| slot.state.load(Ordering::Acquire));
        half(state >> 32) == number && half(state) > 0
    }

    /// The publications that have not reached all receivers.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Waiting> {
        self.slots.iter().filter_map(|slot| {
            let state = slot.state.load(Ordering::Acquire);
            let key = slot.key.load(Ordering::Relaxed);
            (half(state) > 0).then(|| Waiting {
                number: half(state >> 32),
                sender: half(key >> 32),
                sequence: half(key),
            })
        })
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        // A power of two, and at most 2^18 of the counter's 2^24.
        self.slots.get(number as usize & 0x00ff_ffff & (self.slots.len() - 1))
    }
}

/// The publisher of a publication's number.
pub(crate) fn publisher(number: u32) -> usize {
    (number >> 24) as usize
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn half(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_has_landed_when_the_last_receiver_got_it() {
        let flight = Flight::new(3, 1);
        let mut counter = 0;
        let number = flight.open(&mut counter, 7, 9, 3);
        assert_eq!(publisher(number), 3);
        assert!(!flight.on_landed(number, 2));
        assert_eq!(flight.waiting().collect::<Vec<_>>(), [Waiting { number, sender: 7, sequence: 9 }]);
        assert!(flight.on_landed(number, 1));
        assert!(!flight.on_landed(number, 1), "no receiver is left");
        assert_eq!((flight.take_landed(), flight.take_landed()), (1, 0));
    }

    #[test]
    fn a_straggler_does_not_count_for_the_next_one_in_its_slot() {
        let flight = Flight::new(0, 1);
        let mut counter = 0;
        let first = flight.open(&mut counter, 0, 0, 1);
        assert!(flight.on_landed(first, 1));
        let others: Vec<_> = (0..4).map(|sequence| flight.open(&mut counter, 0, sequence, 1)).collect();
        assert!(!others.contains(&first));
        assert!(!flight.on_landed(first, 1));
        assert_eq!(flight.waiting().count(), 4);
    }

    #[test]
    fn an_occupied_slot_is_passed_over() {
        let flight = Flight::new(0, 1);
        let mut counter = 0;
        let slow = flight.open(&mut counter, 0, 0, 1);
        for sequence in 1..20 {
            let number = flight.open(&mut counter, 0, sequence, 1);
            assert!(flight.on_landed(number, 1));
        }
        assert_eq!(flight.waiting().map(|waiting| waiting.number).collect::<Vec<_>>(), [slow]);
    }
}
