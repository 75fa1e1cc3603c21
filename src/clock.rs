//! A worker's clock, in milliseconds: small, and portable as durations.
//!
//! Time in which the thread does not run (SIGSTOP, a paused virtual machine, a debugger) does not count: the worker
//! receives nothing meanwhile, so no deadline of the clock may pass. May not enter: sessions' timers
//! (`worker/wheel.rs`).

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

/// An instant or a span on a worker's clock.
pub(crate) type Millis = u64;

/// The clock's time when a worker starts: a day, so that the clock can express times in a previous process.
pub(crate) const START: Millis = 86_400_000;

/// If a timer fires this late, its process was stopped. Chosen: far above a worker's turn, and below the shortest
/// deadlines.
const STOPPED: Duration = Duration::from_millis(500);

/// Extension of a deadline that passed while the process was stopped, to read the bytes that came meanwhile.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// A duration on a worker's clock.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// A worker's clock. The worker must read it more than twice a second; the worker's ticks do.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    read_at: Cell<Instant>,
    /// Time in which the thread did not run.
    stopped: Cell<Duration>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { started: now, read_at: Cell::new(now), stopped: Cell::new(Duration::ZERO) }
    }

    /// The clock's time.
    pub(crate) fn now(&self) -> Millis {
        let now = Instant::now();
        let pause = now - self.read_at.replace(now);
        if pause >= STOPPED {
            tracing::debug!(
                pause_ms = millis(pause),
                "the worker was not running for {pause:.1?}: that time counts against no deadline"
            );
            self.stopped.set(self.stopped.get() + pause);
        }
        START + millis((now - self.started).saturating_sub(self.stopped.get()))
    }
}

/// As tokio's `timeout_at`, but time in which the process was stopped does not count against `future`: a deadline
/// that passed long ago is extended once.
///
/// # Errors
/// When `future` is not ready by `deadline`.
pub(crate) async fn timeout_at<F: Future>(
    mut deadline: Instant,
    future: F,
) -> Result<F::Output, tokio::time::error::Elapsed> {
    let mut future = pin!(future);
    // One that is over before the wait begins was not missed by being stopped in it.
    if deadline > Instant::now() {
        match tokio::time::timeout_at(deadline, &mut future).await {
            Err(_) if was_stopped_at(deadline, Instant::now()) => deadline = Instant::now() + GRACE,
            done => return done,
        }
    }
    tokio::time::timeout_at(deadline, future).await
}

/// Whether the process was stopped when the timer for the past `deadline` should have fired, which is noticed `now`.
pub(crate) fn was_stopped_at(deadline: Instant, now: Instant) -> bool {
    now.saturating_duration_since(deadline) >= STOPPED
}

/// A deadline of a state machine, with the patience of [`timeout_at`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    at: Instant,
    is_extended: bool,
}

impl Deadline {
    /// `limit` after `now`.
    pub(crate) fn after(limit: Duration, now: Instant) -> Self {
        Self { at: now + limit, is_extended: false }
    }

    /// When to look at it.
    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// Whether it has passed. One that passed while the process was stopped is extended once.
    pub(crate) fn has_passed(&mut self, now: Instant) -> bool {
        if now < self.at {
            return false;
        }
        if !self.is_extended && was_stopped_at(self.at, now) {
            *self = Self { at: now + GRACE, is_extended: true };
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_thread_did_not_run_does_not_count() {
        let clock = Clock::new();
        for _ in 0..10 {
            tokio::time::advance(Duration::from_millis(100)).await;
            clock.now();
        }
        assert_eq!(clock.now(), START + 1_000);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(clock.now(), START + 1_000);
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(clock.now(), START + 1_100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_in_time_but_not_while_the_process_is_stopped() {
        let begun = Instant::now();
        let limit = || Instant::now() + Duration::from_secs(2);
        assert!(timeout_at(limit(), std::future::pending::<()>()).await.is_err());
        assert!(begun.elapsed() < Duration::from_secs(2) + STOPPED);
        // The timer fires 58 s late: the answer that comes within the extension is in time.
        let answer = tokio::time::sleep(Duration::from_secs(60) + GRACE / 2);
        let waiting = tokio::spawn(timeout_at(limit(), answer));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(waiting.await.unwrap().is_ok());
        // One that was over before is not put off.
        let late = timeout_at(Instant::now() - Duration::from_secs(60), tokio::time::sleep(GRACE / 2));
        assert!(late.await.is_err());
    }

    #[test]
    fn a_state_machines_deadline_has_the_same_patience() {
        let now = Instant::now();
        let limit = Duration::from_secs(2);
        let mut deadline = Deadline::after(limit, now);
        assert!(!deadline.has_passed(now) && deadline.has_passed(now + limit));
        let late = now + 10 * limit;
        assert!(!deadline.has_passed(late) && deadline.at() == late + GRACE);
        assert!(deadline.has_passed(late + 10 * GRACE), "once");
    }
}
