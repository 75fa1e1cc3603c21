//! The outbox against lists: one of each source and node, ordered by age.
//!
//! What the model leaves open is the turns of the sources. It checks that they are fair.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use tokio::sync::oneshot;

use super::{each_seed, one_of, some_owners};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::placement::{Node, Owners, Placement, SLOTS};
use crate::protocol::outbox::Outbox;

const STEPS: usize = 300;
const NODES: usize = 3;
const PREFIX: &str = "c:";
/// Bytes that a source sends in a round (the outbox's `QUANTUM`), and the largest message here.
const QUANTUM: usize = 4 << 10;
const LARGEST: usize = 3_000;
/// The part of the free room that one session may have waiting (the outbox's `SHARE_OF_FREE`).
const SHARE_OF_FREE: usize = 16;

/// A message as the model knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    id: u64,
    /// None for a publisher's.
    session: Option<SessionKey>,
    channel: Channel,
    cost: usize,
    since: Millis,
}

struct Run<'a> {
    rng: &'a mut Rng,
    outbox: Outbox,
    placement: Placement,
    is_cluster: bool,
    max_bytes: usize,
    live: usize,
    /// What waits, by source and node, the oldest first.
    waiting: BTreeMap<(Option<SessionKey>, Option<Node>), VecDeque<Message>>,
    /// Messages that were taken, by batch.
    in_flight: Vec<Vec<(Message, ClientMessage)>>,
    abandoned: BTreeSet<SessionKey>,
    dropped: u64,
    sessions: Vec<SessionKey>,
    answers: Vec<(u64, oneshot::Receiver<Result<(), NotPublished>>)>,
    now: Millis,
    next: u64,
}

impl<'a> Run<'a> {
    fn new(rng: &'a mut Rng) -> Self {
        let is_cluster = rng.bool();
        let nodes = if is_cluster { 0 } else { rng.usize(1..NODES) };
        let placement =
            if is_cluster { Placement::in_cluster(vec![PREFIX.to_owned()]) } else { Placement::over(nodes) };
        let max_bytes = rng.usize(1_000..100_000);
        let mut run = Self {
            outbox: Outbox::new(max_bytes, placement.clone()),
            rng,
            placement,
            is_cluster,
            max_bytes,
            live: nodes,
            waiting: BTreeMap::new(),
            in_flight: Vec::new(),
            abandoned: BTreeSet::new(),
            dropped: 0,
            sessions: Vec::new(),
            answers: Vec::new(),
            now: 1_000,
            next: 0,
        };
        (0..4).for_each(|_| run.arrive());
        run
    }

    fn arrive(&mut self) {
        self.next += 1;
        let id = u32::try_from(self.next).unwrap();
        // An index is used again, and its generation is not.
        self.sessions.push(SessionKey { index: id % 5, generation: id });
    }

    fn step(&mut self) {
        self.now += 1;
        match self.rng.u8(..100) {
            0..=44 => self.push(),
            45..=69 => self.take(),
            70..=84 => self.answer(),
            85..=88 => self.abandon(),
            89..=92 => self.expire(),
            93..=95 => self.follow(),
            96..=97 => {
                let time = self.rng.u64(..500);
                self.now += time;
                self.outbox.extend_deadlines(time);
                self.waiting.values_mut().flatten().for_each(|message| message.since += time);
            }
            _ => self.arrive(),
        }
    }

    fn push(&mut self) {
        let session = if self.rng.u8(..8) == 0 { None } else { one_of(self.rng, &self.sessions) };
        let channel = Channel::from(format!("{PREFIX}{}", self.rng.u8(..6)));
        self.next += 1;
        let len = if self.rng.u8(..6) == 0 { self.rng.usize(8..LARGEST) } else { 8 };
        let mut payload = vec![0; len];
        payload[..8].copy_from_slice(&self.next.to_be_bytes());
        let origin = session.map_or_else(
            || {
                let (tell, told) = oneshot::channel();
                self.answers.push((self.next, told));
                Origin::Publisher(tell)
            },
            Origin::Session,
        );
        let since = self.now;
        let message = ClientMessage { channel: channel.clone(), payload: Bytes::from(payload), origin, since };
        let node = self.outbox.node_of(&channel);
        let model = Message { id: self.next, session, channel, cost: message.cost(), since };
        self.outbox.push(message);
        self.waiting.entry((session, node)).or_default().push_back(model);
    }

    fn take(&mut self) {
        let nodes: Vec<_> = self.placement.nodes().collect();
        let Some(node) = one_of(self.rng, &nodes) else { return };
        let max_bytes = self.rng.usize(1..20_000);
        let taken = self.outbox.take(node, max_bytes);
        let node = Some(node);
        let (mut bytes, mut batch) = (0, Vec::new());
        let mut served: BTreeMap<Option<SessionKey>, usize> = BTreeMap::new();
        let all: Vec<_> = self.waiting.keys().filter(|(_, at)| *at == node).map(|(source, _)| *source).collect();
        for message in taken {
            assert!(bytes < max_bytes, "no more than was asked for");
            bytes += message.cost();
            let session = match &message.origin {
                Origin::Session(key) => Some(*key),
                Origin::Publisher(_) => None,
            };
            let line = self.waiting.get_mut(&(session, node)).expect("what is taken has waited");
            let expected = line.pop_front().expect("what is taken has waited");
            assert_eq!(id_of(&message), expected.id, "the messages of one source leave in order");
            assert_eq!((message.cost(), message.since), (expected.cost, expected.since));
            *served.entry(session).or_default() += expected.cost;
            batch.push((expected, message));
        }
        self.waiting.retain(|_, line| !line.is_empty());
        let left: Vec<_> = all.into_iter().filter(|source| self.waiting.contains_key(&(*source, node))).collect();
        assert!(bytes >= max_bytes || left.is_empty(), "as much as there is");
        let bytes_of = left.iter().map(|source| served.get(source).copied().unwrap_or_default());
        let (least, most) = (bytes_of.clone().min().unwrap_or_default(), bytes_of.max().unwrap_or_default());
        assert!(most - least <= 2 * (QUANTUM + LARGEST + 200), "{least} and {most} bytes of two that have more");
        if !batch.is_empty() {
            self.in_flight.push(batch);
        }
    }

    /// The broker answers for a batch: some messages are published, others come back.
    fn answer(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        // A node has one batch under way, and the batches of one source and node stay in order.
        let batch = self.in_flight.swap_remove(self.rng.usize(..self.in_flight.len()));
        let share = [0, 50, 100][self.rng.usize(..3)];
        let mut returned = Vec::new();
        for (model, message) in batch {
            if self.rng.u8(..100) < share {
                returned.push((model, message));
            } else {
                self.outbox.answered();
                if let Origin::Publisher(tell) = message.origin {
                    drop(tell.send(Ok(())));
                }
            }
        }
        let (models, messages): (Vec<_>, Vec<_>) = returned.into_iter().unzip();
        self.outbox.take_back(messages);
        for model in models.into_iter().rev() {
            if model.session.is_some_and(|key| self.abandoned.contains(&key)) {
                self.dropped += 1;
                continue;
            }
            let node = self.placement.node_of(&model.channel);
            self.waiting.entry((model.session, node)).or_default().push_front(model);
        }
        if self.in_flight.is_empty() {
            self.abandoned.clear();
        }
    }

    fn abandon(&mut self) {
        if self.sessions.is_empty() {
            return;
        }
        let key = self.sessions.swap_remove(self.rng.usize(..self.sessions.len()));
        self.outbox.abandon(key);
        self.waiting.retain(|(session, _), line| {
            let is_its = *session == Some(key);
            self.dropped += if is_its { line.len() as u64 } else { 0 };
            !is_its
        });
        if !self.in_flight.is_empty() {
            self.abandoned.insert(key);
        }
    }

    fn expire(&mut self) {
        let since = self.now.saturating_sub(self.rng.u64(..400));
        let mut lost = self.outbox.expire(since);
        let (mut expected, mut of_publishers) = (Vec::new(), Vec::new());
        for line in self.waiting.values_mut() {
            while line.front().is_some_and(|message| message.since < since) {
                match line.pop_front() {
                    Some(Message { session: Some(key), .. }) => expected.push(key),
                    Some(Message { id, .. }) => of_publishers.push(id),
                    None => {}
                }
            }
        }
        of_publishers.into_iter().for_each(|id| self.assert_told_late(id));
        self.waiting.retain(|_, line| !line.is_empty());
        lost.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lost, expected, "those that waited too long, each with its session");
    }

    fn assert_told_late(&mut self, id: u64) {
        let place = self.answers.iter().position(|(of, _)| *of == id).expect("each has an answer to come");
        let (_, mut told) = self.answers.swap_remove(place);
        assert_eq!(told.try_recv(), Ok(Err(NotPublished::TimedOut)));
    }

    fn follow(&mut self) {
        if self.is_cluster {
            let nodes = self.rng.usize(self.placement.count()..=NODES);
            let slots = some_owners(self.rng, nodes);
            self.live = self.rng.usize(..=nodes);
            self.placement.set_owners(Owners { slots, homes: vec![None; SLOTS.into()], nodes, live: self.live });
        }
        self.outbox.follow_placement();
        let mut all: Vec<_> = std::mem::take(&mut self.waiting).into_values().flatten().collect();
        all.sort_by_key(|message| message.since);
        for message in all {
            let node = self.placement.node_of(&message.channel);
            self.waiting.entry((message.session, node)).or_default().push_back(message);
        }
    }

    fn check(&mut self) {
        let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
        let in_flight: usize = self.in_flight.iter().map(Vec::len).sum();
        assert_eq!((self.outbox.waiting(), self.outbox.unsettled()), (waiting, waiting + in_flight));
        assert_eq!((self.outbox.is_empty(), self.outbox.has_in_flight()), (waiting == 0, in_flight > 0));
        assert_eq!(self.outbox.iter().count(), waiting);
        assert_eq!(self.outbox.take_dropped(), std::mem::take(&mut self.dropped));
        let share = (self.max_bytes / self.live.max(1)).max(1);
        for node in self.placement.nodes().map(Some).chain([None]) {
            let at = self.waiting.iter().filter(|((_, at), _)| *at == node);
            let bytes: usize = at.flat_map(|(_, line)| line).map(|message| message.cost).sum();
            assert_eq!(self.outbox.allowance(node), share.saturating_sub(bytes) / SHARE_OF_FREE);
            assert_eq!((self.outbox.is_full(node), self.outbox.has_room(node)), (bytes >= share, bytes <= share / 2));
        }
    }
}

fn id_of(message: &ClientMessage) -> u64 {
    u64::from_be_bytes(message.payload[..8].try_into().unwrap())
}

#[test]
fn the_outbox_agrees_with_lists() {
    each_seed(|rng| {
        let mut run = Run::new(rng);
        for _ in 0..STEPS {
            run.step();
            run.check();
        }
    });
}
