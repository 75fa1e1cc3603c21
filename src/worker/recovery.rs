//! Clients that come back with a position: their channel's history may be longer elsewhere than here. All other workers
//! of the process are asked first, then the node's log is read. Their handshakes wait meanwhile. May not enter: what a
//! history is.

use std::time::Duration;

use super::command::Command;
use super::core::Core;
use super::read_back::{LogRead, Next, ReadBack};
use super::state::Worker;
use crate::broker::{Broker, Request};
use crate::clock::Millis;
use crate::id::SessionKey;
use crate::metrics::Counter;
use crate::placement::Node;
use crate::position::{Logged, Milestone, Since};
use crate::protocol::hub::{HistoriesSnapshot, Recovery};

/// How much later than this worker another one may hear a milestone. Chosen: far more than their links differ, and
/// less than a client waits without notice.
pub(crate) const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// A client may have had publications that this worker's link has still to deliver: how long they are waited for, and how
/// often. Chosen: as [`HEARD_WITHIN`] together.
pub(crate) const WAIT: Duration = Duration::from_millis(5);
const MAX_WAITS: u8 = 100;

impl Worker {
    /// Asks other workers for the histories that clients need.
    pub(super) fn read_back(&mut self, broker: &mut Broker) {
        for client in self.core.take_read_backs() {
            if self.siblings.is_empty() {
                let now = self.now();
                let next = self.core.wait_or_read_log(client, now);
                self.follow(next, broker);
                continue;
            }
            let (siblings, own) = (self.siblings.clone(), self.own.clone());
            let node = self.core.placement.node_of(&client.channel).filter(|_| broker.shares_milestones());
            let heard = node.and_then(|node| self.core.hub.last_milestone(node));
            tokio::task::spawn_local(async move {
                let mut parts = Vec::new();
                for sibling in siblings.iter() {
                    if let Some(milestone) = heard {
                        // Our history may begin at this milestone: theirs has to reach it.
                        let hear = |tell| Command::Hear { milestone, within: HEARD_WITHIN, tell };
                        sibling.ask(hear).await.ok();
                    }
                    let ask = |tell| Command::HistoryOf { channel: client.channel.clone(), tell };
                    // A worker that has ended ends the server.
                    parts.extend(sibling.ask(ask).await);
                }
                own.send(Command::ReadBack { client, parts }).await.ok();
            });
        }
    }

    /// Other workers have given what they keep, or a client has waited.
    pub(super) fn on_read_back(&mut self, client: ReadBack, parts: Vec<HistoriesSnapshot>, broker: &mut Broker) {
        let now = self.now();
        let next = self.core.on_read_back(client, parts, now);
        self.follow(next, broker);
    }

    fn follow(&self, next: Option<Next>, broker: &mut Broker) {
        match next {
            Some(Next::Log(request)) => broker.request(request),
            Some(Next::Wait(client)) => {
                let own = self.own.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(WAIT).await;
                    own.send(Command::ReadBack { client, parts: Vec::new() }).await.ok();
                });
            }
            None => {}
        }
    }
}

impl Core {
    /// The clients that need more history than there is here.
    pub(super) fn take_read_backs(&mut self) -> Vec<ReadBack> {
        std::mem::take(&mut self.read_backs)
    }

    /// Whether the histories here have all that the client of a session missed.
    pub(super) fn can_recover(&mut self, key: SessionKey, since: &Since) -> bool {
        let Some(slot) = self.slots.get_mut(key) else { return true };
        slot.session.subscribers().iter().all(|subscriber| self.hub.can_recover(*subscriber, since))
    }

    /// Counts the answer to a client that came back.
    pub(super) fn count_recovery(&self, recovery: Recovery) {
        let (counter, publications) = match recovery {
            Recovery::New => return,
            Recovery::Complete { publications } => (Counter::Recovered, publications),
            Recovery::Rest { publications } => (Counter::NotRecovered, publications),
            Recovery::Incomplete => (Counter::NotRecovered, 0),
        };
        self.shard.add(counter, 1);
        self.shard.add(Counter::PublicationsRecovered, publications as u64);
    }

    /// Whether a client's position is behind everything that was delivered here.
    fn is_behind(&mut self, client: &ReadBack) -> bool {
        let Some(slot) = self.slots.get_mut(client.key) else { return false };
        let is_behind = |subscriber| self.hub.is_behind(subscriber, &client.since, client.is_known_elsewhere);
        slot.session.subscribers().iter().any(|subscriber| is_behind(*subscriber))
    }

    /// The other workers have given what they keep of a session's channels.
    fn on_gathered(&mut self, key: SessionKey) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        slot.session.subscribers().iter().for_each(|subscriber| self.hub.on_gathered(*subscriber));
    }

    /// Other workers have given what they keep of a client's channel, or the client has waited.
    pub(super) fn on_read_back(
        &mut self,
        mut client: ReadBack,
        parts: Vec<HistoriesSnapshot>,
        now: Millis,
    ) -> Option<Next> {
        client.is_known_elsewhere |= parts.iter().any(|part| part.names(&client.since));
        parts.into_iter().for_each(|part| self.hub.adopt_histories(part, now));
        self.on_gathered(client.key);
        if self.can_recover(client.key, &client.since) {
            self.finish_recovery(&[client], now);
            return None;
        }
        self.wait_or_read_log(client, now)
    }

    /// Waits for publications that the client has already had from a worker whose link was faster; else reads the log.
    pub(super) fn wait_or_read_log(&mut self, mut client: ReadBack, now: Millis) -> Option<Next> {
        if client.waits == MAX_WAITS || !self.is_behind(&client) {
            return self.read_log(client, now).map(Next::Log);
        }
        client.waits += 1;
        Some(Next::Wait(client))
    }

    /// Queues the reading of a log for a client; returns the request if it is the first one of its node.
    fn read_log(&mut self, client: ReadBack, now: Millis) -> Option<Request> {
        let node = self.placement.node_of(&client.channel);
        let from = match client.since {
            Since::Position(since) => Some(since.milestone),
            // A log begins anywhere.
            Since::Oldest => None,
        };
        let log = from.and_then(|from| Some((from, from.log?)));
        let (Some(node), Some((from, log))) = (node, log) else {
            self.finish_recovery(&[client], now);
            return None;
        };
        let mut of_node = self.log_reads.iter_mut().filter(|read| read.node == node);
        // The log that is being read may end before this client's channel was subscribed.
        let is_first = of_node.next().is_none();
        // It may be of another history; then this client is read for once more.
        let has_it = |read: &&mut LogRead| read.from.log.is_some_and(|start| start.offset <= log.offset);
        if let Some(read) = of_node.find(has_it) {
            read.clients.push(client);
            return None;
        }
        self.log_reads.push(LogRead { node, from, clients: vec![client] });
        is_first.then_some(Request::ReadLog { node, from })
    }

    /// A node's log was read, or cannot be. Returns the request for the next reading.
    pub(super) fn on_log_read(
        &mut self,
        node: Node,
        from: Milestone,
        logged: Option<(Vec<Logged>, Milestone)>,
        now: Millis,
    ) -> Option<Request> {
        if let Some((logged, until)) = logged {
            self.hub.adopt_log(node, from, logged, until, now);
        }
        if let Some(index) = self.log_reads.iter().position(|read| read.node == node && read.from == from) {
            let LogRead { clients, .. } = self.log_reads.remove(index);
            // The log may not reach back to the first of them, and to others still.
            let is_answered = |client: &ReadBack| {
                matches!(client.since, Since::Position(since) if since.milestone == from)
                    || self.can_recover(client.key, &client.since)
            };
            let (answered, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(is_answered);
            self.finish_recovery(&answered, now);
            for client in others {
                // Another reading of the node is requested below, if there is one.
                drop(self.read_log(client, now));
            }
        }
        let next = self.log_reads.iter().find(|read| read.node == node)?;
        Some(Request::ReadLog { node, from: next.from })
    }

    fn finish_recovery(&mut self, clients: &[ReadBack], now: Millis) {
        for ReadBack { key, .. } in clients {
            self.guarded(*key, now, |core| core.give_recovered(*key, now));
        }
    }
}
