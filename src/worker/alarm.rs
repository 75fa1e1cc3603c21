//! The one timer of a worker's loop, set to the earliest deadline. tokio's timers tick once a millisecond. May not
//! enter: what is due.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// A timer that is set many times.
#[derive(Debug)]
pub(super) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// The instant that it is set to; `None` when the timer has fired or is not needed.
    at: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(std::time::Duration::ZERO)), at: None }
    }

    /// Ready at `at` or later; never ready when `at` is `None`.
    pub(super) fn poll_at(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        if self.at != at {
            self.at = at;
            if let Some(at) = at {
                self.sleep.as_mut().reset(at);
            }
        }
        if self.at.is_none() {
            return Poll::Pending;
        }
        let polled = self.sleep.as_mut().poll(cx);
        if polled.is_ready() {
            self.at = None;
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_what_it_was_set_to_last() {
        let start = Instant::now();
        let mut alarm = Alarm::new();
        let late = Some(start + Duration::from_secs(5));
        let mut is_first = true;
        poll_fn(|cx| {
            if std::mem::take(&mut is_first) {
                assert!(alarm.poll_at(None, cx).is_pending());
                assert!(alarm.poll_at(late, cx).is_pending());
            }
            alarm.poll_at(Some(start + Duration::from_secs(1)), cx)
        })
        .await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        poll_fn(|cx| alarm.poll_at(late, cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }
}
