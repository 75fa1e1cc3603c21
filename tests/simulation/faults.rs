//! What breaks, and heals: streams cut at any byte, answers late, servers restarted and replaced, subscribers made deaf.

use std::sync::Arc;

use super::node_links::Which;
use super::redis::Role;
use super::replication::ReplicationLog;
use super::stream::{StreamId, Towards};
use super::world::{ACTIVE, Happening, MILLISECOND, SECOND, World};

/// What heals later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server is down.
    Down(usize),
    /// The server loads its data.
    Loading(usize),
    /// The server was replaced, and does not know.
    Replaced(usize),
    /// The address does not lead to the new master yet.
    Moved(usize),
}

impl World {
    /// Something breaks, and later something else.
    pub(crate) fn break_something(&mut self) {
        if !self.is_active() {
            return;
        }
        let what = self.rng.u8(..if self.plan.history.is_some() { 20 } else { 18 });
        self.say(|| format!("fault {what}"));
        match what {
            0..=3 => {
                if let Some(id) = self.any_stream(|_| true) {
                    self.cut(id);
                }
            }
            4..=7 => self.freeze(),
            8..=9 => self.restart(),
            10..=11 => self.fail_over(),
            12 => {
                let is_healthy = self.redis.master() == Some(self.address);
                if let Some(id) = self.any_stream(|which| which == Which::Subscriber && is_healthy) {
                    self.deafen(id);
                }
            }
            13 => self.lose_one(),
            14 => {
                let server = self.address;
                self.redis.servers[server].is_loading = true;
                self.heal_later(Fault::Loading(server), SECOND);
            }
            15 | 16 => self.stop_process(),
            18 | 19 => self.crash(),
            _ => {
                // All at once.
                let all: Vec<_> = self.streams.keys().copied().collect();
                all.into_iter().for_each(|id| self.cut(id));
            }
        }
        let pause = self.rng.u64(100 * MILLISECOND..3 * SECOND);
        self.at(self.now + pause, Happening::Fault);
    }

    fn heal_later(&mut self, fault: Fault, longest: u64) {
        let at = self.now + self.rng.u64(..longest);
        self.at(at, Happening::End(fault));
    }

    pub(crate) fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Down(server) => self.redis.servers[server].is_up = true,
            Fault::Loading(server) => self.redis.servers[server].is_loading = false,
            Fault::Replaced(server) => self.redis.servers[server].role = Role::Replica,
            Fault::Moved(server) => self.address = server,
        }
    }

    fn any_stream(&mut self, is_meant: impl Fn(Which) -> bool) -> Option<StreamId> {
        let streams = self.streams.iter().filter(|(_, stream)| is_meant(stream.which));
        let all: Vec<_> = streams.map(|(id, _)| *id).collect();
        self.one_of(&all)
    }

    /// What is on its way in one direction comes late.
    fn freeze(&mut self) {
        let Some(id) = self.any_stream(|_| true) else { return };
        let towards = if self.rng.bool() { Towards::Server } else { Towards::Worker };
        let until = (self.now + self.rng.u64(..3 * SECOND)).min(ACTIVE);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.way(towards).frozen_until = until;
        }
    }

    /// A process does not run for a while, as after SIGSTOP or on a machine that swaps; what is sent to it waits.
    fn stop_process(&mut self) {
        let serving = [&*self.serving, &*self.fleet].concat();
        let Some(stopped) = self.one_of(&serving) else { return };
        let until = (self.now + self.rng.u64(..6 * SECOND)).min(ACTIVE);
        let health = self.workers[stopped].as_ref().map(|node| node.health.clone());
        for node in self.workers.iter_mut().flatten() {
            if health.as_ref().is_some_and(|health| Arc::ptr_eq(health, &node.health)) {
                node.stopped_until = until;
            }
        }
    }

    /// A process dies, and another starts that knows nothing.
    fn crash(&mut self) {
        if !self.fleet.is_empty() && self.rng.bool() {
            let workers = std::mem::take(&mut self.fleet);
            self.end_process(&workers);
            self.fleet = self.start_process();
        } else if self.handover.is_none() {
            let workers = std::mem::take(&mut self.serving);
            self.end_process(&workers);
            self.serving = self.start_process();
        }
    }

    /// The server ends, and starts again.
    fn restart(&mut self) {
        let server = self.address;
        if self.redis.servers[server].is_up {
            self.take_down(server);
            self.forget_log(server);
            self.heal_later(Fault::Down(server), 2 * SECOND);
        }
    }

    /// What a server knows of its log after a restart: nothing, or where it was at its last snapshot of data.
    fn forget_log(&mut self, server: usize) {
        self.has_forgotten = true;
        let log = &mut self.redis.servers[server].log;
        if let Some(history) = self.plan.history
            && self.rng.bool()
        {
            *log = ReplicationLog::new(history.log_bytes, history.has_log && self.rng.bool(), &mut self.rng);
        } else {
            let behind = if self.rng.bool() { 0 } else { self.rng.usize(..20) };
            log.restarted(behind, &mut self.rng);
        }
    }

    fn take_down(&mut self, server: usize) {
        for id in self.redis.stop(server, self.now) {
            self.cut(id);
        }
    }

    /// Another server becomes the master: the old one is down, or learns of it later, or keeps the address for a while.
    fn fail_over(&mut self) {
        let old = self.address;
        if self.redis.master() != Some(old) {
            return;
        }
        let how = self.rng.u8(..3);
        let behind = if self.rng.bool() { 0 } else { self.rng.usize(..10) };
        let new = self.redis.promote(old, behind, &mut self.rng);
        match how {
            0 => {
                self.redis.servers[old].role = Role::Replica;
                return self.heal_later(Fault::Moved(new), 2 * SECOND);
            }
            1 => {
                self.take_down(old);
                self.redis.servers[old].role = Role::Replica;
            }
            _ => self.heal_later(Fault::Replaced(old), 2 * SECOND),
        }
        self.address = new;
    }

    /// The server delivers nothing on a stream any more.
    fn deafen(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if self.redis.deafen(stream.server, id) {
            stream.incomplete_since = Some(self.now);
        }
    }

    /// The server forgets one subscription. Over RESP2, where no count tells of it, nothing would be noticed; and a
    /// process that hands over before its next audit takes what it would have noticed with it. Positions are wrong behind
    /// a publication that Redis did not deliver on a link that is up.
    fn lose_one(&mut self) {
        if self.plan.hands_over || self.plan.history.is_some() {
            return;
        }
        let Some(id) = self.any_stream(|which| which == Which::Subscriber) else { return };
        let nth = self.rng.usize(..self.plan.channels);
        let server = self.streams.get(&id).expect("it is one of them").server;
        let index = self.streams.get(&id).expect("it is one of them").worker;
        let is_resp2 = self.workers[index].as_ref().is_some_and(|node| node.links.is_resp2());
        let is_hearing = self.workers[index].as_ref().is_some_and(|node| !node.links.node.is_incomplete());
        if !is_resp2 && is_hearing {
            let lost = self.redis.lose_one(server, id, nth, self.now);
            self.say(|| format!("{id:?} loses {lost:?}"));
        }
    }
}
