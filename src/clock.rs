//! A worker's clock, in milliseconds since the worker started: small, and portable as durations.

use std::time::Duration;

/// An instant or a span on a worker's clock.
pub(crate) type Millis = u64;

/// A duration on a worker's clock.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
