//! Commands are answered when what they wait for has come, or their time is up.
//!
//! Looked at in each turn of the worker, and at least with each tick. May not enter: commands that are answered at once.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::core::Confirmation;
use super::state::Worker;
use super::wait::{Until, Wait};
use crate::broker::{Marking, Request};

const MARKER_LOST: &str = "a link to Redis or some of its subscriptions were lost meanwhile, or its user may not use \
                           the channels webws:probe:* (ACL: &webws:probe:*): try again later";

impl Worker {
    /// Answers the commands whose wait has ended.
    pub(super) fn poll_waits(&mut self, cx: &mut Context<'_>) {
        for mut wait in std::mem::take(&mut self.waits) {
            match self.poll_wait(&mut wait, cx) {
                // An asker that has gone needs no answer.
                Poll::Ready(result) => drop(wait.tell.send(result)),
                Poll::Pending => self.waits.push(wait),
            }
        }
    }

    fn poll_wait(&mut self, wait: &mut Wait, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        if matches!(wait.until, Until::MarkerPossible { .. })
            && self.broker.link_fault().is_none()
            && let Until::MarkerPossible { name, seal } =
                std::mem::replace(&mut wait.until, Until::Marker(Marking::Set))
        {
            self.broker.request(Request::SetMarker { name, seal });
            wait.deadline = Instant::now() + wait.within;
        }
        match self.outcome(&mut wait.until, cx) {
            Some(outcome) => Poll::Ready(outcome),
            None if wait.is_over(Instant::now()) => Poll::Ready(self.give_up(wait)),
            None => Poll::Pending,
        }
    }

    /// What came of it, when that is known.
    fn outcome(&self, until: &mut Until, cx: &mut Context<'_>) -> Option<Result<(), String>> {
        match until {
            Until::Connected => self.broker.link_fault().is_none().then_some(Ok(())),
            Until::MarkerPossible { .. } => None,
            Until::Marker(expected) => match self.broker.marking() {
                Marking::Lost => Some(Err(MARKER_LOST.to_owned())),
                Marking::Reached => Some(self.tells_no_gap()),
                marking => (marking >= *expected).then_some(Ok(())),
            },
            Until::HandshakesFinished => (self.handshakes.count() == 0).then_some(Ok(())),
            Until::Answered => (!self.core.outbox.has_in_flight()).then(|| self.tells_no_gap()),
            Until::Subscribed(confirmations) => poll_all(confirmations, cx),
        }
    }

    /// What is answered when the time is up.
    fn give_up(&self, wait: &Wait) -> Result<(), String> {
        let within = wait.within;
        match &wait.until {
            Until::Connected | Until::MarkerPossible { .. } => self.broker.link_fault().map_or(Ok(()), Err),
            Until::Marker(_) => Err(format!("Redis did not come to the marker within {within:?}")),
            // A connection that says nothing does not keep the hand-over waiting.
            Until::HandshakesFinished => Ok(()),
            Until::Answered => Err("the broker does not answer for messages that it has: try again later".to_owned()),
            Until::Subscribed(_) => {
                let why = self.broker.fault().unwrap_or_else(|| "no confirmation came".to_owned());
                Err(format!("not all channels could be subscribed within {within:?}: {why}"))
            }
        }
    }

    /// Only the process that knows of a gap can tell its clients.
    fn tells_no_gap(&self) -> Result<(), String> {
        match self.gaps.is_empty() {
            true => Ok(()),
            false => Err("clients are being told of a gap: try again later".to_owned()),
        }
    }
}

/// What came of all `confirmations`, when all have come or one is a refusal.
fn poll_all(confirmations: &mut Vec<Confirmation>, cx: &mut Context<'_>) -> Option<Result<(), String>> {
    while let Some(next) = confirmations.last_mut() {
        match Pin::new(next).poll(cx) {
            Poll::Pending => return None,
            Poll::Ready(Ok(Ok(()))) => drop(confirmations.pop()),
            Poll::Ready(Ok(Err(refused))) => return Some(Err(refused.to_string())),
            Poll::Ready(Err(_)) => return Some(Err("a channel is not wanted any more".to_owned())),
        }
    }
    Some(Ok(()))
}
