//! Sessions that are closed spread over a time, in random order: clients that are closed at one instant would connect
//! again at one instant.
//!
//! May not enter: why the sessions are closed.

use std::time::Duration;

use tokio::time::Instant;

use crate::id::SessionKey;

/// The time between two groups of sessions.
pub(super) const SPREAD_STEP: Duration = Duration::from_millis(10);

/// Sessions in random order, spread over a time.
#[derive(Debug)]
pub(super) struct Spread {
    waiting: Vec<SessionKey>,
    total: usize,
    start: Instant,
    time: Duration,
}

impl Spread {
    /// Spreads `sessions` over `time`.
    pub(super) fn over(time: Duration, mut sessions: Vec<SessionKey>, start: Instant) -> Self {
        fastrand::shuffle(&mut sessions);
        Self { total: sessions.len(), waiting: sessions, start, time }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes the sessions that are due at `now`. Sessions that are `held` keep their place.
    pub(super) fn take_due(&mut self, now: Instant, mut is_held: impl FnMut(SessionKey) -> bool) -> Vec<SessionKey> {
        let due_by_now = share_of(self.total, now.saturating_duration_since(self.start), self.time);
        let mut count = due_by_now.saturating_sub(self.total - self.waiting.len());
        let mut due = Vec::new();
        let mut place = self.waiting.len();
        while let Some(key) = place.checked_sub(1).filter(|_| count > 0).and_then(|place| self.waiting.get(place)) {
            place -= 1;
            if !is_held(*key) {
                due.push(self.waiting.swap_remove(place));
                count -= 1;
            }
        }
        due
    }
}

/// How many of `total` are due after `elapsed`: evenly over `time`, and at least one.
fn share_of(total: usize, elapsed: Duration, time: Duration) -> usize {
    let share = elapsed.as_secs_f64() / time.as_secs_f64().max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to total, or more")]
    let count = (share * total as f64) as usize;
    count.saturating_add(1).min(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<SessionKey> {
        (0..count).map(|index| SessionKey { index, generation: 1 }).collect()
    }

    #[test]
    fn turns_come_evenly_and_each_once() {
        let start = Instant::now();
        let mut spread = Spread::over(Duration::from_secs(10), keys(1_000), start);
        let mut seen = Vec::new();
        for second in 0..=10 {
            seen.extend(spread.take_due(start + Duration::from_secs(second), |_| false));
            assert!(seen.len().abs_diff(usize::try_from(second).unwrap() * 100) <= 1, "{} at {second}", seen.len());
        }
        assert!(spread.is_empty());
        seen.sort_unstable_by_key(|key| key.index);
        assert_eq!(seen, keys(1_000));
    }

    #[test]
    fn the_held_keep_their_place_and_the_others_have_their_turn() {
        let start = Instant::now();
        let mut spread = Spread::over(Duration::from_secs(1), keys(10), start);
        let end = start + Duration::from_secs(1);
        assert_eq!(spread.take_due(end, |key| key.index < 4).len(), 6);
        assert!(spread.take_due(end, |key| key.index < 4).is_empty() && !spread.is_empty());
        assert_eq!(spread.take_due(end, |_| false).len(), 4);
        assert!(spread.is_empty());
    }

    #[test]
    fn no_time_is_no_spread() {
        let start = Instant::now();
        let mut spread = Spread::over(Duration::ZERO, keys(5), start);
        assert_eq!(spread.take_due(start, |_| false).len(), 1);
        assert_eq!(spread.take_due(start + SPREAD_STEP, |_| false).len(), 4);
        assert!(Spread::over(Duration::ZERO, Vec::new(), start).is_empty());
    }
}
