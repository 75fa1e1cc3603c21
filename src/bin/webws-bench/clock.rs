//! The benchmark's time: monotonic, in microseconds since its start.
//!
//! Senders and receivers are in one process, so the two ends of a latency share a clock. May not enter: the time of
//! day.

use std::time::{Duration, Instant};

/// Microseconds since the start of this process' clock.
pub(crate) type Micros = u64;

/// The one clock of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn micros(self) -> Micros {
        to_micros(self.0.elapsed())
    }
}

/// A duration in microseconds.
pub(crate) fn to_micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// The whole part of a figure that is not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is what is wanted")]
pub(crate) fn whole(figure: f64) -> u64 {
    figure as u64
}

/// Microseconds as seconds.
pub(crate) fn seconds(micros: Micros) -> f64 {
    micros as f64 / 1e6
}
