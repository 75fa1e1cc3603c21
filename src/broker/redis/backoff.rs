//! The pauses between attempts to make a link. May not enter: what is attempted.

use std::time::Duration;

use tokio::time::Instant;

/// The pause before the first attempt to connect again.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// Pauses that double up to a limit, each cut by up to a half at random, so that many
/// workers and nodes do not come back at the same instant.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(super) fn new(max: Duration) -> Self {
        Self { next: FIRST_DELAY.min(max), max }
    }

    /// A link was made and worked: the next pause is a short one.
    pub(super) fn reset(&mut self) {
        self.next = FIRST_DELAY.min(self.max);
    }

    /// The end of the pause that begins `now`.
    pub(super) fn pause(&mut self, now: Instant) -> Instant {
        let pause = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.max);
        now + pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(400));
        let now = Instant::now();
        for longest in [50, 100, 200, 400, 400] {
            let paused = (backoff.pause(now) - now).as_millis();
            assert!((longest / 2..=longest).contains(&paused), "{paused} of {longest}");
        }
        backoff.reset();
        assert_eq!(backoff.next, FIRST_DELAY);
    }
}
