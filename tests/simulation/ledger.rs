//! The ledger: what was published and what each client received, and that nothing is missing that no gap tells of.
//!
//! Judges by what servers executed and clients read; knows nothing of what webws thinks.

use std::collections::HashMap;

use super::client::{Client, State};
use super::received::Item;
use super::redis::{DENIED, Executed, Role};
use super::world::{HEALED, SECOND, World};
use crate::broker::redis::resp::Protocol;
use crate::close::CloseReason;

/// How much earlier than its gap a lost publication may be over RESP2. There a subscriber cannot ask for the role of its
/// server, and learns late that the server was replaced. Over RESP3: never.
pub(crate) const UNKNOWN_ROLE: u64 = 4 * SECOND;

/// How long a link may be deaf: a probe's interval and its grace, an answer that is late, a link that is made again.
const DEAF: u64 = 9 * SECOND;

impl World {
    /// Judges a run that has healed.
    pub(crate) fn judge(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.is_open()) {
            client.read(usize::MAX);
        }
        let orders: HashMap<&[u8], &Executed> =
            self.redis.executed.iter().map(|executed| (&*executed.payload, executed)).collect();
        assert!(self.now >= HEALED, "it is judged when all is well again");
        for node in self.workers.iter().flatten() {
            assert_eq!(node.worker.closed(CloseReason::Internal), 0, "a session ended by a fault of ours, see above");
            assert_eq!(node.worker.unsettled(), 0, "messages wait, and the broker is there");
            assert!(!node.links.node.is_incomplete(), "a worker hears nothing, and the broker is there");
            assert!(node.links.node.lost_since.is_none(), "a gap is not told, and the broker is there");
        }
        if !self.plan.has_faults {
            self.judge_calm();
        }
        for client in &self.clients {
            self.judge_messages(client);
            if client.open_at > 0 && !client.has_history {
                self.judge_publications(client, &orders);
            }
        }
        let mut tally = std::mem::take(&mut self.tally);
        self.judge_positions(&orders, &mut tally);
        let open = self.clients.iter().filter(|client| client.is_open()).count();
        let sessions: usize = self.workers.iter().flatten().map(|node| node.worker.sessions()).sum();
        assert_eq!(open, sessions, "each session has a client");
        self.tally = tally;
    }

    /// While nothing breaks, a hand-over succeeds, and webws fails no client.
    fn judge_calm(&self) {
        assert!(self.has_handed_over || !self.hands_over_well, "nothing broke, and the hand-over failed");
        for reason in [CloseReason::NotPublished, CloseReason::Gap] {
            let closed: u64 = self.workers.iter().flatten().map(|node| node.worker.closed(reason)).sum();
            assert_eq!(closed, 0, "nothing broke, and sessions were closed as {reason:?}");
        }
        let denied = |client: &&Client| !client.channel.starts_with(DENIED) && client.refusals > 0;
        if let Some(client) = self.clients.iter().find(denied).filter(|_| !self.plan.hands_over) {
            panic!("nothing broke, and client {} was refused {} times", client.id, client.refusals);
        }
    }

    /// A deaf link is replaced within its time.
    pub(crate) fn judge_links(&self) {
        for (id, stream) in &self.streams {
            let deaf = stream.incomplete_since.map_or(0, |since| self.now - since);
            assert!(deaf < DEAF, "{id:?} of worker {} is deaf for {deaf} µs", stream.worker);
        }
    }

    /// What a client received is in order, comes once, and is whole but for gaps that were told.
    fn judge_publications(&self, client: &Client, orders: &HashMap<&[u8], &Executed>) {
        let id = client.id;
        let mut received = Vec::new();
        // Those that a failover lost are not in the log that continues a stream, and two servers had them at once.
        let is_replayed = self.plan.history.is_some_and(|history| history.may_replay);
        let is_lost = |executed: &Executed| is_replayed && executed.is_lost;
        let mut last_lost = None;
        for item in &client.received {
            let Item::Publication { payload, .. } = item else { panic!("client {id} got {item:?}") };
            let executed = orders.get(&**payload);
            let executed = executed.unwrap_or_else(|| panic!("client {id} got {payload:?}, which nobody published"));
            assert_eq!(executed.channel, *client.channel, "client {id} got what was on another channel");
            if is_lost(executed) {
                let before = last_lost.replace(executed.order);
                assert!(before < Some(executed.order), "client {id} got {}, lost, behind {before:?}", executed.order);
                continue;
            }
            if let Some(before) = received.last() {
                assert!(executed.order > *before, "client {id} got {} behind {before}", executed.order);
            }
            received.push(executed.order);
        }
        let is_open = client.is_open();
        let mut missed = None;
        for executed in &self.redis.executed {
            // A session that has ended is told of no gap.
            let is_due = is_open;
            if !is_due
                || !executed.is_at_the_only_master
                || is_lost(executed)
                || executed.order < client.first_order
                || executed.channel != *client.channel
                || received.binary_search(&executed.order).is_ok()
            {
                continue;
            }
            let at = executed.at;
            let excused = self.redis.untold.iter().filter(|(channel, ..)| *channel == executed.channel);
            if excused.into_iter().any(|(_, from, to)| at >= *from && at <= *to) {
                continue;
            }
            missed = Some(executed.order);
            let slack = if self.plan.protocol == Protocol::Resp2 { UNKNOWN_ROLE } else { 0 };
            let is_told = client.gaps.iter().any(|(from, to)| at + slack >= *from && at <= *to);
            assert!(
                is_told,
                "client {id} on worker {}, open since {}, misses {} of {at} µs, and was told of {:?} only; it got {:?}",
                client.worker, client.open_at, executed.order, client.gaps, received
            );
        }
        assert!(
            !is_open || !client.closes_on_gap || missed.is_none(),
            "client {id} misses {missed:?} and is still open"
        );
    }

    /// What a client sent is published in order and once, all of it while its session is open.
    fn judge_messages(&self, client: &Client) {
        let prefix = format!("m{}-", client.id);
        let of_client = self.redis.executed.iter().filter_map(|executed| {
            let payload = std::str::from_utf8(&executed.payload).ok()?;
            let number = payload.strip_prefix(&prefix)?.trim_end_matches('!').trim_end();
            Some((executed, number.parse::<usize>().expect("a client numbers its messages")))
        });
        let mut next = 0;
        let mut published = 0;
        for (executed, number) in of_client {
            assert!(number >= next, "message {number} of client {} is published twice or late", client.id);
            assert!(number < client.sent, "message {number} of client {} was not sent", client.id);
            next = number + 1;
            // A link that was cut could not ask any more whether its server was still a master, and the next one leads
            // to another that is.
            let was_cut = executed.by.is_some_and(|by| self.cut.contains(&by));
            published += usize::from(executed.role == Role::Master || was_cut);
        }
        if matches!(client.state, State::Open(_)) {
            assert_eq!(published, client.sent, "client {} is open, and not all that it sent is published", client.id);
        }
    }
}
