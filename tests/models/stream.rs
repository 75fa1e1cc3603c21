//! The hub's positions, histories and replays against the node's stream, a list of all that was published.
//!
//! Positions, and what a client missed, are counted in the list. The link is up, or was cut and is continued by a replay
//! or given up. May not enter: several nodes, pacing, reservations (`hub.rs`).

mod clients;
mod link;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fastrand::Rng;

use super::{each_seed, one_of};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::config::NotUtf8Policy;
use crate::id::{SessionKey, SubscriberId};
use crate::placement::{Node, Placement};
use crate::position::{LogPoint, Milestone, MilestoneId, Position};
use crate::protocol::encoding::Encoding;
use crate::protocol::hub::{Hub, Keep, Outlet};
use crate::protocol::outbound::Batch;

const STEPS: usize = 250;
const NODE: Node = Node(0);
const CHANNELS: usize = 4;
const ENCODINGS: [Encoding; 3] = [Encoding::Plain, Encoding::Meta, Encoding::Sse { not_utf8: NotUtf8Policy::Binary }];

/// An entry of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Milestone(Milestone),
    Publication { channel: usize, payload: String },
}

/// A place in a channel's stream: the index of a milestone, and the publications since.
type Place = (usize, u32);

/// Where a channel's positions begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    Nowhere,
    /// At the next milestone.
    Next,
    From(Place),
}

/// What is kept of a channel.
#[derive(Debug)]
struct Kept {
    keep: Keep,
    /// All publications behind this place are kept; `None` before the channel is placed.
    start: Option<Place>,
    /// Indices in the stream, and when each came.
    items: VecDeque<(usize, Millis)>,
    /// Whether nothing that was here is gone.
    is_whole: bool,
}

#[derive(Debug)]
struct Member {
    subscriber: SubscriberId,
    key: SessionKey,
    encoding: Encoding,
    is_waiting: bool,
}

/// A channel as the model knows it.
#[derive(Debug)]
struct Entry {
    is_asked: bool,
    is_confirmed: bool,
    is_interrupted: bool,
    is_missed: bool,
    placed: Placed,
    kept: Option<Kept>,
    members: Vec<Member>,
    given_up_at: Option<Millis>,
    /// What the new link has delivered since the cut.
    held: Vec<usize>,
}

/// What the link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// It was cut, having heard everything up to the index `at`; `from` was the last milestone.
    Cut {
        from: usize,
        at: usize,
    },
}

struct Run<'a> {
    rng: &'a mut Rng,
    hub: Hub,
    stream: Vec<Said>,
    link: Link,
    entries: BTreeMap<usize, Entry>,
    /// The milestones that the hub knows: where they are in the stream, and when they came.
    heard: VecDeque<(usize, Millis)>,
    /// The longest age of all that was ever kept.
    longest: Millis,
    linger: Millis,
    now: Millis,
    sessions: u32,
    /// Whether a milestone was asked for since the last one.
    is_milestone_asked: bool,
    /// What members get in this step, and which do not wait any more.
    due: BTreeMap<SessionKey, Vec<u8>>,
    told: BTreeSet<SessionKey>,
}

impl Entry {
    fn is_ready(&self) -> bool {
        let is_placed = matches!(self.placed, Placed::From(_));
        self.is_confirmed && !self.is_interrupted && (self.kept.is_none() || is_placed)
    }

    /// The subscription is lost, and the stream is not continued.
    fn lose(&mut self) {
        self.is_missed |= self.is_confirmed;
        (self.is_confirmed, self.is_interrupted, self.placed) = (false, false, Placed::Nowhere);
        self.end();
    }

    /// The history ends.
    fn end(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.items.clear();
            (kept.start, kept.is_whole) = (None, false);
        }
    }
}

fn name(channel: usize) -> Channel {
    Channel::from(format!("c{channel}"))
}

impl<'a> Run<'a> {
    fn new(rng: &'a mut Rng) -> Self {
        let linger = rng.u64(1..300);
        let mut hub = Hub::new(linger, Duration::ZERO, Placement::over(1));
        hub.set_max_history(1 << 20);
        Self {
            rng,
            hub,
            stream: Vec::new(),
            link: Link::Up,
            entries: BTreeMap::new(),
            heard: VecDeque::new(),
            longest: 0,
            linger,
            now: 10_000,
            sessions: 0,
            is_milestone_asked: false,
            due: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    fn step(&mut self) {
        self.now += self.rng.u64(..20);
        self.expire();
        match self.rng.u8(..100) {
            0..=34 => self.publish(),
            35..=49 => self.say_milestone(),
            50..=61 => self.come_back(),
            62..=67 => self.leave(),
            68..=84 => self.confirm(),
            85..=87 => self.cut(),
            88 => self.lose(),
            89..=94 => self.replay(),
            95..=96 => self.give_up(),
            97 => self.refuse(),
            _ => self.now += self.rng.u64(..200),
        }
        self.flush();
        self.check();
    }

    /// The place behind the entry `index`, if a milestone is at or before it.
    fn place(&self, channel: usize, index: usize) -> Option<Place> {
        let milestone = self.stream[..=index].iter().rposition(|said| matches!(said, Said::Milestone(_)))?;
        let is_its = |said: &&Said| matches!(said, Said::Publication { channel: of, .. } if *of == channel);
        let count = self.stream[milestone..=index].iter().filter(is_its).count();
        Some((milestone, u32::try_from(count).unwrap()))
    }

    /// A place as clients have it, while the hub knows its milestone.
    fn position(&self, (index, count): Place) -> Option<Position> {
        self.heard.iter().find(|(heard, _)| *heard == index)?;
        let Said::Milestone(milestone) = self.stream[index] else { panic!("{index} is a milestone") };
        Some(Position { milestone, count })
    }

    fn last_heard(&self) -> Option<usize> {
        self.heard.back().map(|(index, _)| *index)
    }

    fn publish(&mut self) {
        let channel = self.rng.usize(..CHANNELS);
        let index = self.stream.len();
        let payload = format!("{index}");
        self.stream.push(Said::Publication { channel, payload: payload.clone() });
        let Some(entry) = self.entries.get_mut(&channel).filter(|entry| entry.is_confirmed) else { return };
        self.hub.append(&name(channel), payload.as_bytes());
        if entry.is_interrupted {
            entry.held.push(index);
        } else {
            self.deliver(channel, index);
        }
    }

    /// The members of a channel get an entry of the stream.
    fn deliver(&mut self, channel: usize, index: usize) {
        let place = self.place(channel, index);
        let entry = self.entries.get_mut(&channel).expect("it has members");
        let place = place.filter(|_| matches!(entry.placed, Placed::From(_)));
        let is_told = !entry.is_missed || entry.is_interrupted;
        let mut shown = None;
        if let (Some(kept), Some(place)) = (&mut entry.kept, place) {
            kept.items.push_back((index, self.now));
            self.bound(channel);
            shown = Some(place).filter(|_| is_told);
        }
        let position = shown.and_then(|place| self.position(place));
        let Said::Publication { payload, .. } = &self.stream[index] else { panic!("{index} is a publication") };
        for member in &self.entries[&channel].members {
            let mut bytes = BytesMut::new();
            member.encoding.encode(&name(channel), payload.as_bytes(), position, &mut bytes);
            self.due.entry(member.key).or_default().extend(bytes);
        }
    }

    /// Drops what a channel need not keep.
    fn bound(&mut self, channel: usize) {
        let now = self.now;
        loop {
            let Some(kept) = self.entries.get(&channel).and_then(|entry| entry.kept.as_ref()) else { return };
            let Some((index, at)) = kept.items.front().copied() else { return };
            if kept.items.len() <= kept.keep.messages && at + kept.keep.age > now {
                return;
            }
            let place = self.place(channel, index);
            let kept = self.entries.get_mut(&channel).and_then(|entry| entry.kept.as_mut()).expect("it is there");
            kept.items.pop_front();
            (kept.start, kept.is_whole) = (place, false);
        }
    }

    fn expire(&mut self) {
        let mut gone = BTreeSet::new();
        self.hub.expire(self.now, |_, channel| assert!(gone.insert(channel)));
        (0..CHANNELS).for_each(|channel| self.bound(channel));
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
                expected.insert(name(*channel));
            }
            false
        });
        assert_eq!(gone, expected);
    }

    /// Members whose channels are ready now do not wait any more.
    fn check_told(&mut self, told: Vec<(SessionKey, SubscriberId)>) {
        self.told.extend(told.into_iter().map(|(key, _)| key));
    }

    fn flush(&mut self) {
        let mut served = Served::default();
        self.hub.flush(&mut served);
        assert_eq!(served.0, std::mem::take(&mut self.due), "each gets what is due, with its positions");
    }

    fn check(&mut self) {
        let mut expected = BTreeSet::new();
        for entry in self.entries.values_mut().filter(|entry| entry.is_ready()) {
            for member in entry.members.iter_mut().filter(|member| member.is_waiting) {
                member.is_waiting = false;
                expected.insert(member.key);
            }
        }
        assert_eq!(std::mem::take(&mut self.told), expected, "each is told once, when its channel is ready");
        for (channel, entry) in &self.entries {
            assert_eq!(self.hub.is_ready(&name(*channel)), entry.is_ready());
        }
        self.is_milestone_asked |= !self.hub.take_wanted_milestones().is_empty();
        let waits = |entry: &Entry| entry.is_confirmed && entry.kept.is_some() && entry.placed == Placed::Next;
        assert!(self.is_milestone_asked || !self.entries.values().any(waits), "channels wait for a milestone");
        assert_eq!(self.hub.misses(NODE), self.entries.values().any(|entry| entry.is_missed));
    }
}

/// What sessions get.
#[derive(Debug, Default)]
struct Served(BTreeMap<SessionKey, Vec<u8>>);

impl Outlet for Served {
    fn deliver(&mut self, session: SessionKey, batch: &mut Batch<'_>) {
        self.0.entry(session).or_default().extend(batch.bytes().iter());
    }

    fn is_behind(&mut self, _: SessionKey) -> bool {
        false
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

#[test]
fn the_hub_agrees_with_the_stream() {
    each_seed(|rng| {
        let mut run = Run::new(rng);
        for _ in 0..STEPS {
            run.step();
        }
    });
}
