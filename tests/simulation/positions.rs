//! The ledger of clients with positions, over all their connections: each publication once and in order, a gap told
//! wherever something is missing, and positions that are the same for everybody.
//!
//! Judges by what servers executed and clients read; knows nothing of what webws thinks.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::client::Client;
use super::ledger::UNKNOWN_ROLE;
use super::received::Item;
use super::redis::Executed;
use super::world::World;
use crate::broker::redis::resp::Protocol;
use crate::metrics::Counter;
use crate::worker::simulated::Simulated;

/// What happened in runs, in numbers.
#[derive(Debug, Default)]
pub(crate) struct Tally(pub(crate) BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str, number: u64) {
        *self.0.entry(what).or_default() += number;
    }

    /// Adds what a worker counted.
    pub(crate) fn add(&mut self, worker: &Simulated) {
        self.count("gaps filled", worker.filled as u64);
        self.count("recovered", worker.count(Counter::Recovered));
        self.count("publications recovered", worker.count(Counter::PublicationsRecovered));
        self.count("not recovered", worker.count(Counter::NotRecovered));
    }

    /// Adds those of another run.
    pub(crate) fn join(&mut self, other: Self) {
        other.0.into_iter().for_each(|(what, number)| self.count(what, number));
    }
}

/// What is known of positions: the publication behind which each is, by channel, and the position of each.
#[derive(Debug, Default)]
struct Positions<'a> {
    orders: HashMap<(&'a [u8], &'a str), u64>,
    positions: HashMap<u64, &'a str>,
}

impl World {
    /// Judges the clients with positions.
    pub(crate) fn judge_positions(&self, orders: &HashMap<&[u8], &Executed>, tally: &mut Tally) {
        let mut positions = Positions::default();
        for client in self.clients.iter().filter(|client| client.has_history && client.open_at > 0) {
            let received = judge_received(client, orders, &mut positions);
            if client.is_open() {
                self.judge_missing(client, &received, tally);
            }
        }
        for node in self.workers.iter().flatten() {
            tally.add(&node.worker);
        }
        tally.count("lost by failovers", self.redis.executed.iter().filter(|executed| executed.is_lost).count() as u64);
    }

    /// Whatever a client does not have is in a gap that it was told of.
    fn judge_missing(&self, client: &Client, received: &[Option<&Executed>], tally: &mut Tally) {
        let mut has: Vec<_> =
            received.iter().enumerate().filter_map(|(at, executed)| Some((executed.as_ref()?, at))).collect();
        has.retain(|(executed, _)| !executed.is_lost);
        has.sort_unstable_by_key(|(executed, _)| executed.order);
        let mut has = has.into_iter().map(|(executed, at)| (executed.order, at)).peekable();
        let (mut behind, mut needed, mut count, mut is_missing_anything) = (0, HashSet::new(), 0, false);
        for executed in &self.redis.executed {
            if executed.channel != *client.channel || executed.is_lost {
                continue;
            }
            let mut is_there = false;
            while let Some((order, at)) = has.next_if(|(order, _)| *order <= executed.order) {
                (behind, count, is_there) = (at, count + 1, is_there || order == executed.order);
            }
            if is_there || executed.order < client.first_order {
                continue;
            }
            tally.count("missing in gaps", 1);
            is_missing_anything = true;
            let at = executed.at;
            let slack = if self.plan.protocol == Protocol::Resp2 { UNKNOWN_ROLE } else { 0 };
            let is_in = |(from, to): &(u64, u64)| at + slack >= *from && at <= *to;
            // While two servers are masters, a link may learn late that it is at the wrong one.
            let is_in_time = !executed.is_at_the_only_master || client.gaps.iter().any(is_in);
            let told = client.received[behind..].iter().position(|item| matches!(item, Item::Gap));
            assert!(
                client.answers.iter().any(is_in) || told.is_some() && is_in_time,
                "client {} on worker {}, open since {}, misses {} of {at} µs, and was told {told:?}, of {:?} and {:?} only; \
                 it comes from {:?} and got {}",
                client.id,
                client.worker,
                client.open_at,
                executed.order,
                client.gaps,
                client.answers,
                client.since,
                shown(client, received)
            );
            needed.extend(told.map(|place| behind + place));
        }
        tally.count("clients", 1);
        tally.count("received", count);
        let gaps = client.received.iter().filter(|item| matches!(item, Item::Gap)).count();
        tally.count("gaps told", gaps as u64);
        let unneeded = (gaps - needed.len()) as u64 + if is_missing_anything { 0 } else { client.answers.len() as u64 };
        tally.count("told in vain", unneeded);
        if unneeded > 0 && self.has_all_logged() {
            tally.count("told in vain although all is logged", unneeded);
            self.say(|| format!("client {} was told of a gap in vain: {}", client.id, shown(client, received)));
        }
    }
}

/// What a client received is in order, comes once, and has the position that others have. Returns its publications.
fn judge_received<'a>(
    client: &'a Client,
    orders: &HashMap<&[u8], &'a Executed>,
    known: &mut Positions<'a>,
) -> Vec<Option<&'a Executed>> {
    let id = client.id;
    let mut received = Vec::new();
    // Those that a failover lost come in between: two servers had them at once.
    let mut last = [None; 2];
    for item in &client.received {
        let Item::Publication { payload, position } = item else {
            received.push(None);
            if *item == Item::NotRecovered {
                // A worker whose link is behind the client's position begins where it is.
                last = [None; 2];
            }
            continue;
        };
        let executed = orders.get(&**payload).copied();
        let executed = executed.unwrap_or_else(|| panic!("client {id} got {payload:?}, which nobody published"));
        received.push(Some(executed));
        let Executed { order, channel, is_lost, .. } = executed;
        assert_eq!(*channel, *client.channel, "client {id} got what was on another channel");
        let before = last[usize::from(*is_lost)].replace(*order);
        assert!(
            before.is_none_or(|before| before < *order),
            "client {id} got {order} behind {before:?}: {}",
            shown(client, &received)
        );
        let Some(position) = position else { continue };
        let other = known.positions.insert(*order, position);
        assert!(
            other.is_none_or(|other| other == position),
            "{order} is at {position} for client {id}, and at {other:?}"
        );
        let other = known.orders.insert((&**channel, position), *order);
        assert!(other.is_none_or(|other| other == *order), "{position} is {order} for client {id}, and {other:?}");
    }
    received
}

/// What a client received, in short.
fn shown(client: &Client, received: &[Option<&Executed>]) -> String {
    let shown = |(item, executed): (&Item, &Option<&Executed>)| match (item, executed) {
        (Item::Gap, _) => "GAP".to_owned(),
        (Item::NotRecovered, _) => "NOT RECOVERED".to_owned(),
        (Item::Position(position), _) => format!("at {position}"),
        (_, Some(executed)) => {
            let lost = if executed.is_lost { " lost" } else { "" };
            format!("{}{lost} {}", executed.order, item.position().unwrap_or("-"))
        }
        (Item::Publication { .. }, None) => "?".to_owned(),
    };
    client.received.iter().zip(received).map(shown).collect::<Vec<_>>().join(", ")
}
