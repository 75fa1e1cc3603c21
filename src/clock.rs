//! A worker's clock, in milliseconds: small, and portable as durations.

use std::time::Duration;

/// An instant or a span on a worker's clock.
pub(crate) type Millis = u64;

/// What the clock shows when a worker starts: a day, so that what another process began before can be
/// told in it.
pub(crate) const START: Millis = 86_400_000;

/// A duration on a worker's clock.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
