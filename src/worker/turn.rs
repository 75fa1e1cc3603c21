//! A worker's loop: commands, sockets, timers and what is held back have their turns. After a bounded amount of work
//! everything else on the thread has its turn: what is always ready must not keep it waiting.
//!
//! May not enter: what a session does in its turn.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::futures::OwnedNotified;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::alarm::Alarm;
use super::command::Command;
use super::reactor::{Reactor, Ready};
use super::state::{Shared, Worker};
use super::wheel::TICK;
use crate::broker::Request;
use crate::clock::{Millis, millis};
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::notice;
use crate::throttle::Throttle;

/// What sessions may do in one turn, in `Core::work`. Chosen: some milliseconds at most, whatever
/// clients send; and 128 events that bring little.
const SLICE_BYTES: usize = 256 << 10;

/// Timers handled in one turn.
const TIMERS_PER_SLICE: usize = 512;

/// Commands obeyed in one turn. Chosen: most are messages of a publisher, and cost what an event of a session does.
const COMMANDS_PER_TURN: usize = 128;

/// A worker and its sources of work.
#[derive(Debug)]
pub(super) struct Turns {
    worker: Shared,
    mailbox: mpsc::Receiver<Command>,
    reactor: Reactor,
    /// Sockets that are ready, and sessions that have another turn.
    ready: VecDeque<Ready>,
    again: VecDeque<SessionKey>,
    ticks: Interval,
    /// Sessions whose timer has fired, and whether the rest of the tick is still to be done behind them.
    due: VecDeque<(SessionKey, Millis)>,
    is_tick_due: bool,
    /// What is held back, and sessions that are closed over a time.
    alarm: Alarm,
    next_step: Option<Instant>,
    finished: Pin<Box<OwnedNotified>>,
}

/// What comes behind a turn.
#[derive(Debug)]
enum Next {
    /// Another one, when everything else on the thread had its turn.
    Turn,
    /// The end.
    End(io::Result<()>),
}

impl Turns {
    pub(super) fn new(worker: Shared, mailbox: mpsc::Receiver<Command>, reactor: Reactor) -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let finished = Box::pin(worker.borrow().handshakes.finished().clone().notified_owned());
        Self {
            worker,
            mailbox,
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

    /// Runs the worker to its end.
    ///
    /// # Errors
    /// When its sockets cannot be waited for.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            match poll_fn(|cx| self.poll_turn(cx)).await {
                Next::Turn => tokio::task::yield_now().await,
                Next::End(result) => return result,
            }
        }
    }

    /// One turn of everything that is ready; pending when nothing is left to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let shared = self.worker.clone();
        let worker = &mut *shared.borrow_mut();
        // What a turn leaves for the next one is not woken: it would run before the runtime has looked at the sockets
        // of everything else.
        worker.waker = Waker::noop().clone();
        // Those that had their turn before the others have had theirs are behind them.
        if self.again.is_empty() && !worker.phase.is_still() {
            self.again.extend(worker.core.take_again());
        }
        let mut has_more = self.obey(worker, cx);
        match self.serve_sockets(worker, cx) {
            Ok(more) => has_more |= more,
            Err(error) => {
                tracing::error!(%error, "a worker cannot wait for its sockets any more ({error}), and ends");
                return Poll::Ready(Next::End(Err(error)));
            }
        }
        has_more |= self.serve_again(worker);
        has_more |= self.tick(worker, cx);
        has_more |= self.finish_handshakes(worker, cx);
        has_more |= self.keep_times(worker, cx);
        if worker.phase.is_leaving() {
            return Poll::Ready(Next::End(Ok(())));
        }
        if worker.is_drained() {
            worker.count_left();
            return Poll::Ready(Next::End(Ok(())));
        }
        has_more |= worker.core.has_again() && !worker.phase.is_still();
        if has_more {
            return Poll::Ready(Next::Turn);
        }
        worker.waker = cx.waker().clone();
        Poll::Pending
    }

    /// Obeys the commands that wait, and looks at those that wait for something.
    fn obey(&mut self, worker: &mut Worker, cx: &mut Context<'_>) -> bool {
        let mut has_more = true;
        for _ in 0..COMMANDS_PER_TURN {
            match self.mailbox.poll_recv(cx) {
                Poll::Ready(Some(command)) => worker.obey(command),
                // The server is gone; one that drains is waited for.
                Poll::Ready(None) if !worker.phase.is_draining() => {
                    worker.phase.leave();
                    return false;
                }
                Poll::Ready(None) | Poll::Pending => {
                    has_more = false;
                    break;
                }
            }
        }
        if !worker.waits.is_empty() {
            worker.poll_waits(cx);
        }
        has_more
    }

    /// Lets sessions read and write whose sockets are ready. Says whether its slice ended before the sockets did.
    fn serve_sockets(&mut self, worker: &mut Worker, cx: &mut Context<'_>) -> io::Result<bool> {
        worker.core.begin_slice();
        while worker.core.work() < SLICE_BYTES {
            let Some(ready) = self.ready.pop_front() else {
                match self.reactor.poll_ready(cx, &mut self.ready) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => {
                        worker.after_change();
                        return Ok(false);
                    }
                }
                continue;
            };
            // A session that stands still is told once more when it resumes.
            if !worker.phase.is_still() {
                let now = worker.now();
                worker.guarded(ready.key, now, |core| core.on_ready(ready, now));
            }
        }
        worker.after_change();
        Ok(true)
    }

    /// Reads on where a session had more than its turn, after the others had theirs.
    fn serve_again(&mut self, worker: &mut Worker) -> bool {
        if self.again.is_empty() || worker.phase.is_still() {
            return false;
        }
        worker.core.begin_slice();
        while worker.core.work() < SLICE_BYTES
            && let Some(key) = self.again.pop_front()
        {
            let now = worker.now();
            worker.guarded(key, now, |core| core.on_ready(Ready::again(key), now));
        }
        worker.after_change();
        !self.again.is_empty()
    }

    /// Pings, deadlines, lingering channels.
    fn tick(&mut self, worker: &mut Worker, cx: &mut Context<'_>) -> bool {
        while self.ticks.poll_tick(cx).is_ready() {
            worker.shard.beat();
            let now = worker.now();
            if !worker.phase.is_still() {
                self.due.extend(worker.core.wheel.advance(now));
                self.is_tick_due = true;
            }
        }
        if worker.phase.is_still() || !self.is_tick_due {
            return false;
        }
        let now = worker.now();
        for (key, at) in self.due.drain(..self.due.len().min(TIMERS_PER_SLICE)) {
            worker.guarded(key, now, |core| core.on_due(key, at, now));
        }
        if self.due.is_empty() {
            self.is_tick_due = false;
            worker.end_tick(now);
        }
        self.is_tick_due
    }

    /// Looks again at what waits for the last handshake.
    fn finish_handshakes(&mut self, worker: &mut Worker, cx: &mut Context<'_>) -> bool {
        let is_awaited = !worker.waits.is_empty() || worker.phase.is_draining();
        if !is_awaited || self.finished.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.finished = Box::pin(worker.handshakes.finished().clone().notified_owned());
        true
    }

    /// Flushes what is due, closes sessions whose turn it is, and sets the alarm to the next of either.
    fn keep_times(&mut self, worker: &mut Worker, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        if worker.next_flush.is_some_and(|at| at <= now) {
            worker.flush();
        }
        let next_step = worker.next_step(now);
        if self.next_step.is_none_or(|at| at <= now) && next_step.is_some() {
            worker.close_due(now);
            self.next_step = worker.next_step(now);
        } else if next_step.is_none() {
            self.next_step = None;
        }
        let next = [worker.next_flush, self.next_step].into_iter().flatten().min();
        self.alarm.poll_at(next, cx).is_ready()
    }
}

impl Worker {
    /// What a tick does behind the sessions' timers.
    fn end_tick(&mut self, now: Millis) {
        static TEXTS_LOST: Throttle = Throttle::per_minute();
        let broker = &mut self.broker;
        self.core.hub.expire(now, |node, channel| broker.request(Request::Unsubscribe { node, channel }));
        // A second later than the sessions' own deadline, which counts from the last progress.
        let longest = self.config.endpoints.iter().map(|endpoint| millis(endpoint.publish_timeout)).max();
        let lost = self.core.outbox.expire(now.saturating_sub(longest.unwrap_or(0) + 1_000));
        self.shard.add(Counter::TextsLost, lost.len() as u64 + self.core.outbox.take_dropped());
        if !lost.is_empty() && TEXTS_LOST.allows() {
            let lost = lost.len();
            tracing::warn!(
                lost,
                "{lost} messages of clients waited longer than publish_timeout and are lost: their WebSockets are \
                 closed with 1013"
            );
        }
        for key in lost {
            self.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
        self.core.release_held();
        self.after_change();
        notice::tell_due();
        self.shard.beat();
    }
}
