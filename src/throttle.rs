//! Keeps a log line that could repeat per connection or publication to a bearable rate. May not enter: counts of what
//! was not logged (`notice.rs`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets one event through per period. For `static`s, so it never changes after `const` creation.
#[derive(Debug)]
pub(crate) struct Throttle {
    period: Duration,
    started: OnceLock<Instant>,
    /// Milliseconds after `started` from which the next event passes.
    next: AtomicU64,
}

impl Throttle {
    pub(crate) const fn per_minute() -> Self {
        Self { period: Duration::from_secs(60), started: OnceLock::new(), next: AtomicU64::new(0) }
    }

    /// Whether this event passes.
    pub(crate) fn allows(&self) -> bool {
        let now = millis(self.started.get_or_init(Instant::now).elapsed());
        let next = self.next.load(Ordering::Relaxed);
        now >= next
            && self.next.compare_exchange(next, now + millis(self.period), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_passes_per_period() {
        let throttle = Throttle::per_minute();
        assert!(throttle.allows());
        assert!(!throttle.allows());
    }
}
