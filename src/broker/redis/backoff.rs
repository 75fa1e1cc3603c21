//! A link that is down: when the next attempt to connect is due. May not enter: what is attempted.

use std::time::Duration;

use tokio::time::Instant;

/// The pause before the first attempt to connect again.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// A link that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Down {
    /// The next attempt is due then.
    Waiting { until: Instant },
    /// An attempt is under way.
    Connecting,
}

impl Down {
    /// Begins an attempt, if one is due; returns whether it has begun.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let is_due = matches!(*self, Self::Waiting { until } if until <= now);
        if is_due {
            *self = Self::Connecting;
        }
        is_due
    }

    /// When the next attempt is due; none while one is under way.
    pub(super) fn next_at(&self) -> Option<Instant> {
        match *self {
            Self::Waiting { until } => Some(until),
            Self::Connecting => None,
        }
    }
}

/// Pauses between attempts. They double up to a limit, and each is cut by up to a half at random, so that many workers
/// and nodes do not connect at the same instant.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(super) fn new(max: Duration) -> Self {
        Self { next: FIRST_DELAY.min(max), max }
    }

    /// A link works: the next pause is a short one.
    pub(super) fn reset(&mut self) {
        self.next = FIRST_DELAY.min(self.max);
    }

    /// An attempt or a link has failed `now`: the next attempt is due after a pause.
    pub(super) fn pause(&mut self, now: Instant) -> Down {
        let pause = self.next.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.next = (self.next * 2).min(self.max);
        Down::Waiting { until: now + pause }
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
            let mut down = backoff.pause(now);
            let until = down.next_at().unwrap();
            let paused = (until - now).as_millis();
            assert!((longest / 2..=longest).contains(&paused), "{paused} of {longest}");
            assert_eq!(
                [now, until, until].map(|at| down.begin(at)),
                [false, true, false],
                "one attempt, after the pause"
            );
        }
        backoff.reset();
        assert_eq!(backoff.next, FIRST_DELAY);
    }
}
