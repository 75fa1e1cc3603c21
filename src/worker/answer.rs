//! Answers commands that take longer (not clients): when the awaited state is reached, or when the deadline passes.
//!
//! The worker checks them in each turn, and at least with each tick. May not enter: commands that are answered at once.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::core::Confirmation;
use super::state::Worker;
use super::wait::{Until, Wait};
use crate::broker::{Broker, Marking, Request};

const MARKER_LOST: &str = "a link to Redis or some of its subscriptions were lost meanwhile, or its user may not use \
                           the channels webws:probe:* (ACL: &webws:probe:*): try again later";

impl Worker {
    /// Answers the commands whose wait has ended.
    pub(super) fn poll_waits(&mut self, broker: &Broker, cx: &mut Context<'_>) {
        for mut wait in std::mem::take(&mut self.waits) {
            match self.poll_wait(&mut wait, broker, cx) {
                // The asker may have gone.
                Poll::Ready(result) => drop(wait.tell.send(result)),
                Poll::Pending => self.waits.push(wait),
            }
        }
    }

    /// Sets the marker that a command waits for, as soon as that is possible.
    pub(super) fn set_marker(&mut self, broker: &mut Broker) {
        for wait in &mut self.waits {
            if matches!(wait.until, Until::MarkerPossible { .. })
                && broker.link_fault().is_none()
                && let Until::MarkerPossible { name, seal } =
                    std::mem::replace(&mut wait.until, Until::Marker(Marking::Set))
            {
                broker.request(Request::SetMarker { name, seal });
                wait.restart();
            }
        }
    }

    fn poll_wait(&self, wait: &mut Wait, broker: &Broker, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        match self.outcome(&mut wait.until, broker, cx) {
            Some(outcome) => Poll::Ready(outcome),
            None if wait.is_over() => Poll::Ready(give_up(wait, broker)),
            None => Poll::Pending,
        }
    }

    /// The result, once known.
    fn outcome(&self, until: &mut Until, broker: &Broker, cx: &mut Context<'_>) -> Option<Result<(), String>> {
        match until {
            Until::Connected => broker.link_fault().is_none().then_some(Ok(())),
            Until::MarkerPossible { .. } => None,
            Until::Marker(expected) => match broker.marking() {
                Marking::Lost => Some(Err(MARKER_LOST.to_owned())),
                Marking::Reached => Some(self.tells_no_gap()),
                marking => (marking >= *expected).then_some(Ok(())),
            },
            Until::HandshakesFinished => (self.handshakes.count() == 0).then_some(Ok(())),
            Until::Answered => (!self.core.outbox.has_in_flight()).then(|| self.tells_no_gap()),
            Until::Heard(milestone) => self.core.hub.has_heard(*milestone).then_some(Ok(())),
            Until::Subscribed(confirmations) => poll_all(confirmations, cx),
        }
    }

    /// A gap is told to clients by the process that knows of the gap.
    fn tells_no_gap(&self) -> Result<(), String> {
        match self.gaps.is_empty() {
            true => Ok(()),
            false => Err("clients are being told of a gap: try again later".to_owned()),
        }
    }
}

/// The answer when the deadline has passed.
fn give_up(wait: &Wait, broker: &Broker) -> Result<(), String> {
    let within = wait.within;
    match &wait.until {
        Until::Connected | Until::MarkerPossible { .. } => broker.link_fault().map_or(Ok(()), Err),
        Until::Marker(_) => Err(format!("the marker did not arrive from Redis within {within:?}")),
        // A silent connection does not delay the hand-over, and a link that is away no client that comes back.
        Until::HandshakesFinished | Until::Heard(_) => Ok(()),
        Until::Answered => Err("the broker has not acknowledged all messages sent to it: try again later".to_owned()),
        Until::Subscribed(_) => {
            let why = broker.fault().unwrap_or_else(|| "no confirmation came".to_owned());
            Err(format!("not all channels could be subscribed within {within:?}: {why}"))
        }
    }
}

/// The result of all `confirmations`, once all are there or one is a refusal.
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
