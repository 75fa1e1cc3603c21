//! A worker's loop: gives turns to commands, sockets, timers, the broker and batches that are held back. Each turn does
//! a bounded amount of work; then all other tasks of the thread are polled, even if a source is always ready.
//!
//! May not enter: what a session does in its turn.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::futures::OwnedNotified;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::alarm::Alarm;
use super::command::Command;
use super::opening::Opening;
use super::reactor::{Reactor, Ready};
use super::state::Worker;
use super::wheel::TICK;
use crate::broker::{Broker, Request};
use crate::clock::{Millis, millis};
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::notice;
use crate::throttle::Throttle;

/// The work of sessions in one turn, as in `Core::work`. Chosen: some milliseconds at most, whatever clients send; 128
/// events that bring few bytes.
const SLICE_BYTES: usize = 256 << 10;

/// Timers that fire in one turn.
const TIMERS_PER_SLICE: usize = 512;

/// Commands carried out in one turn. Chosen: most are messages of a publisher, and cost as much as an event of a
/// session.
const COMMANDS_PER_TURN: usize = 128;

/// Handshakes that become sessions, or are refused, in one turn. Chosen: each costs about ten events of a session.
const OPENINGS_PER_TURN: usize = 64;

/// A worker and its sources of work.
#[derive(Debug)]
pub(super) struct Turns {
    worker: Worker,
    broker: Broker,
    mailbox: mpsc::Receiver<Command>,
    openings: mpsc::Receiver<Box<Opening>>,
    reactor: Reactor,
    /// Ready sockets, and sessions that have another turn.
    ready: VecDeque<Ready>,
    again: VecDeque<SessionKey>,
    ticks: Interval,
    /// Sessions whose timer has fired, and whether the rest of the tick is still to be done.
    due: VecDeque<(SessionKey, Millis)>,
    is_tick_due: bool,
    /// The alarm for batches that are held back, and for sessions that are closed spread over a time.
    alarm: Alarm,
    next_step: Option<Instant>,
    finished: Pin<Box<OwnedNotified>>,
}

/// The sources of a worker's work.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) broker: Broker,
    pub(super) mailbox: mpsc::Receiver<Command>,
    pub(super) openings: mpsc::Receiver<Box<Opening>>,
    pub(super) reactor: Reactor,
}

/// What follows a turn.
#[derive(Debug)]
enum Next {
    /// Another turn, after all other tasks of the thread.
    Turn,
    /// The end.
    End(io::Result<()>),
}

/// Whether a source has more than its turn allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    HasMore,
    Pending,
}

impl Turns {
    pub(super) fn new(worker: Worker, Sources { broker, mailbox, openings, reactor }: Sources) -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let finished = Box::pin(worker.handshakes.finished().clone().notified_owned());
        Self {
            worker,
            broker,
            mailbox,
            openings,
            reactor,
            ready: VecDeque::new(),
            again: VecDeque::new(),
            ticks,
            due: VecDeque::new(),
            is_tick_due: false,
            alarm: Alarm::new(),
            next_step: None,
            finished,
        }
    }

    /// Runs the worker until its end.
    ///
    /// # Errors
    /// When the readiness of its sockets cannot be awaited.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            match poll_fn(|cx| self.poll_turn(cx)).await {
                Next::Turn => tokio::task::yield_now().await,
                Next::End(result) => return result,
            }
        }
    }

    /// One turn of every source; pending when nothing is left to do. No turn wakes its own task: the next turn would
    /// come before the runtime polls other sockets.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        // A new round of sessions with more to read begins when all of the last round had their turn.
        if self.again.is_empty() && !self.worker.phase.is_still() {
            self.again.extend(self.worker.core.take_again());
        }
        let sockets = match self.serve_sockets(cx) {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::error!(%error, "a worker can no longer poll its sockets ({error}), so webws stops");
                return Poll::Ready(Next::End(Err(error)));
            }
        };
        let sources = [
            sockets,
            self.obey(cx),
            self.serve_again(),
            self.admit(cx),
            self.tick(cx),
            self.finish_handshakes(cx),
            self.close_due(),
            // Behind the sources that make requests of the broker, and before those that depend on its events.
            self.hear_broker(cx),
            self.answer(cx),
            self.set_alarm(cx),
        ];
        self.worker.bound_memory();
        if self.worker.phase.is_leaving() {
            return Poll::Ready(Next::End(Ok(())));
        }
        if self.worker.is_drained() {
            self.worker.count_left(&mut self.broker);
            return Poll::Ready(Next::End(Ok(())));
        }
        if sources.contains(&Source::HasMore) || self.worker.has_more() {
            return Poll::Ready(Next::Turn);
        }
        Poll::Pending
    }

    /// Carries out the commands in the mailbox.
    fn obey(&mut self, cx: &mut Context<'_>) -> Source {
        for _ in 0..COMMANDS_PER_TURN {
            match self.mailbox.poll_recv(cx) {
                Poll::Ready(Some(command)) => self.worker.obey(command, &mut self.broker),
                // The server is gone; a drain is finished first.
                Poll::Ready(None) => {
                    if !self.worker.phase.is_draining() {
                        self.worker.phase.leave();
                    }
                    return Source::Pending;
                }
                Poll::Pending => return Source::Pending,
            }
        }
        Source::HasMore
    }

    /// Answers the commands whose wait has ended.
    fn answer(&mut self, cx: &mut Context<'_>) -> Source {
        if !self.worker.waits.is_empty() {
            self.worker.poll_waits(&self.broker, cx);
        }
        Source::Pending
    }

    /// Makes sessions of accepted connections, and opens subscribed sessions. Not while the worker is quiesced: neither
    /// process would have these sessions.
    fn admit(&mut self, cx: &mut Context<'_>) -> Source {
        if self.worker.phase.is_still() {
            return Source::Pending;
        }
        let mut source = Source::HasMore;
        for _ in 0..OPENINGS_PER_TURN {
            let Poll::Ready(Some(opening)) = self.openings.poll_recv(cx) else {
                source = Source::Pending;
                break;
            };
            self.worker.admit(opening, &self.broker);
        }
        self.worker.open_subscribed();
        source
    }

    /// Carries out the broker's events, and passes on the sessions' requests.
    fn hear_broker(&mut self, cx: &mut Context<'_>) -> Source {
        for (node, channel) in self.worker.core.take_wanted() {
            self.broker.request(Request::Subscribe { node, channel });
        }
        self.worker.read_back(&mut self.broker);
        self.request_milestones();
        if !self.worker.core.outbox.is_empty() && !self.worker.phase.is_still() {
            self.broker.request(Request::MessagesWait);
        }
        self.worker.set_marker(&mut self.broker);
        while let Poll::Ready(event) = self.broker.poll_event(cx) {
            if let Some(request) = self.worker.on_event(event) {
                self.broker.request(request);
            }
        }
        // The events may have confirmed channels that wait for a milestone.
        let source = if self.request_milestones() { Source::HasMore } else { Source::Pending };
        if self.worker.phase.is_still() || !self.worker.core.has_upgrades() {
            return source;
        }
        // These sessions were subscribed just now. The bytes behind their requests may hold messages for the broker.
        let was_empty = self.worker.core.outbox.is_empty();
        self.worker.open_subscribed();
        if was_empty && !self.worker.core.outbox.is_empty() { Source::HasMore } else { source }
    }

    /// Asks for the milestones that channels wait for; false when there are none.
    fn request_milestones(&mut self) -> bool {
        let nodes = self.worker.core.hub.take_wanted_milestones();
        let is_any = !nodes.is_empty();
        nodes.into_iter().for_each(|node| self.broker.request(Request::Milestone { node }));
        is_any
    }

    /// Lets sessions with ready sockets read and write.
    fn serve_sockets(&mut self, cx: &mut Context<'_>) -> io::Result<Source> {
        let worker = &mut self.worker;
        worker.core.begin_slice();
        while worker.core.work() < SLICE_BYTES {
            let Some(ready) = self.ready.pop_front() else {
                match self.reactor.poll_ready(cx, &mut self.ready) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => return Ok(Source::Pending),
                }
                continue;
            };
            // Readiness of a quiesced session is reported again when the session resumes.
            if !worker.phase.is_still() {
                let now = worker.now();
                worker.guarded(ready.key, now, |core| core.on_ready(ready, now));
            }
        }
        Ok(Source::HasMore)
    }

    /// Continues to read sessions that had more than one turn allows, after the others.
    fn serve_again(&mut self) -> Source {
        let worker = &mut self.worker;
        if self.again.is_empty() || worker.phase.is_still() {
            return Source::Pending;
        }
        worker.core.begin_slice();
        while worker.core.work() < SLICE_BYTES
            && let Some(key) = self.again.pop_front()
        {
            let now = worker.now();
            worker.guarded(key, now, |core| core.on_ready(Ready::again(key), now));
        }
        if self.again.is_empty() { Source::Pending } else { Source::HasMore }
    }

    /// Fires timers: pings, deadlines, channels that linger.
    fn tick(&mut self, cx: &mut Context<'_>) -> Source {
        let worker = &mut self.worker;
        while self.ticks.poll_tick(cx).is_ready() {
            worker.shard.beat();
            let now = worker.now();
            if !worker.phase.is_still() {
                self.due.extend(worker.core.wheel.advance(now));
                self.is_tick_due = true;
            }
        }
        if worker.phase.is_still() || !self.is_tick_due {
            return Source::Pending;
        }
        let now = worker.now();
        for (key, at) in self.due.drain(..self.due.len().min(TIMERS_PER_SLICE)) {
            worker.guarded(key, now, |core| core.on_due(key, at, now));
        }
        if !self.due.is_empty() {
            return Source::HasMore;
        }
        self.is_tick_due = false;
        worker.end_tick(now, &mut self.broker);
        Source::Pending
    }

    /// Checks the commands that wait for the last handshake.
    fn finish_handshakes(&mut self, cx: &mut Context<'_>) -> Source {
        let is_awaited = !self.worker.waits.is_empty() || self.worker.phase.is_draining();
        if !is_awaited || self.finished.as_mut().poll(cx).is_pending() {
            return Source::Pending;
        }
        self.finished = Box::pin(self.worker.handshakes.finished().clone().notified_owned());
        Source::HasMore
    }

    /// Closes the sessions that are due.
    fn close_due(&mut self) -> Source {
        let now = Instant::now();
        let next_step = self.worker.next_step(now);
        if next_step.is_some() && self.next_step.is_none_or(|at| at <= now) {
            self.worker.close_due(now);
            self.next_step = self.worker.next_step(now);
        } else if next_step.is_none() {
            self.next_step = None;
        }
        Source::Pending
    }

    /// Flushes batches that are due, and sets the alarm to the next deadline.
    fn set_alarm(&mut self, cx: &mut Context<'_>) -> Source {
        if self.worker.next_flush.is_some_and(|at| at <= Instant::now()) {
            self.worker.flush();
        }
        let next = [self.worker.next_flush, self.next_step].into_iter().flatten().min();
        if self.alarm.poll_at(next, cx).is_ready() { Source::HasMore } else { Source::Pending }
    }
}

impl Worker {
    /// Whether a source has more to do than its turn allowed.
    fn has_more(&self) -> bool {
        !self.phase.is_still() && (self.core.has_again() || self.core.has_upgrades())
    }

    /// The rest of a tick, after the sessions' timers.
    fn end_tick(&mut self, now: Millis, broker: &mut Broker) {
        static MESSAGES_LOST: Throttle = Throttle::per_minute();
        self.core.hub.expire(now, |node, channel| broker.request(Request::Unsubscribe { node, channel }));
        // One second after the sessions' own deadline, which counts from their last progress.
        let longest = self.config.endpoints.iter().map(|endpoint| millis(endpoint.publish_timeout)).max();
        let lost = self.core.outbox.expire(now.saturating_sub(longest.unwrap_or(0) + 1_000));
        self.shard.add(Counter::MessagesLost, lost.len() as u64 + self.core.outbox.take_dropped());
        if !lost.is_empty() && MESSAGES_LOST.allows() {
            let lost = lost.len();
            tracing::warn!(
                lost,
                "{lost} client messages were not published within publish_timeout and are lost: their WebSockets are \
                 closed with 1013"
            );
        }
        for key in lost {
            self.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
        self.core.release_held();
        notice::tell_due();
        self.shard.beat();
    }
}
