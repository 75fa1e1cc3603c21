//! Everything that a session's transition works on: sessions, hub, timers, outbox. Each transition borrows it.
//!
//! Readiness and time enter here. `apply.rs` carries out actions, `snapshot.rs` moves sessions to another process. May
//! not enter: tasks, the broker.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::outgoing::{Delivery, Outgoing};
use super::reactor::{Ready, Registrar};
use super::read_back::{LogRead, ReadBack};
use super::slots::Slots;
use super::wheel::Wheel;
use crate::channel::{Channel, SubscriptionRefused};
use crate::clock::{self, Millis, millis};
use crate::close::CloseReason;
use crate::config::Config;
use crate::id::SessionKey;
use crate::metrics::{Counter, Shard};
use crate::per_node::PerNode;
use crate::placement::{Node, Placement};
use crate::protocol::hub::{Hub, Keep};
use crate::protocol::outbox::Outbox;
use crate::protocol::session::{Action, Scratch, Session};

/// The cost of a session's event in [`Core::work`], besides the bytes read. Chosen: one or two system calls take about
/// as long as decoding 2 kB of frames.
const EVENT_BYTES: usize = 2 << 10;

/// The result of a subscription for sessions that will be adopted.
pub(super) type Confirmation = oneshot::Receiver<Result<(), SubscriptionRefused>>;

/// Everything that a transition works on.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) slots: Slots,
    pub(super) placement: Placement,
    pub(super) hub: Hub,
    pub(super) wheel: Wheel,
    pub(super) outbox: Outbox,
    pub(super) registrar: Registrar,
    scratch: Scratch,
    /// Sessions that have more to read, each once.
    again: Vec<SessionKey>,
    /// By node: sessions that are not read until the node's messages have room, the longest held first.
    pub(super) held: PerNode<Vec<SessionKey>>,
    /// The same for messages on channels without a node.
    pub(super) held_unplaced: Vec<SessionKey>,
    /// Channels to subscribe at the broker.
    pub(super) wanted: Vec<(Option<Node>, Channel)>,
    /// Subscribed sessions that wait for their 101.
    pub(super) upgrades: Vec<SessionKey>,
    /// Clients whose position is not in the history here.
    pub(super) read_backs: Vec<ReadBack>,
    /// Logs that clients wait for: the first of each node is being read.
    pub(super) log_reads: Vec<LogRead>,
    /// Channels of sessions that will be adopted, and the senders that await the confirmations.
    reserved: Vec<Channel>,
    reserving: HashMap<Channel, Vec<oneshot::Sender<Result<(), SubscriptionRefused>>>>,
    /// Adopted sessions, and those of them that are orphaned.
    pub(super) adopted: Vec<SessionKey>,
    pub(super) orphaned: HashSet<SessionKey>,
    /// Actions that a flush has caused; carried out after the flush.
    unsettled: Vec<(SessionKey, Action)>,
    pub(super) shard: Arc<Shard>,
}

impl Core {
    pub(super) fn new(config: &Config, placement: Placement, registrar: Registrar, shard: Arc<Shard>) -> Self {
        let mut hub = Hub::new(millis(config.redis.subscription_linger), config.pace, placement.clone());
        hub.set_max_history(config.limits.max_history_bytes);
        Self {
            slots: Slots::default(),
            held: PerNode::new(placement.count(), |_| Vec::new()),
            held_unplaced: Vec::new(),
            hub,
            wheel: Wheel::new(clock::START),
            outbox: Outbox::new(config.limits.max_unpublished_bytes, placement.clone()),
            placement,
            registrar,
            scratch: Scratch::default(),
            again: Vec::new(),
            wanted: Vec::new(),
            read_backs: Vec::new(),
            log_reads: Vec::new(),
            upgrades: Vec::new(),
            reserved: Vec::new(),
            reserving: HashMap::new(),
            adopted: Vec::new(),
            orphaned: HashSet::new(),
            unsettled: Vec::new(),
            shard,
        }
    }

    pub(super) fn insert(&mut self, session: Session) -> SessionKey {
        let key = self.slots.insert(session);
        self.shard.set_sessions(self.slots.len());
        key
    }

    pub(super) fn has_waiting_messages(&mut self, key: SessionKey) -> bool {
        self.slots.get_mut(key).is_some_and(|slot| slot.session.has_waiting_messages())
    }

    /// The open sessions.
    pub(super) fn open_keys(&self) -> Vec<SessionKey> {
        self.slots.iter().filter(|(_, slot)| slot.session.is_open()).map(|(key, _)| key).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.len() == 0 && self.outbox.unsettled() == 0
    }

    /// Sessions that can open ([`Core::open`]).
    pub(super) fn take_upgrades(&mut self) -> Vec<SessionKey> {
        std::mem::take(&mut self.upgrades)
    }

    pub(super) fn has_upgrades(&self) -> bool {
        !self.upgrades.is_empty()
    }

    /// Takes the channels to subscribe at the broker.
    pub(super) fn take_wanted(&mut self) -> Vec<(Option<Node>, Channel)> {
        std::mem::take(&mut self.wanted)
    }

    /// Wants `channel` for sessions that will be adopted, and keeps its history within `keep`, from before they come.
    /// Returns its confirmation, or `None` if it is confirmed already, and placed if it has a history.
    pub(super) fn reserve(&mut self, channel: &Channel, keep: Option<Keep>) -> Option<Confirmation> {
        if let Some(keep) = keep {
            self.hub.keep_reserved(channel, keep);
        }
        let reserved = self.hub.reserve(channel);
        self.reserved.push(channel.clone());
        if reserved.is_first {
            self.wanted.push((reserved.node, channel.clone()));
        }
        (!reserved.is_confirmed).then(|| {
            let (tell, told) = oneshot::channel();
            self.reserving.entry(channel.clone()).or_default().push(tell);
            told
        })
    }

    /// Reports the reserved channels that are ready: confirmed, and placed if their node has milestones.
    pub(super) fn tell_placed(&mut self) {
        let Self { hub, reserving, .. } = self;
        for (_, tell) in reserving.extract_if(|channel, _| hub.is_ready(channel)) {
            // The hand-over may have failed meanwhile.
            tell.into_iter().for_each(|tell| drop(tell.send(Ok(()))));
        }
    }

    pub(super) fn tell_reserving(&mut self, channel: &[u8], outcome: &Result<(), SubscriptionRefused>) {
        for tell in self.reserving.remove(channel).unwrap_or_default() {
            // The hand-over may have failed meanwhile.
            drop(tell.send(outcome.clone()));
        }
    }

    /// All sessions have been adopted.
    pub(super) fn free_reserved(&mut self, now: Millis) {
        self.reserving.clear();
        for channel in std::mem::take(&mut self.reserved) {
            self.hub.free(&channel, now);
        }
    }

    /// The work since [`Core::begin_slice`], in bytes read; each event adds [`EVENT_BYTES`].
    pub(super) fn work(&self) -> usize {
        self.scratch.work
    }

    pub(super) fn begin_slice(&mut self) {
        self.scratch.work = 0;
    }

    /// Gives a session another turn, behind the others.
    pub(super) fn read_again(&mut self, key: SessionKey) {
        if let Some(slot) = self.slots.get_mut(key)
            && !std::mem::replace(&mut slot.has_another_turn, true)
        {
            self.again.push(key);
        }
    }

    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// Takes the sessions that have another turn.
    pub(super) fn take_again(&mut self) -> Vec<SessionKey> {
        let again = std::mem::take(&mut self.again);
        for key in &again {
            if let Some(slot) = self.slots.get_mut(*key) {
                slot.has_another_turn = false;
            }
        }
        again
    }

    /// A session's socket is ready, or the session has another turn.
    pub(super) fn on_ready(&mut self, ready: Ready, now: Millis) {
        let key = ready.key;
        self.scratch.work += EVENT_BYTES;
        let Some(slot) = self.slots.get_mut(key) else { return };
        let mut action = Action::Stay;
        if ready.writable {
            let backlog = slot.session.backlog();
            action = slot.session.on_writable(&mut slot.connection, now);
            self.scratch.work += backlog.saturating_sub(slot.session.backlog());
        }
        // A session with another turn is read in that turn.
        if ready.readable && action == Action::Stay && !slot.has_another_turn {
            action = self.read(key, ready.hung_up, now);
        }
        self.apply(key, action, now);
    }

    /// Reads once from a session's socket, unless the outbox has no room.
    fn read(&mut self, key: SessionKey, hung_up: bool, now: Millis) -> Action {
        let Some(slot) = self.slots.get_mut(key) else { return Action::Stay };
        let node = self.outbox.node_of(slot.session.channel());
        if slot.session.is_open() && self.outbox.is_full(node) {
            slot.session.pause();
            if !std::mem::replace(&mut slot.is_held, true) {
                let held = node.map_or(&mut self.held_unplaced, |node| self.held.at_mut(node));
                held.push(key);
            }
            return Action::Stay;
        }
        let allowance = self.outbox.allowance(node);
        let mut outgoing = Outgoing { outbox: &mut self.outbox, shard: &self.shard, key, now };
        if !slot.is_held && slot.session.may_end_pause(allowance, now) {
            let action = slot.session.end_pause(&mut slot.connection, now, &mut outgoing);
            if action != Action::Stay {
                return action;
            }
        }
        slot.session.on_readable(&mut slot.connection, &mut self.scratch, hung_up, now, &mut outgoing)
    }

    /// The broker has published a message with a cost of `bytes`.
    pub(super) fn on_published(&mut self, key: SessionKey, bytes: usize, now: Millis) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let allowance = self.outbox.allowance(self.outbox.node_of(slot.session.channel()));
        let action = slot.session.on_published(bytes, allowance, now);
        if !slot.is_held {
            self.apply(key, action, now);
        }
    }

    /// The broker has not published a message, or its fate is unknown. The session is closed, if no close is under way,
    /// and its later messages are dropped: an unknown message may still be published, and they would overtake it.
    pub(super) fn on_not_published(&mut self, key: SessionKey, now: Millis) {
        self.outbox.abandon(key);
        self.close(key, CloseReason::NotPublished, now);
    }

    /// Reads held sessions again when there is room.
    pub(super) fn release_held(&mut self) {
        let outbox = &self.outbox;
        let held = self.held.iter_mut().map(|(node, held)| (Some(node), held)).chain([(None, &mut self.held_unplaced)]);
        let with_room = held.filter(|(node, _)| outbox.has_room(*node));
        let released: Vec<_> = with_room.flat_map(|(_, held)| std::mem::take(held)).collect();
        self.release(released);
    }

    pub(super) fn release(&mut self, held: Vec<SessionKey>) {
        for key in held {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.is_held = false;
                self.read_again(key);
            }
        }
    }

    /// A session's timer, which was set to `at`, fires.
    pub(super) fn on_due(&mut self, key: SessionKey, at: Millis, now: Millis) {
        let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.due == at) else { return };
        slot.due = Millis::MAX;
        let action = slot.session.on_tick(&mut slot.connection, now);
        // A session whose socket is broken is read, which ends the session: other timers may be due as well.
        debug_assert!(
            matches!(action, Action::End(_) | Action::Refuse(_) | Action::ReadAgain | Action::Answer)
                || slot.session.next_due() > now
        );
        self.apply(key, action, now);
    }

    /// Flushes batches to subscribers; returns when to flush those that are held back.
    pub(super) fn flush(&mut self, now: Millis) -> Option<Instant> {
        let Self { hub, slots, unsettled, .. } = self;
        let flushed = hub.flush(&mut Delivery { slots, unsettled, now });
        self.shard.add(Counter::FramesDelivered, flushed.frames);
        self.shard.add(Counter::PublicationsNotUtf8, flushed.not_utf8);
        if flushed.dropped > 0 {
            self.shard.add(Counter::FramesDropped, flushed.dropped);
        }
        for (key, action) in std::mem::take(&mut self.unsettled) {
            self.guarded(key, now, |core| core.apply(key, action, now));
        }
        flushed.next.map(Instant::from_std)
    }
}
