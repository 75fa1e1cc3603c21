//! A worker's timers: buckets of 100 ms, one tick for all sessions.
//!
//! A session is due at one instant, which it knows itself; an entry of the wheel whose
//! session has another instant by now is stale and dropped when its bucket comes round.
//! Silence, deadlines and pings therefore cost nothing while bytes flow.

use std::time::Duration;

use crate::clock::Millis;
use crate::id::SessionKey;

/// How late a timer may fire. Chosen: a ping every 5.0 to 5.1 s; ten wake-ups a second
/// are not visible.
pub(crate) const TICK: Duration = Duration::from_millis(100);
const TICK_MILLIS: Millis = 100;

/// Buckets in the wheel: 51.2 s. What is due later comes round more than once.
const BUCKETS: usize = 512;

/// The timer wheel of a worker.
#[derive(Debug)]
pub(crate) struct Wheel {
    buckets: Vec<Vec<(SessionKey, Millis)>>,
    /// The tick that was handled last.
    tick: u64,
}

impl Wheel {
    pub(crate) fn new(now: Millis) -> Self {
        Self { buckets: std::iter::repeat_with(Vec::new).take(BUCKETS).collect(), tick: now / TICK_MILLIS }
    }

    /// Makes `key` due at `due`.
    pub(crate) fn schedule(&mut self, key: SessionKey, due: Millis) {
        let tick = due.div_ceil(TICK_MILLIS).max(self.tick + 1).min(self.tick + BUCKETS as u64);
        if let Some(bucket) = self.buckets.get_mut(slot(tick)) {
            bucket.push((key, due));
        }
    }

    /// The sessions that are due at `now`, with the instant each was scheduled for.
    pub(crate) fn advance(&mut self, now: Millis) -> Vec<(SessionKey, Millis)> {
        let mut due = Vec::new();
        while self.tick < now / TICK_MILLIS {
            self.tick += 1;
            // Taken whole: a bucket that was full once must not keep its memory.
            let bucket = self.buckets.get_mut(slot(self.tick)).map(std::mem::take).unwrap_or_default();
            for (key, at) in bucket {
                if at > now { self.schedule(key, at) } else { due.push((key, at)) }
            }
        }
        due
    }
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(wheel: &mut Wheel, now: Millis) -> Vec<Millis> {
        wheel.advance(now).into_iter().map(|(_, at)| at).collect()
    }

    #[test]
    fn nothing_fires_early_and_nothing_later_than_a_tick() {
        let mut wheel = Wheel::new(0);
        for due in [1, 99, 100, 101, 5_000, 51_200, 400_000] {
            wheel.schedule(SessionKey::default(), due);
        }
        assert_eq!(fired(&mut wheel, 99), [0; 0]);
        assert_eq!(fired(&mut wheel, 100), [1, 99, 100]);
        assert_eq!(fired(&mut wheel, 200), [101]);
        assert_eq!(fired(&mut wheel, 51_199), [5_000]);
        assert_eq!(fired(&mut wheel, 51_200), [51_200]);
        assert_eq!(fired(&mut wheel, 399_999), [0; 0]);
        assert_eq!(fired(&mut wheel, 400_000), [400_000]);
    }

    #[test]
    fn the_past_fires_with_the_next_tick() {
        let mut wheel = Wheel::new(0);
        assert_eq!(fired(&mut wheel, 1_000), [0; 0]);
        wheel.schedule(SessionKey::default(), 5);
        assert_eq!(fired(&mut wheel, 1_100), [5]);
    }
}
