//! One worker of the simulation: the real sessions, hub, outbox, timers and transitions (`Core`), without a thread.
//!
//! What stands in for rooms that cannot run without tokio and descriptors: [`Simulated::on_event`] for `events.rs`,
//! [`Simulated::turn`] and [`Simulated::tick`] for `turn.rs`, sockets in memory for the reactor; its hand-over is in
//! `worker_handover.rs`. May not enter: Redis, clients.

#[path = "worker_handover.rs"]
mod handover;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::Core;
use super::reactor::{Ready, Registrar};
use super::read_back::Next;
pub(crate) use super::read_back::ReadBack;
pub(crate) use super::recovery::{HEARD_WITHIN, WAIT};
use super::slots::Connection;
use crate::broker::{Event, Gap, Report, Request};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::config::Config;
use crate::id::SessionKey;
use crate::message::{NotPublished, Origin};
use crate::metrics::{Counter, Shard};
use crate::placement::{Node, Placement};
use crate::position::{MilestoneId, Position, Since};
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::hub::{Batching, HistoriesSnapshot};
use crate::protocol::session::{Grant, Session};
use crate::protocol::socket::Socket;
use crate::protocol::socket::memory::MemorySocket;

/// A socket that its client has as well: what was sent outlives the session.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedSocket(pub(crate) Rc<RefCell<MemorySocket>>);

impl Socket for SharedSocket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().send(bytes)
    }

    fn send_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.borrow_mut().send_slices(slices)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().receive(buffer)
    }

    fn untaken_bytes(&self) -> usize {
        self.0.borrow().untaken_bytes()
    }

    fn finish_sending(&mut self) {
        self.0.borrow_mut().finish_sending();
    }
}

/// A handshake whose client is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denied;

/// A gap that was told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) length: Duration,
}

/// One worker.
#[derive(Debug)]
pub(crate) struct Simulated {
    core: Core,
    endpoints: Vec<Rc<Endpoint>>,
    /// Handshakes that wait for an answer.
    waiting: Vec<SessionKey>,
    reserving: Vec<oneshot::Receiver<Result<(), crate::channel::SubscriptionRefused>>>,
    /// Sessions to be closed because of a gap, some with each tick.
    gapped: VecDeque<SessionKey>,
    still_since: Option<Millis>,
    is_frozen: bool,
    pub(crate) requests: Vec<Request>,
    pub(crate) gaps: Vec<Told>,
    /// Gaps that were filled from the log.
    pub(crate) filled: usize,
    max_publish_timeout: Millis,
}

impl Simulated {
    pub(crate) fn new(config: &Config, placement: Placement) -> Self {
        let shard = Arc::new(Shard::new());
        let registrar = Registrar::apart().expect("a descriptor is free");
        let timeouts = config.endpoints.iter().map(|endpoint| crate::clock::millis(endpoint.publish_timeout));
        Self {
            core: Core::new(config, placement, registrar, shard),
            endpoints: config.endpoints.iter().map(|endpoint| Rc::new(Endpoint::new(endpoint.clone()))).collect(),
            waiting: Vec::new(),
            reserving: Vec::new(),
            gapped: VecDeque::new(),
            still_since: None,
            is_frozen: false,
            requests: Vec::new(),
            gaps: Vec::new(),
            filled: 0,
            max_publish_timeout: timeouts.max().unwrap_or(0),
        }
    }

    /// A handshake for `channel` begins, of a client that comes back with `since`, if it does. Its answer is in
    /// [`Simulated::take_answers`].
    pub(crate) fn admit(
        &mut self,
        endpoint: usize,
        channel: &Channel,
        encoding: Encoding,
        since: Option<Position>,
        now: Millis,
    ) -> SessionKey {
        let endpoint = self.endpoints[endpoint].clone();
        let grant = Grant::of(endpoint, channel.clone(), encoding);
        let key = self.core.insert(Session::new(grant, now + 3_000, now));
        if let (Some(slot), Some(since)) = (self.core.slots.get_mut(key), since) {
            slot.connection = Connection::Returning(Box::new(Since::Position(since)));
        }
        self.waiting.push(key);
        self.core.begin(key, now);
        self.after_change();
        key
    }

    /// Clients whose position is not in the history here.
    pub(crate) fn take_read_backs(&mut self) -> Vec<ReadBack> {
        self.core.take_read_backs()
    }

    /// What this worker keeps of the channel that another worker's client wants.
    pub(crate) fn history_for(&self, client: &ReadBack, now: Millis) -> HistoriesSnapshot {
        self.core.hub.history_of(&client.channel, now)
    }

    /// The last milestone that this worker heard.
    pub(crate) fn last_milestone(&self) -> Option<MilestoneId> {
        self.core.hub.last_milestone(Node(0))
    }

    pub(crate) fn has_heard(&self, milestone: MilestoneId) -> bool {
        self.core.hub.has_heard(milestone)
    }

    /// Other workers have given what they keep, if there are any. Returns a client that waits, and is looked at again.
    pub(crate) fn on_read_back(
        &mut self,
        client: ReadBack,
        parts: Option<Vec<HistoriesSnapshot>>,
        now: Millis,
    ) -> Option<ReadBack> {
        let next = match parts {
            Some(parts) => self.core.on_read_back(client, parts, now),
            None => self.core.wait_or_read_log(client, now),
        };
        let waits = match next {
            Some(Next::Wait(client)) => Some(client),
            Some(Next::Log(request)) => {
                self.requests.push(request);
                None
            }
            None => None,
        };
        self.after_change();
        waits
    }

    /// What became of handshakes.
    pub(crate) fn take_answers(&mut self) -> Vec<(SessionKey, Result<(), Denied>)> {
        let Self { core, waiting, .. } = self;
        let upgrades = core.take_upgrades();
        let mut answered = Vec::new();
        waiting.retain(|key| {
            if upgrades.contains(key) {
                answered.push((*key, Ok(())));
                return false;
            }
            // A session whose client is refused is dropped.
            let is_there = core.slots.get_mut(*key).is_some();
            if !is_there {
                answered.push((*key, Err(Denied)));
            }
            is_there
        });
        answered
    }

    /// A session that was admitted gets its socket.
    pub(crate) fn attach(&mut self, key: SessionKey, socket: SharedSocket, head: &[u8], now: Millis) {
        self.core.guarded(key, now, |core| core.open_on(key, Connection::Memory(socket), head, &mut [], now));
        self.after_change();
    }

    /// A client went away during its handshake.
    pub(crate) fn give_up(&mut self, key: SessionKey, now: Millis) {
        self.waiting.retain(|waiting| *waiting != key);
        self.core.remove(key, now);
        self.after_change();
    }

    pub(crate) fn has(&mut self, key: SessionKey) -> bool {
        self.core.slots.get_mut(key).is_some()
    }

    pub(crate) fn has_unsent(&mut self, key: SessionKey) -> bool {
        self.core.slots.get_mut(key).is_some_and(|slot| slot.session.has_unsent())
    }

    /// A client's socket is ready.
    pub(crate) fn on_ready(&mut self, ready: Ready, now: Millis) {
        if self.still_since.is_none() {
            self.core.guarded(ready.key, now, |core| core.on_ready(ready, now));
            self.after_change();
        }
    }

    /// Sessions that have more to read have their turn. Says whether some have another.
    pub(crate) fn turn(&mut self, now: Millis) -> bool {
        if self.still_since.is_some() {
            return false;
        }
        for key in self.core.take_again() {
            self.core.guarded(key, now, |core| core.on_ready(Ready::again(key), now));
        }
        self.after_change();
        self.core.has_again()
    }

    /// Timers, lingering channels, messages that waited too long.
    pub(crate) fn tick(&mut self, now: Millis) {
        if self.still_since.is_some() {
            return;
        }
        for (key, at) in self.core.wheel.advance(now) {
            self.core.guarded(key, now, |core| core.on_due(key, at, now));
        }
        let Self { core, requests, gapped, .. } = self;
        core.hub.expire(now, |node, channel| requests.push(Request::Unsubscribe { node, channel }));
        let lost = core.outbox.expire(now.saturating_sub(self.max_publish_timeout + 1_000));
        for key in lost {
            core.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
        }
        for key in gapped.drain(..gapped.len().min(3)) {
            core.guarded(key, now, |core| core.close(key, CloseReason::Gap, now));
        }
        core.release_held();
        self.after_change();
    }

    /// Carries out what the broker tells.
    pub(crate) fn on_event(&mut self, event: Event<'_>, now: Millis) {
        match event {
            Event::Publication { channel, payload } => {
                if self.core.hub.append(channel, payload) == Batching::Full {
                    self.flush(now);
                }
            }
            Event::Paused => self.flush(now),
            Event::Report(report) => self.on_report(report, now),
        }
        self.after_change();
    }

    fn on_report(&mut self, report: Report, now: Millis) {
        let core = &mut self.core;
        match report {
            Report::Subscribed { node, channel } => {
                if !core.on_subscribed(node, &channel, now) {
                    self.requests.push(Request::Unsubscribe { node, channel });
                }
            }
            Report::Refused { channel, refused } => core.on_refused(&channel, refused, now),
            Report::Lost { node, is_cut } => drop(core.lose(node, is_cut)),
            Report::Dropped { node, channel } => drop(core.lose_one(node, &channel)),
            Report::Gap(gap) => self.on_gap(&gap, now),
            Report::Replayed { gap, logged, until } => {
                for logged in &logged {
                    if self.core.hub.replay(gap.node, logged, now) == Batching::Full {
                        self.flush(now);
                    }
                }
                self.flush(now);
                self.core.end_replay(gap.node, until, now);
                self.filled += 1;
                if self.core.hub.misses(gap.node) {
                    self.on_gap(&gap, now);
                }
            }
            Report::LogRead { node, from, logged } => {
                self.requests.extend(core.on_log_read(node, from, logged, now));
            }
            Report::Milestone { node, milestone } => core.on_milestone(node, milestone, now),
            Report::NoMilestones { node } => core.without_milestones(node, now),
            Report::Placed => {
                let moved = core.follow_placement();
                self.requests.push(Request::Move(moved));
            }
            Report::Room { node, max_bytes } => {
                let messages =
                    if self.still_since.is_some() { Vec::new() } else { self.core.outbox.take(node, max_bytes) };
                self.core.release_held();
                self.requests.push(Request::Publish { node, messages });
            }
            Report::Published { origin, bytes, outcome } => self.on_published(&origin, bytes, &outcome, now),
            Report::Returned(messages) => {
                core.outbox.take_back(messages);
                self.requests.push(Request::MessagesWait);
            }
            Report::Doubt { sessions, .. } => {
                // In an order that does not depend on a hash table's.
                let mut sessions: Vec<_> = sessions.into_iter().collect();
                sessions.sort_unstable();
                for key in sessions {
                    core.guarded(key, now, |core| core.close(key, CloseReason::NotPublished, now));
                }
            }
        }
    }

    fn on_gap(&mut self, gap: &Gap, now: Millis) {
        self.core.give_up_replay(gap.node, now);
        let (channels, keys) = self.core.end_gap(gap.node, now);
        self.flush(now);
        if channels > 0 {
            self.gaps.push(Told { length: gap.length });
            self.gapped.extend(keys);
        }
    }

    fn on_published(&mut self, origin: &Origin, bytes: usize, outcome: &Result<(), NotPublished>, now: Millis) {
        self.core.outbox.answered();
        let Origin::Session(key) = *origin else { return };
        match outcome {
            Ok(()) => self.core.on_published(key, bytes, now),
            Err(_) => self.core.guarded(key, now, |core| core.on_not_published(key, now)),
        }
    }

    fn flush(&mut self, now: Millis) {
        if !self.is_frozen && self.core.hub.has_batches() {
            let next = self.core.flush(now);
            assert!(next.is_none(), "the simulation has no pace");
        }
    }

    /// Lets the broker know what a change has left for it.
    fn after_change(&mut self) {
        let wanted = self.core.take_wanted();
        self.requests.extend(wanted.into_iter().map(|(node, channel)| Request::Subscribe { node, channel }));
        let milestones = self.core.hub.take_wanted_milestones();
        self.requests.extend(milestones.into_iter().map(|node| Request::Milestone { node }));
        let may_publish = self.still_since.is_none() && !self.core.outbox.is_empty();
        if may_publish && !self.requests.iter().any(|r| matches!(r, Request::MessagesWait)) {
            self.requests.push(Request::MessagesWait);
        }
    }

    /// What no session and no queue may ever be.
    pub(crate) fn check(&self) {
        for (key, slot) in self.core.slots.iter() {
            let session = &slot.session;
            let limit = session.endpoint.config.max_queue_bytes;
            assert!(
                session.is_closing() || session.backlog() <= limit,
                "{key:?} has a backlog of {} bytes, over {limit}",
                session.backlog()
            );
        }
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.core.shard.get(counter)
    }

    /// The number of sessions that ended for a reason.
    pub(crate) fn closed(&self, reason: CloseReason) -> u64 {
        self.core.shard.get(Counter::SessionsClosed(reason))
    }

    pub(crate) fn sessions(&self) -> usize {
        self.core.slots.len()
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.core.outbox.unsettled()
    }
}
