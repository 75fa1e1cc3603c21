//! Streams between workers and servers: made, moved in pieces, ended.

use super::node_links::Which;
use super::redis::Role;
use super::stream::{Stream, StreamId, Towards};
use super::world::{Happening, MILLISECOND, World};

/// How long an attempt to connect takes that comes to nothing.
const LATE: u64 = 1_500 * MILLISECOND;

impl World {
    /// An attempt to connect begins.
    pub(crate) fn begin_to_connect(&mut self, index: usize, which: Which) {
        let delay =
            if self.plan.has_faults && self.is_active() && self.rng.u8(..20) == 0 { LATE } else { self.delay() };
        self.at(self.now + delay, Happening::Made(index, which));
    }

    /// An attempt to connect ends.
    pub(crate) fn made(&mut self, index: usize, which: Which) {
        let instant = self.instant();
        let server = self.address;
        if !which.wants_master() && self.workers[index].as_ref().is_none_or(|node| !node.links.awaits_log_link(which)) {
            return;
        }
        let Some(node) = self.workers[index].as_mut() else { return };
        let is_late = self.plan.has_faults && self.now < super::world::ACTIVE && self.rng.u8(..20) == 0;
        if is_late || !self.redis.servers[server].is_up {
            node.links.on_connected(which, None, true, instant);
        } else {
            self.next_stream += 1;
            let stream = StreamId(self.next_stream);
            let is_master = self.redis.servers[server].role == Role::Master;
            node.links.on_connected(which, Some(stream), is_master, instant);
            if which == Which::Publisher {
                let before = std::mem::replace(&mut node.publisher, is_master.then_some(stream));
                if !is_master {
                    // Now the worker knows where its last messages went.
                    before.map(|before| self.cut.remove(&before));
                }
            }
            if is_master || !which.wants_master() {
                self.streams.insert(stream, Stream::new(index, which, server));
                self.redis.connect(server, stream, node.links.is_resp2());
            }
        }
        self.pump(index);
    }

    /// Bytes that a worker has written leave.
    pub(crate) fn send_links(&mut self, index: usize) {
        for which in Which::ALL {
            let Some(node) = self.workers[index].as_mut() else { return };
            let Some(end) = node.links.end(which) else { continue };
            let out = std::mem::take(&mut end.out);
            if let Some(stream) = end.stream
                && !out.is_empty()
            {
                self.put(stream, Towards::Server, &out);
            }
        }
    }

    /// What a server says to its clients leaves.
    pub(crate) fn spread(&mut self, sent: Vec<(StreamId, Vec<u8>)>) {
        for (stream, bytes) in sent {
            self.put(stream, Towards::Worker, &bytes);
        }
    }

    fn put(&mut self, id: StreamId, towards: Towards, bytes: &[u8]) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let way = stream.way(towards);
        if !way.is_ended {
            way.bytes.extend_from_slice(bytes);
            self.keep_moving(id, towards);
        }
    }

    /// Schedules the next delivery of what is on its way.
    fn keep_moving(&mut self, id: StreamId, towards: Towards) {
        let delay = self.delay();
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let way = stream.way(towards);
        if !way.is_moving && !way.is_over && (!way.bytes.is_empty() || way.is_ended) {
            way.is_moving = true;
            let at = (now + delay).max(way.frozen_until);
            self.at(at, Happening::Deliver(id, towards));
        }
    }

    /// Some bytes arrive, or the end.
    pub(crate) fn deliver(&mut self, id: StreamId, towards: Towards) {
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (index, server, which) = (stream.worker, stream.server, stream.which);
        let way = stream.way(towards);
        way.is_moving = false;
        if way.frozen_until > now {
            return self.keep_moving(id, towards);
        }
        // Often all; else any number of them.
        let len = if self.rng.u8(..3) > 0 { way.bytes.len() } else { self.rng.usize(..=way.bytes.len()) };
        let rest = way.bytes.split_off(len);
        let bytes = std::mem::replace(&mut way.bytes, rest);
        let is_end = way.bytes.is_empty() && way.is_ended;
        way.is_over |= is_end;
        match towards {
            Towards::Server => {
                let before = self.redis.executed.len();
                let sent = self.redis.receive(server, id, &bytes, now);
                for executed in &self.redis.executed[before..] {
                    let payload = String::from_utf8_lossy(&executed.payload);
                    self.say(|| format!("{id:?} of worker {index} publishes {payload} as {}", executed.order));
                }
                self.spread(sent);
                if is_end {
                    self.redis.disconnect(server, id, now);
                    self.close_way(id, Towards::Worker);
                } else {
                    self.keep_moving(id, towards);
                }
            }
            Towards::Worker => {
                if let Some(node) = self.workers[index].as_mut()
                    && let Some(end) = node.links.end(which).filter(|end| end.stream == Some(id))
                {
                    end.arrived.extend_from_slice(&bytes);
                    end.is_ended |= is_end;
                }
                if is_end {
                    self.close_way(id, Towards::Server);
                } else {
                    self.keep_moving(id, towards);
                }
                self.pump(index);
            }
        }
    }

    /// The side that learns of the end closes as well. What is on its way there arrives all the same, and may be late.
    fn close_way(&mut self, id: StreamId, towards: Towards) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.incomplete_since = None;
        stream.way(towards).is_ended = true;
        if stream.is_over() {
            self.streams.remove(&id);
        } else {
            self.keep_moving(id, towards);
        }
    }

    /// A worker closes a stream: what it has sent arrives, and then the end.
    pub(crate) fn close_stream(&mut self, id: StreamId) {
        let is_read = self.streams.get_mut(&id).is_none_or(|stream| stream.way(Towards::Worker).bytes.is_empty());
        if !is_read || !self.redis.told.contains(&id) {
            self.cut.insert(id);
        }
        self.close_way(id, Towards::Server);
    }

    /// A stream is cut at any byte.
    pub(crate) fn cut(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.cut(&mut self.rng);
        self.cut.insert(id);
        self.keep_moving(id, Towards::Server);
        self.keep_moving(id, Towards::Worker);
    }
}
