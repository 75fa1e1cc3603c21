//! What a command waits for, and until when.
//!
//! May not enter: the check whether the wait has ended (`answer.rs`).

use std::time::Duration;

use tokio::time::Instant;

use super::command::Answer;
use super::core::Confirmation;
use crate::broker::{Marking, Seal};
use crate::clock::Deadline;
use crate::position::MilestoneId;

/// A command without an answer yet.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) until: Until,
    /// The length of the deadline.
    pub(super) within: Duration,
    deadline: Deadline,
    pub(super) tell: Answer,
}

/// What a command waits for.
#[derive(Debug)]
pub(super) enum Until {
    /// The links to the broker are made.
    Connected,
    /// The links are made and the marker can be set; afterwards, the marker is set.
    MarkerPossible { name: String, seal: Option<Seal> },
    /// The marker has made this progress.
    Marker(Marking),
    /// No connection is in its handshake.
    HandshakesFinished,
    /// The broker has answered for all messages that it took.
    Answered,
    /// A milestone is heard.
    Heard(MilestoneId),
    /// The subscriptions are confirmed.
    Subscribed(Vec<Confirmation>),
}

impl Wait {
    pub(super) fn new(until: Until, within: Duration, tell: Answer) -> Self {
        Self { until, within, deadline: Deadline::after(within, Instant::now()), tell }
    }

    /// Starts the deadline once more.
    pub(super) fn restart(&mut self) {
        self.deadline = Deadline::after(self.within, Instant::now());
    }

    /// Whether the deadline has passed. Time in which the process was stopped does not count.
    pub(super) fn is_over(&mut self) -> bool {
        self.deadline.has_passed(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_over_at_its_deadline_and_can_be_given_its_time_again() {
        let (tell, _told) = oneshot::channel();
        let mut wait = Wait::new(Until::Connected, Duration::from_secs(2), tell);
        tokio::time::advance(Duration::from_millis(1_999)).await;
        assert!(!wait.is_over());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(wait.is_over());
        wait.restart();
        assert!(!wait.is_over());
        tokio::time::advance(Duration::from_millis(2_100)).await;
        assert!(wait.is_over());
    }
}
