//! The hub against a map of channels with lists of members.
//!
//! What the model leaves open is only what the hub may choose: for how long a paced audience collects, and in which
//! order its members are served.

mod delivery;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fastrand::Rng;

use super::{each_seed, one_of, some_owners};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::{Generation, SessionKey, SubscriberId};
use crate::placement::{Moved, Node, Owners, Placement, SLOTS};
use crate::protocol::encoding::Encoding;
use crate::protocol::hub::{Batching, Hub, Outlet};
use crate::protocol::outbound::Batch;

const STEPS: usize = 300;
const NODES: usize = 3;
const PREFIX: &str = "c:";
const ENCODINGS: [Encoding; 2] = [Encoding::Lua { name_at: 2 }, Encoding::Plain];
/// An audience of this many members may collect (the hub's `PACED_MEMBERS`).
const PACED: usize = 25;

/// A channel as the model knows it.
#[derive(Debug, Default)]
struct Entry {
    node: Option<Node>,
    is_asked: bool,
    is_confirmed: bool,
    missed_by: Option<Generation>,
    reserved: usize,
    members: Vec<(SubscriberId, SessionKey, usize)>,
    awaiting: Vec<(SessionKey, SubscriberId)>,
    given_up_at: Option<Millis>,
    /// Of each encoding: bytes that wait, and how many frames they are.
    waiting: [(Vec<u8>, u64); 2],
}

impl Entry {
    fn is_used(&self) -> bool {
        self.reserved > 0 || !self.members.is_empty()
    }

    /// Whether something is there that does not wait for its confirmation.
    fn is_in_use(&self) -> bool {
        self.reserved > 0 || self.members.len() > self.awaiting.len()
    }

    fn unconfirm(&mut self, newest: Generation) -> bool {
        let was_confirmed = std::mem::replace(&mut self.is_confirmed, false);
        if was_confirmed {
            self.missed_by = Some(newest);
        }
        was_confirmed
    }
}

/// Where the hub's batches go in the model.
#[derive(Debug, Default)]
struct Served {
    batches: Vec<(SessionKey, Vec<u8>)>,
    behind: BTreeSet<SessionKey>,
    now: Option<Instant>,
}

impl Outlet for Served {
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
        self.batches.push((session, batch.bytes().to_vec()));
    }

    fn is_behind(&mut self, session: SessionKey) -> bool {
        self.behind.contains(&session)
    }

    fn now(&self) -> Instant {
        self.now.expect("a flush has a time")
    }
}

struct Run<'a> {
    rng: &'a mut Rng,
    hub: Hub,
    placement: Placement,
    is_cluster: bool,
    entries: BTreeMap<Channel, Entry>,
    started: Instant,
    now: Millis,
    linger: Millis,
    pace: Duration,
    generation: Generation,
    /// Members that have not caught up.
    behind: BTreeSet<SessionKey>,
    published: u32,
}

impl<'a> Run<'a> {
    fn new(rng: &'a mut Rng) -> Self {
        let is_cluster = rng.bool();
        let placement = if is_cluster {
            Placement::in_cluster(vec![PREFIX.to_owned()])
        } else {
            Placement::over(rng.usize(1..NODES))
        };
        let linger = rng.u64(1..3_000);
        let pace = Duration::from_millis([0, 50][rng.usize(..2)]);
        let hub = Hub::new(linger, pace, placement.clone());
        let entries = BTreeMap::new();
        let (started, behind) = (Instant::now(), BTreeSet::new());
        Self {
            rng,
            hub,
            placement,
            is_cluster,
            entries,
            started,
            now: 10_000,
            linger,
            pace,
            generation: 0,
            behind,
            published: 0,
        }
    }

    fn channel(&mut self) -> Channel {
        Channel::from(format!("{PREFIX}{}", self.rng.u8(..6)))
    }

    fn entry(&mut self, channel: &Channel) -> &mut Entry {
        let node = self.placement.node_of(channel);
        self.entries.entry(channel.clone()).or_insert_with(|| Entry { node, ..Entry::default() })
    }

    /// None while the cluster's nodes are not known.
    fn any_node(&mut self) -> Option<Node> {
        let nodes: Vec<_> = self.placement.nodes().collect();
        one_of(self.rng, &nodes)
    }

    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..=24 => self.join(),
            25..=36 => self.leave(),
            37..=39 => self.reserve(),
            40..=41 => self.free(),
            42..=51 => self.confirm(),
            52..=53 => self.refuse(),
            54..=55 => self.lose(),
            56..=57 => self.lose_one(),
            58..=59 => self.take_missed(),
            60..=62 => self.follow(),
            63..=66 => self.expire(),
            67..=85 => self.append(),
            86..=97 => self.flush(),
            98 => {
                let newest = self.generation;
                self.hub.miss_all(newest);
                self.entries.values_mut().for_each(|entry| entry.missed_by = Some(newest));
            }
            _ => {
                self.pace = Duration::ZERO;
                self.hub.stop_pacing();
            }
        }
        self.now += self.rng.u64(..50);
    }

    fn join(&mut self) {
        // Sometimes many at once, so that some audiences are paced.
        let count = if self.rng.u8(..10) == 0 { PACED } else { 1 };
        let (channel, encoding) = (self.channel(), self.rng.usize(..2));
        for _ in 0..count {
            self.generation += 1;
            let key = SessionKey { index: self.generation, generation: self.generation };
            let joined = self.hub.join(&channel, ENCODINGS[encoding], key);
            let entry = self.entry(&channel);
            assert_eq!(joined.is_first, !entry.is_asked, "asked for once");
            assert_eq!((joined.is_confirmed, joined.node), (entry.is_confirmed, entry.node));
            assert_eq!(joined.channel, channel);
            entry.is_asked = true;
            entry.given_up_at = None;
            entry.members.push((joined.subscriber, key, encoding));
            if !joined.is_confirmed {
                entry.awaiting.push((key, joined.subscriber));
            }
            let ids = self.entries.values().flat_map(|entry| entry.members.iter().map(|(id, ..)| id.0));
            let (count, unique) = (ids.clone().count(), ids.collect::<BTreeSet<_>>().len());
            assert_eq!(count, unique, "a subscriber's id is its own");
        }
    }

    fn leave(&mut self) {
        let all = self.entries.values().flat_map(|entry| entry.members.iter().map(|(id, ..)| *id)).collect::<Vec<_>>();
        let Some(left) = one_of(self.rng, &all) else { return };
        self.hub.leave(left, self.now);
        let given_up_at = self.now + self.linger;
        for entry in self.entries.values_mut().filter(|entry| entry.members.iter().any(|(id, ..)| *id == left)) {
            entry.members.retain(|(id, ..)| *id != left);
            entry.awaiting.retain(|(_, id)| *id != left);
            if !entry.is_used() {
                entry.given_up_at = Some(given_up_at);
            }
        }
    }

    fn reserve(&mut self) {
        let channel = self.channel();
        let reserved = self.hub.reserve(&channel);
        let entry = self.entry(&channel);
        assert_eq!(reserved.is_first, !entry.is_asked);
        assert_eq!((reserved.is_confirmed, reserved.node), (entry.is_confirmed, entry.node));
        entry.is_asked = true;
        entry.reserved += 1;
        entry.given_up_at = None;
    }

    fn free(&mut self) {
        let reserved = self.entries.iter().filter(|(_, entry)| entry.reserved > 0);
        let reserved: Vec<_> = reserved.map(|(channel, _)| channel.clone()).collect();
        let Some(channel) = one_of(self.rng, &reserved) else { return };
        self.hub.free(&channel, self.now);
        let given_up_at = self.now + self.linger;
        let entry = self.entry(&channel);
        entry.reserved -= 1;
        if !entry.is_used() {
            entry.given_up_at = Some(given_up_at);
        }
    }

    fn confirm(&mut self) {
        let channel = self.channel();
        // Mostly where it is wanted.
        let Some(stray) = self.any_node() else { return };
        let node = self.entries.get(&channel).and_then(|entry| entry.node).unwrap_or(stray);
        let node = if self.rng.u8(..8) == 0 { stray } else { node };
        let told = self.hub.confirm(node, &channel);
        let expected = self.entries.get_mut(&channel).filter(|entry| entry.node == Some(node)).map(|entry| {
            entry.is_confirmed = true;
            std::mem::take(&mut entry.awaiting)
        });
        assert_eq!(told, expected, "who joined before the confirmation is told of it, once");
    }

    fn refuse(&mut self) {
        let channel = self.channel();
        let told: BTreeSet<_> = self.hub.refuse(&channel).into_iter().collect();
        let expected: BTreeSet<_> = match self.entries.get_mut(&channel) {
            None => BTreeSet::new(),
            Some(entry) => {
                (entry.is_asked, entry.is_confirmed, entry.awaiting) = (false, false, Vec::new());
                entry.members.iter().map(|(_, key, _)| *key).collect()
            }
        };
        assert_eq!(told, expected);
    }

    fn lose(&mut self) {
        let Some(node) = self.any_node() else { return };
        let newest = self.generation;
        let lost = self.hub.unconfirm_all(node, newest, false);
        let at = self.entries.values_mut().filter(|entry| entry.node == Some(node));
        assert_eq!(lost, at.map(|entry| usize::from(entry.unconfirm(newest))).sum::<usize>());
    }

    fn lose_one(&mut self) {
        let Some(node) = self.any_node() else { return };
        let (channel, newest) = (self.channel(), self.generation);
        let was_confirmed = self.hub.unconfirm(node, &channel, newest);
        let entry = self.entries.get_mut(&channel).filter(|entry| entry.node == Some(node));
        assert_eq!(was_confirmed, entry.is_some_and(|entry| entry.unconfirm(newest)));
    }

    fn take_missed(&mut self) {
        let Some(node) = self.any_node() else { return };
        let (channels, mut missed) = self.hub.take_missed(node);
        let (mut expected_channels, mut expected) = (0, Vec::new());
        for entry in self.entries.values_mut().filter(|entry| entry.node == Some(node)) {
            let Some(newest) = entry.missed_by.take() else { continue };
            expected_channels += 1;
            expected.extend(entry.members.iter().map(|(_, key, _)| (*key, newest)));
        }
        missed.sort_unstable();
        expected.sort_unstable();
        assert_eq!((channels, missed), (expected_channels, expected));
    }

    fn follow(&mut self) {
        if self.is_cluster {
            let nodes = self.rng.usize(self.placement.count()..=NODES);
            let slots = some_owners(self.rng, nodes);
            self.placement.set_owners(Owners { slots, homes: vec![None; SLOTS.into()], nodes, live: nodes });
        }
        let newest = self.generation;
        let mut moved = self.hub.follow_placement(newest);
        let mut expected = Vec::new();
        for (channel, entry) in &mut self.entries {
            let (from, to) = (entry.node, self.placement.node_of(channel));
            if from != to {
                entry.unconfirm(newest);
                entry.node = to;
                if entry.is_asked {
                    expected.push(Moved { channel: channel.clone(), from, to, was_heard: entry.missed_by.is_some() });
                }
            }
        }
        moved.sort_unstable_by(|a, b| a.channel.cmp(&b.channel));
        assert_eq!(moved, expected);
    }

    fn expire(&mut self) {
        self.now += self.rng.u64(..2_000);
        let mut gone = BTreeSet::new();
        self.hub.expire(self.now, |node, channel| assert!(gone.insert((Some(node), channel))));
        let (now, linger) = (self.now, self.linger);
        let mut expected = BTreeSet::new();
        self.entries.retain(|channel, entry| {
            if entry.given_up_at.is_none_or(|at| at > now) {
                return true;
            }
            if entry.is_asked && !entry.is_confirmed {
                entry.given_up_at = Some(now + linger.max(1));
                return true;
            }
            if entry.is_confirmed {
                expected.insert((entry.node, channel.clone()));
            }
            false
        });
        assert_eq!(gone, expected);
    }

    fn check(&mut self) {
        let mut in_use = self.hub.channels_in_use();
        in_use.sort_unstable();
        let used = self.entries.iter().filter(|(_, entry)| entry.is_in_use()).map(|(channel, _)| channel.clone());
        assert_eq!(in_use, used.collect::<Vec<_>>());
        for node in self.placement.nodes() {
            let at = self.entries.values().filter(|entry| entry.node == Some(node));
            let confirmed = at.filter(|entry| entry.is_confirmed).count();
            assert_eq!(self.hub.confirmed(node), confirmed, "channels confirmed at {node:?}");
        }
        for (channel, entry) in &self.entries {
            assert_eq!(self.hub.is_confirmed(channel), entry.is_confirmed);
        }
    }
}

#[test]
fn the_hub_agrees_with_a_map() {
    each_seed(|rng| {
        let mut run = Run::new(rng);
        for _ in 0..STEPS {
            run.step();
            run.check();
        }
    });
}
