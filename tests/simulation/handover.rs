//! A process hands its workers over to another, step by step, while either side may die at any step.
//!
//! Stands in for `handover/give.rs` and `handover/take.rs`, which talk over a socket: the same steps in the same order.

use super::client::State;
use super::world::{Happening, MILLISECOND, SECOND, World};
use crate::broker::{Marking, Request, Seal};

/// How often the next step is tried, and how long a step may take.
const LOOK: u64 = 5 * MILLISECOND;
const LONGEST: u64 = 2 * SECOND;

/// A hand-over under way.
#[derive(Debug)]
pub(crate) struct Handover {
    old: Vec<usize>,
    new: Vec<usize>,
    step: At,
    since: u64,
    /// The step at which a side dies, and which.
    dies: Option<(At, Side)>,
    marker: String,
    seal: Seal,
    /// Of each session: its client, and its key in the new process.
    moved: Vec<(usize, State)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

/// What is being waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Reserved,
    MarkerSet,
    HandshakesOver,
    Settled,
    ReservedAgain,
    MarkerReached,
    Adopted,
    Over,
}

const STEPS: [At; 8] = [
    At::Reserved,
    At::MarkerSet,
    At::HandshakesOver,
    At::Settled,
    At::ReservedAgain,
    At::MarkerReached,
    At::Adopted,
    At::Over,
];

impl Handover {
    /// The workers of both processes.
    pub(crate) fn workers(&self) -> impl Iterator<Item = usize> {
        self.old.iter().chain(&self.new).copied()
    }
}

impl World {
    /// Begins a hand-over, or takes its next step.
    pub(crate) fn hand_over(&mut self) {
        let Some(mut handover) = self.handover.take() else { return self.begin_hand_over() };
        let is_late = self.now - handover.since > LONGEST;
        let dies = handover.dies.filter(|(at, _)| *at == handover.step);
        if let Some((_, side)) = dies {
            return self.die(&handover, side);
        }
        if handover.step == At::MarkerSet && self.rng.u8(..4) == 0 {
            // Some of the links may hear it already, and others not yet.
            self.forge(&handover.marker);
        }
        match self.is_done(&handover, is_late) {
            None => return self.give_up_hand_over(&handover),
            Some(false) => {}
            Some(true) => {
                let next = STEPS.iter().position(|step| *step == handover.step).map_or(0, |place| place + 1);
                (handover.step, handover.since) = (STEPS[next], self.now);
                self.enter(&mut handover);
                if handover.step == At::Over {
                    return;
                }
            }
        }
        for index in handover.old.iter().chain(&handover.new).copied().collect::<Vec<_>>() {
            self.pump(index);
        }
        self.handover = Some(handover);
        self.at(self.now + LOOK, Happening::Handover);
    }

    fn begin_hand_over(&mut self) {
        if !self.is_active() {
            return;
        }
        let old = self.serving.clone();
        let new = self.start_process();
        let now = self.millis();
        for index in &new {
            self.node(*index).worker.quiesce(now);
        }
        let dies = (self.rng.u8(..3) == 0).then(|| {
            let side = if self.rng.bool() { Side::Old } else { Side::New };
            (STEPS[self.rng.usize(..STEPS.len() - 1)], side)
        });
        let marker = format!("webws:probe:{:016x}", self.rng.u64(..));
        let seal = Seal::random();
        let handover =
            Handover { old, new, step: At::Reserved, since: self.now, dies, marker, seal, moved: Vec::new() };
        self.hands_over_well = handover.dies.is_none();
        self.reserve(&handover);
        self.handover = Some(handover);
        self.at(self.now + LOOK, Happening::Handover);
    }

    fn node(&mut self, index: usize) -> &mut super::world::Node1 {
        self.workers[index].as_mut().expect("a process that hands over is there")
    }

    fn reserve(&mut self, handover: &Handover) {
        for (old, new) in handover.old.iter().zip(&handover.new) {
            let channels = self.node(*old).worker.channels();
            self.node(*new).worker.reserve(&channels);
            self.pump(*new);
        }
    }

    fn marking(&mut self, of: &[usize]) -> Marking {
        of.iter().map(|index| self.node(*index).links.marking()).min().unwrap_or(Marking::Lost)
    }

    /// Whether a step is done; `None` when the hand-over fails.
    fn is_done(&mut self, handover: &Handover, is_late: bool) -> Option<bool> {
        let Handover { old, new, .. } = handover;
        let both: Vec<_> = old.iter().chain(new).copied().collect();
        let done = match handover.step {
            At::Reserved | At::ReservedAgain => {
                let mut are_all = true;
                for index in new {
                    are_all &= self.node(*index).worker.has_reserved()?;
                    are_all &= !self.node(*index).links.node.is_incomplete();
                }
                are_all
            }
            At::MarkerSet => match self.marking(&both) {
                Marking::Lost => return None,
                marking => marking >= Marking::Set,
            },
            // A client that says nothing is not waited for.
            At::HandshakesOver => is_late || !old.iter().any(|index| self.has_handshakes(*index)),
            At::Settled => old.iter().all(|index| self.is_settled(*index)),
            At::MarkerReached | At::Adopted => {
                if !old.iter().all(|index| self.is_settled(*index)) {
                    return None;
                }
                match self.marking(&both) {
                    Marking::Lost => return None,
                    marking => marking >= Marking::Reached,
                }
            }
            At::Over => true,
        };
        (done || !is_late).then_some(done)
    }

    fn has_handshakes(&self, index: usize) -> bool {
        self.workers[index].as_ref().is_some_and(|node| node.worker.has_handshakes())
    }

    fn is_settled(&self, index: usize) -> bool {
        self.workers[index].as_ref().is_some_and(|node| node.worker.is_settled())
    }

    /// Does what a step begins with.
    fn enter(&mut self, handover: &mut Handover) {
        let (now, instant) = (self.millis(), self.instant());
        let both: Vec<_> = handover.old.iter().chain(&handover.new).copied().collect();
        match handover.step {
            At::Reserved => {}
            At::MarkerSet => {
                for index in both {
                    let request = Request::SetMarker { name: handover.marker.clone(), seal: Some(handover.seal) };
                    self.node(index).links.request(request, instant);
                }
            }
            At::HandshakesOver => {
                self.move_histories(handover);
                self.serving.clear();
            }
            At::Settled => {
                for index in &handover.old {
                    self.node(*index).worker.quiesce(now);
                }
            }
            At::ReservedAgain => self.reserve(handover),
            At::MarkerReached => {
                if self.rng.bool() {
                    self.forge(&handover.marker);
                }
                let first = handover.old[0];
                self.node(first).links.request(Request::PublishMarker, instant);
            }
            At::Adopted => self.move_sessions(handover),
            At::Over => self.commit(handover),
        }
    }

    /// Sends the histories, while the old process serves.
    fn move_histories(&mut self, handover: &Handover) {
        let now = self.millis();
        for (old, new) in handover.old.iter().zip(&handover.new) {
            let from = self.workers[*old].take().expect("a process that hands over is there");
            from.worker.give_histories(&mut self.node(*new).worker, now);
            self.workers[*old] = Some(from);
        }
    }

    /// Another client of Redis publishes where the marker is awaited.
    fn forge(&mut self, marker: &str) {
        self.publish(&format!("{marker}:redis"), 0);
    }

    fn move_sessions(&mut self, handover: &mut Handover) {
        let now = self.millis();
        for (old, new) in handover.old.clone().into_iter().zip(handover.new.clone()) {
            let moving = self.node(old).worker.collect(now);
            let keys = self.node(new).worker.adopt(moving, now);
            for (before, after) in keys {
                let client = self.clients.iter().find(|client| client.worker == old && client.key() == Some(before));
                let client = client.expect("each session has a client");
                handover.moved.push((client.id, State::Open(after)));
            }
            self.pump(new);
        }
    }

    /// The new process serves, and the old one leaves.
    fn commit(&mut self, handover: &Handover) {
        self.has_handed_over = true;
        let now = self.millis();
        for (id, state) in &handover.moved {
            let client = &mut self.clients[*id];
            let place = handover.old.iter().position(|old| *old == client.worker).expect("it was there");
            (client.worker, client.state) = (handover.new[place], *state);
        }
        self.end_process(&handover.old);
        self.serving = handover.new.clone();
        for index in &handover.new {
            self.node(*index).worker.resume(now);
            self.pump(*index);
        }
    }

    /// The old process goes on.
    fn give_up_hand_over(&mut self, handover: &Handover) {
        let now = self.millis();
        self.end_process(&handover.new);
        self.serving = handover.old.clone();
        for index in &handover.old {
            self.node(*index).worker.resume(now);
            self.pump(*index);
        }
    }

    /// A side dies.
    fn die(&mut self, handover: &Handover, side: Side) {
        if side == Side::New {
            return self.give_up_hand_over(handover);
        }
        // The other side hears of it, and ends as well: a new one starts.
        self.end_process(&handover.old);
        self.end_process(&handover.new);
        self.serving = self.start_process();
    }

    /// A process ends, and what it had with it.
    pub(crate) fn end_process(&mut self, workers: &[usize]) {
        for index in workers {
            if let Some(node) = self.workers[*index].take() {
                self.tally.add(&node.worker);
            }
            let streams = self.streams.iter().filter(|(_, stream)| stream.worker == *index);
            let streams: Vec<_> = streams.map(|(id, _)| *id).collect();
            streams.into_iter().for_each(|id| self.close_stream(id));
            for client in self.clients.iter_mut().filter(|client| client.worker == *index && client.key().is_some()) {
                client.state = State::Orphaned;
                if client.has_history && !client.has_vanished {
                    // What its kernel has of it.
                    client.read(self.rng.usize(..2_000));
                }
            }
        }
    }
}
