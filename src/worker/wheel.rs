//! A worker's timers: buckets of 100 ms, one tick for all sessions.
//!
//! Each session knows its own deadline. A wheel entry with another instant is stale, and dropped when its bucket is
//! reached. So silence, deadlines and pings cost nothing while bytes flow. May not enter: what is due.

use std::time::Duration;

use crate::clock::Millis;
use crate::id::SessionKey;

/// How late a timer may fire. Chosen: a ping every 5.0 to 5.1 s; ten wake-ups a second are not visible.
pub(crate) const TICK: Duration = Duration::from_millis(100);
const TICK_MILLIS: Millis = 100;

/// Buckets in the wheel: 51.2 s. An entry with a later deadline passes several times.
const BUCKETS: usize = 512;

/// The timer wheel of a worker.
#[derive(Debug)]
pub(crate) struct Wheel {
    buckets: Vec<Vec<(SessionKey, Millis)>>,
    /// The last tick that was handled.
    tick: u64,
}

impl Wheel {
    pub(crate) fn new(now: Millis) -> Self {
        Self { buckets: std::iter::repeat_with(Vec::new).take(BUCKETS).collect(), tick: now / TICK_MILLIS }
    }

    /// Schedules `key` for `due`.
    pub(crate) fn schedule(&mut self, key: SessionKey, due: Millis) {
        let tick = due.div_ceil(TICK_MILLIS).max(self.tick + 1).min(self.tick + BUCKETS as u64);
        if let Some(bucket) = self.buckets.get_mut(slot(tick)) {
            bucket.push((key, due));
        }
    }

    /// Takes the sessions that are due at `now`, each with its scheduled instant.
    pub(crate) fn advance(&mut self, now: Millis) -> Vec<(SessionKey, Millis)> {
        let mut due = Vec::new();
        while self.tick < now / TICK_MILLIS {
            self.tick += 1;
            // The bucket is taken whole: a bucket that was full once must not keep its memory.
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
