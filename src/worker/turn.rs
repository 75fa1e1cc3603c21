//! Whose turn it is: sockets, timers, what is held back, publishers. After a bounded amount of work everything
//! else on the thread has its turn.
//!
//! May not enter: what a session does in its turn.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::reactor::{Reactor, Ready};
use super::seed::PublishRequest;
use super::state::Worker;
use super::wheel::TICK;
use crate::clock::millis;
use crate::close::CloseReason;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::metrics::Counter;
use crate::notice;
use crate::throttle::Throttle;

/// What sessions may do before the worker's other tasks have their turn, in `Core::work`. Chosen: some
/// milliseconds at most, whatever clients send; and 128 events that bring little.
const SLICE_BYTES: usize = 256 << 10;

/// Timers handled before the same.
const TIMERS_PER_SLICE: usize = 512;

impl Worker {
    /// Handles the sockets' readiness.
    pub(super) async fn react(self: Rc<Self>, mut reactor: Reactor) {
        let mut events = Vec::new();
        loop {
            if let Err(error) = reactor.turn(&mut events).await {
                tracing::error!(%error, "a worker cannot wait for its sockets any more ({error}), and ends");
                return;
            }
            self.give_turns(events.drain(..)).await;
        }
    }

    /// Lets sessions read and write, and the worker's other tasks have their turn after a bounded amount of
    /// work, and at the end: what is always ready must not keep them waiting.
    async fn give_turns(&self, turns: impl Iterator<Item = Ready>) {
        for turn in turns {
            // While everything stands still nobody is read; it is told once more when all goes on.
            if self.is_resting.get() {
                continue;
            }
            let now = self.now();
            self.guarded(turn.key, now, |core| core.on_ready(turn, now));
            if self.core.borrow().work() >= SLICE_BYTES {
                self.end_slice().await;
            }
        }
        self.end_slice().await;
    }

    async fn end_slice(&self) {
        self.core.borrow_mut().begin_slice();
        self.after_reading();
        tokio::task::yield_now().await;
    }

    /// Reads on where a session had more than its turn, after the others had theirs.
    pub(super) async fn read_again(self: Rc<Self>) {
        loop {
            self.again.notified().await;
            // After the others, which may be many.
            tokio::task::yield_now().await;
            if self.is_resting.get() {
                continue;
            }
            let again = self.core.borrow_mut().take_again();
            self.give_turns(again.into_iter().map(Ready::again)).await;
        }
    }

    /// Pings, deadlines, lingering channels.
    pub(super) async fn tick(self: Rc<Self>) {
        static TEXTS_LOST: Throttle = Throttle::per_minute();
        let longest = self.config.endpoints.iter().map(|endpoint| millis(endpoint.publish_timeout)).max();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut due = VecDeque::new();
        loop {
            ticks.tick().await;
            self.shard.beat();
            let now = self.now();
            if self.is_resting.get() {
                continue;
            }
            due.extend(self.core.borrow_mut().wheel.advance(now));
            while !self.is_resting.get() && !due.is_empty() {
                for (key, at) in due.drain(..due.len().min(TIMERS_PER_SLICE)) {
                    self.guarded(key, now, |core| core.on_due(key, at, now));
                }
                tokio::task::yield_now().await;
            }
            if self.is_resting.get() {
                continue;
            }
            let mut core = self.core.borrow_mut();
            core.hub.expire(now, |node, channel| self.broker.unsubscribe(node, channel));
            // A second later than the sessions' own deadline, which counts from the last progress.
            let lost = core.outbox.expire(now.saturating_sub(longest.unwrap_or(0) + 1_000));
            self.shard.add(Counter::TextsLost, lost.len() as u64 + core.outbox.take_dropped());
            if !lost.is_empty() && TEXTS_LOST.allows() {
                let lost = lost.len();
                tracing::warn!(
                    lost,
                    "{lost} messages of clients waited longer than publish_timeout and are lost: their WebSockets are \
                     closed with 1013"
                );
            }
            for key in lost {
                core.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
            }
            core.release_held();
            drop(core);
            self.after_reading();
            notice::tell_due();
            self.shard.beat();
        }
    }

    /// Flushes what the hub held back.
    pub(super) async fn flush_held_back(self: Rc<Self>) {
        loop {
            match self.next_flush.get() {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => self.flush(),
                    // Another is due before.
                    () = self.flush_sooner.notified() => {}
                },
                None => self.flush_sooner.notified().await,
            }
        }
    }

    pub(super) async fn take_requests(self: Rc<Self>, mut requests: mpsc::Receiver<PublishRequest>) {
        while let Some(PublishRequest { channel, payload, tell }) = requests.recv().await {
            let now = self.now();
            let outbox = &mut self.core.borrow_mut().outbox;
            if outbox.is_full(outbox.node_of(&channel)) {
                drop(tell.send(Err(NotPublished::Unavailable)));
            } else {
                outbox.push(ClientMessage { channel, payload, origin: Origin::Publisher(tell), since: now });
                self.broker.wake_publisher();
            }
        }
        // All publishers are gone; the worker goes on.
        std::future::pending::<()>().await;
    }
}
