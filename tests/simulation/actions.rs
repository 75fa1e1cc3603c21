//! What clients do: come, read, send in pieces, stall, vanish, say goodbye.

use super::client::{Client, State};
use super::world::{ACTIVE, HEALED, Happening, MILLISECOND, SECOND, World};

/// How often a client is refused before it gives up.
const MAX_REFUSALS: usize = 5;

/// Clients of a run, with those that came back.
const MAX_CLIENTS: usize = 15;
const MAX_RETURNS: usize = 40;

impl World {
    /// A client does something, and soon something else.
    pub(crate) fn act(&mut self, id: usize) {
        let now = self.now;
        match self.clients[id].state {
            State::Refused if self.may_knock(id) => self.knock(id),
            State::Open(_) => {
                self.send(id);
                self.read(id);
            }
            // A handshake that its client leaves.
            State::Handshake(key) | State::Answered(key) if self.is_active() && self.rng.u8(..200) == 0 => {
                self.clients[id].state = State::Ended;
                let (index, millis) = (self.clients[id].worker, self.millis());
                if let Some(node) = self.workers[index].as_mut() {
                    node.worker.give_up(key, millis);
                    self.pump(index);
                }
            }
            _ => {}
        }
        let pause = if self.is_active() { 200 * MILLISECOND } else { 2 * SECOND };
        let pause = self.rng.u64(MILLISECOND..pause);
        let is_over = matches!(self.clients[id].state, State::Ended | State::Orphaned);
        if !is_over {
            self.at(now + pause, Happening::Client(id));
        } else if self.clients[id].has_history && now < ACTIVE + HEALED / 2 && self.clients.len() < MAX_RETURNS {
            self.come_back(id, now + pause);
        } else if self.is_active() && self.clients.len() < MAX_CLIENTS {
            // It comes back, as another.
            self.arrive(now + pause);
        }
    }

    fn may_knock(&self, id: usize) -> bool {
        let client = &self.clients[id];
        let comes_back = client.since.is_some() && self.now < ACTIVE + HEALED / 2;
        comes_back || client.refusals < MAX_REFUSALS && self.is_active()
    }

    /// A client comes back with the position that it has.
    fn come_back(&mut self, id: usize, at: u64) {
        let new = self.clients.len();
        let executed = &self.redis.executed;
        let published_at = |payload: &[u8]| {
            let publication = executed.iter().rfind(|other| other.payload == payload);
            publication.filter(|publication| !publication.is_lost).map(|publication| publication.at)
        };
        let client = self.clients[id].again(new, published_at);
        self.say(|| format!("client {id} comes back as {new} with {:?}", client.since));
        self.clients.push(client);
        self.at(at, Happening::Client(new));
    }

    /// A client asks for a WebSocket.
    fn knock(&mut self, id: usize) {
        let serving = [&*self.serving, &*self.fleet].concat();
        let Some(index) = self.one_of(&serving) else { return };
        let now = self.now;
        let Client { channel, encoding, closes_on_gap, has_history, since, .. } = &self.clients[id];
        let (channel, encoding, since) = (channel.clone(), *encoding, *since);
        let endpoint = usize::from(*closes_on_gap) + 2 * usize::from(*has_history);
        if self.stopped_until(index) > now {
            return;
        }
        let millis = self.millis();
        let Some(node) = self.workers[index].as_mut().filter(|node| !node.worker.is_still()) else { return };
        let key = node.worker.admit(endpoint, &channel, encoding, since, millis);
        let client = &mut self.clients[id];
        (client.worker, client.state) = (index, State::Handshake(key));
        self.pump(index);
    }

    fn send(&mut self, id: usize) {
        let is_active = self.is_active();
        let what = self.rng.u8(..100);
        let padding = if self.rng.u8(..20) == 0 { self.rng.usize(..1_200) } else { 0 };
        let some = if self.rng.bool() { usize::MAX } else { self.rng.usize(1..20) };
        let is_plain = self.plan.has_faults;
        let client = &mut self.clients[id];
        let before = client.socket.0.borrow().inbound.len();
        match what {
            0..=29 if is_active => client.begin_message(padding),
            30..=34 if is_active => client.ping(),
            35 if is_active && is_plain => client.stalled_until = self.now + self.rng.u64(..6 * SECOND),
            36 if is_active && is_plain && self.rng.u8(..6) == 0 => client.vanish(),
            37 if is_active && self.rng.u8(..6) == 0 => client.close(),
            38..=39 if is_active && client.has_history => client.vanish(),
            40 if is_active && client.has_history => client.close(),
            _ => {}
        }
        if client.close_code.is_some() && !client.is_done {
            client.close();
        }
        client.send_some(some);
        let has_sent = client.socket.0.borrow().inbound.len() > before || client.has_vanished;
        if client.is_done && client.close_code.is_some() && !client.has_vanished {
            // Both close frames were exchanged.
            client.socket.0.borrow_mut().is_peer_finished = true;
        }
        let is_finished = client.socket.0.borrow().is_peer_finished;
        if has_sent || is_finished {
            let delay = self.delay();
            self.at(self.now + delay, Happening::Readable(id));
        }
    }

    fn read(&mut self, id: usize) {
        let max = if self.is_active() && self.rng.bool() { self.rng.usize(1..500) } else { usize::MAX };
        let (mut has_read, is_active) = (false, self.is_active());
        let client = &mut self.clients[id];
        if !is_active {
            client.socket.0.borrow_mut().room = client.capacity.max(100_000);
        }
        if (client.stalled_until <= self.now || self.now >= super::world::ACTIVE) && !client.has_vanished {
            has_read = client.read(max);
        }
        let index = client.worker;
        if has_read {
            self.follow_sockets(index);
        }
    }
}
