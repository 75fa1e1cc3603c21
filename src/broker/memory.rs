//! The embedded broker: one process with all its workers, without Redis.
//!
//! Workers share a bus with a bounded inbox per worker. A publisher waits for room in every inbox, so a slow worker
//! slows publishing down, and nothing is lost. May not enter: sessions.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{SendError, TrySendError};

use super::event::{Event, Marking, Report, Request};
use crate::channel::Channel;
use crate::message::ClientMessage;
use crate::placement::Node;
use crate::position::{Milestone, MilestoneId};

/// Publications that may wait for a worker. Chosen: 16 MiB of the largest client messages.
const INBOX: usize = 256;

/// Publications delivered before the worker's other tasks are polled. Chosen: a batch that is worth its system calls.
const TURN: usize = 64;

/// Bytes of messages taken from the outbox at a time.
const TAKE_BYTES: usize = 64 << 10;

type Publication = (Channel, Bytes);

/// Waits for room in an inbox.
type Reserving = Pin<Box<dyn Future<Output = Result<mpsc::OwnedPermit<Publication>, SendError<()>>>>>;

/// A worker's place on the bus.
pub(crate) struct Port {
    bus: Arc<[mpsc::Sender<Publication>]>,
    /// The worker's index on the bus.
    own: usize,
    inbox: mpsc::Receiver<Publication>,
    /// The publication that was delivered last.
    current: Option<Publication>,
    turn: Turn,
    /// Channels to confirm.
    asked: VecDeque<Channel>,
    /// Whether a milestone is wanted.
    is_milestone_due: bool,
    /// A milestone from which a log is wanted, and there is none.
    without_log: Option<Milestone>,
    publishing: Publishing,
}

/// What a turn has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The number of publications that were delivered.
    Under(usize),
    /// The worker's other tasks are polled next.
    Over,
}

/// The progress of a worker's messages.
enum Publishing {
    Idle,
    /// The outbox may have messages.
    Due,
    /// The worker was told about the room.
    Asked,
    /// The first of these is delivered to the inboxes from `next` on.
    Under {
        messages: VecDeque<ClientMessage>,
        next: usize,
        reserving: Option<Reserving>,
    },
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("own", &self.own).finish_non_exhaustive()
    }
}

/// A bus for `workers` workers.
pub(crate) fn bus(workers: usize) -> Vec<PortSeed> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(INBOX)).unzip();
    let bus: Arc<[_]> = senders.into();
    receivers.into_iter().enumerate().map(|(own, inbox)| PortSeed { bus: bus.clone(), own, inbox }).collect()
}

/// A [`Port`] on its way to its worker's thread.
#[derive(Debug)]
pub(crate) struct PortSeed {
    bus: Arc<[mpsc::Sender<Publication>]>,
    own: usize,
    inbox: mpsc::Receiver<Publication>,
}

impl Port {
    pub(crate) fn new(PortSeed { bus, own, inbox }: PortSeed) -> Self {
        Self {
            bus,
            own,
            inbox,
            current: None,
            turn: Turn::Under(0),
            asked: VecDeque::new(),
            is_milestone_due: false,
            without_log: None,
            publishing: Publishing::Idle,
        }
    }

    /// The progress of a marker. No other process publishes here, so the stream stands still when everything is
    /// delivered.
    pub(super) fn marking(&self) -> Marking {
        if self.inbox.is_empty() { Marking::Reached } else { Marking::Set }
    }

    /// The messages that the bus took and has not delivered to every inbox.
    pub(super) fn abandon(&mut self) -> Vec<ClientMessage> {
        match std::mem::replace(&mut self.publishing, Publishing::Asked) {
            Publishing::Under { messages, .. } => messages.into(),
            Publishing::Idle | Publishing::Due | Publishing::Asked => Vec::new(),
        }
    }

    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Subscribe { channel, .. } => self.asked.push_back(channel),
            Request::MessagesWait => {
                if let Publishing::Idle = self.publishing {
                    self.publishing = Publishing::Due;
                }
            }
            Request::Publish { messages, .. } => {
                debug_assert!(matches!(self.publishing, Publishing::Asked), "the worker was not asked for messages");
                self.publishing = if messages.is_empty() {
                    Publishing::Idle
                } else {
                    Publishing::Under { messages: messages.into(), next: 0, reserving: None }
                };
            }
            Request::Milestone { .. } => self.is_milestone_due = true,
            Request::ReadLog { from, .. } => self.without_log = Some(from),
            // Each worker receives all publications, and there is neither another process nor another node.
            Request::Unsubscribe { .. }
            | Request::Move(_)
            | Request::SetMarker { .. }
            | Request::PublishMarker
            | Request::Release
            | Request::LoseSince(_) => {}
        }
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event<'_>> {
        // A worker receives all publications, so a subscription holds at once.
        if let Some(channel) = self.asked.pop_front() {
            return Poll::Ready(Event::Report(Report::Subscribed { node: Node(0), channel }));
        }
        // Workers do not hear publications in one order, so each has milestones of its own.
        if std::mem::take(&mut self.is_milestone_due) {
            let milestone = Milestone { id: MilestoneId(fastrand::u64(..)), log: None };
            return Poll::Ready(Event::Report(Report::Milestone { node: Node(0), milestone }));
        }
        if let Some(from) = self.without_log.take() {
            return Poll::Ready(Event::Report(Report::LogRead { node: Node(0), from, logged: None }));
        }
        if let Poll::Ready(report) = self.poll_publishing(cx) {
            return Poll::Ready(Event::Report(report));
        }
        self.current = match self.turn {
            Turn::Under(taken) if taken < TURN => match self.inbox.poll_recv(cx) {
                Poll::Ready(received) => received,
                Poll::Pending => None,
            },
            Turn::Under(_) | Turn::Over => None,
        };
        match (&self.current, self.turn) {
            (Some((channel, payload)), Turn::Under(taken)) => {
                self.turn = Turn::Under(taken + 1);
                return Poll::Ready(Event::Publication { channel, payload });
            }
            (None, Turn::Under(taken @ 1..)) => {
                self.turn = if taken < TURN { Turn::Under(0) } else { Turn::Over };
                return Poll::Ready(Event::Paused);
            }
            (_, Turn::Over) => {
                // Publishers that never pause must not keep the worker's other tasks waiting.
                self.turn = Turn::Under(0);
                let yielded = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                debug_assert!(yielded.is_pending(), "it wakes the task by itself, later");
            }
            (None, Turn::Under(0)) => {}
        }
        Poll::Pending
    }

    fn poll_publishing(&mut self, cx: &mut Context<'_>) -> Poll<Report> {
        match &mut self.publishing {
            Publishing::Idle | Publishing::Asked => Poll::Pending,
            Publishing::Due => {
                self.publishing = Publishing::Asked;
                Poll::Ready(Report::Room { node: Node(0), max_bytes: TAKE_BYTES })
            }
            Publishing::Under { messages, next, reserving } => {
                let Some(message) = messages.front() else {
                    self.publishing = Publishing::Due;
                    return self.poll_publishing(cx);
                };
                while let Some(inbox) = self.bus.get(*next) {
                    let publication = || (message.channel.clone(), message.payload.clone());
                    if let Some(room) = reserving.as_mut() {
                        let Poll::Ready(permit) = room.as_mut().poll(cx) else { return Poll::Pending };
                        *reserving = None;
                        // A worker that has ended gets no publications.
                        drop(permit.map(|permit| permit.send(publication())));
                    } else if let Err(TrySendError::Full(_)) = inbox.try_send(publication()) {
                        *reserving = Some(Box::pin(inbox.clone().reserve_owned()));
                        continue;
                    }
                    *next += 1;
                }
                *next = 0;
                let message = messages.pop_front().expect("the first was just published");
                let bytes = message.cost();
                Poll::Ready(Report::Published { origin: message.origin, bytes, outcome: Ok(()) })
            }
        }
    }
}
