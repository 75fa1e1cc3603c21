//! What a command waits for before it is answered, and until when.
//!
//! May not enter: whether what it waits for has come (`answer.rs`).

use std::time::Duration;

use tokio::time::Instant;

use super::command::Answer;
use super::core::Confirmation;
use crate::broker::{Marking, Seal};
use crate::clock;

/// A command that is not answered yet.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) until: Until,
    pub(super) deadline: Instant,
    /// The time that the deadline was made of.
    pub(super) within: Duration,
    pub(super) tell: Answer,
}

/// What a command waits for.
#[derive(Debug)]
pub(super) enum Until {
    /// The links to the broker are made.
    Connected,
    /// The links are there, and the marker can be set; then until it is.
    MarkerPossible { name: String, seal: Option<Seal> },
    /// The marker has come so far.
    Marker(Marking),
    /// No connection is left that is to be answered.
    HandshakesFinished,
    /// The broker has answered for the messages that it has.
    Answered,
    /// The subscriptions are confirmed.
    Subscribed(Vec<Confirmation>),
}

impl Wait {
    pub(super) fn new(until: Until, within: Duration, tell: Answer) -> Self {
        Self { until, deadline: Instant::now() + within, within, tell }
    }

    /// Whether its time is up. Time in which the process was stopped does not count.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        if now >= self.deadline && clock::was_stopped_at(self.deadline, now) {
            self.deadline = now + clock::GRACE;
        }
        now >= self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_over_at_its_deadline_but_not_while_the_process_was_stopped() {
        let (tell, _told) = oneshot::channel();
        let mut wait = Wait::new(Until::Connected, Duration::from_secs(2), tell);
        let start = Instant::now();
        tokio::time::advance(Duration::from_millis(1_999)).await;
        assert!(!wait.is_over(Instant::now()));
        tokio::time::advance(Duration::from_millis(101)).await;
        assert!(wait.is_over(Instant::now()));
        let (tell, _told) = oneshot::channel();
        let mut stopped = Wait::new(Until::Connected, Duration::from_secs(2), tell);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!stopped.is_over(Instant::now()), "nothing was looked at for {:?}", start.elapsed());
        tokio::time::advance(clock::GRACE).await;
        assert!(stopped.is_over(Instant::now()));
    }
}
