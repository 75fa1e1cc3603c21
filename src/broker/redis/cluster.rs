//! The topology of a Redis Cluster: which node owns which slots. One node is asked every second, and at once when
//! another contradicts the topology (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//!
//! All workers of a server share one topology, so that they agree on the nodes. May not enter: what moves with a slot
//! (`redis_broker.rs`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::connect::{Driver, Purpose, Settings, multiplex};
use super::error::LinkError;
use super::known_node::KnownNode;
use super::transport::HostPort;
use crate::config::RedisUrl;
use crate::placement::SLOTS;

/// How often a node is asked for the topology. Chosen: lost links reveal a failover, and a contradiction reveals a
/// moved slot, so the interval matters for other changes only.
const ASK: Duration = Duration::from_secs(1);

/// The number of masters to assume where fewer nodes are configured. Chosen: larger clusters are rare, and the
/// descriptors are few beside those of sessions.
const LIKELY_MASTERS: usize = 16;

/// The pause before the next question: after a contradiction, or when a node could not answer.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A Redis Cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Arc<Settings>,
    seeds: Vec<HostPort>,
    /// Prefixes of the channels that are sharded.
    pub(super) sharded: Vec<String>,
    workers: usize,
    topology: watch::Sender<Arc<Topology>>,
    doubt: Notify,
    is_watched: AtomicBool,
    state: Mutex<State>,
}

/// The masters of a cluster, and the slots that they own.
#[derive(Debug, Default)]
pub(super) struct Topology {
    pub(super) nodes: Vec<KnownNode>,
    /// For each slot, the index of its owner in `nodes`.
    pub(super) owners: Vec<Option<usize>>,
    /// For each slot, the index of the node for its channels that are not sharded. Every node accepts and delivers
    /// them, so they stay while their node exists: messages on a new way could overtake those on the old one.
    pub(super) homes: Vec<Option<usize>>,
    /// The number of topologies before this one.
    pub(super) version: u64,
    /// Until when the previous topology certainly held.
    pub(super) old_until: Option<Instant>,
}

#[derive(Debug)]
struct State {
    /// When the last node that knew the topology was asked.
    known_at: Option<Instant>,
    /// Why no node knows the topology, and whether the reason is in the log.
    fault: Option<String>,
    is_told: bool,
    /// Whether the cluster reports that it is down.
    fails: bool,
    /// By slot, the nodes at which another process had the channels that are not sharded; until the first topology.
    inherited: Option<Vec<Option<HostPort>>>,
}

/// The link for questions about the topology.
type Link = (HostPort, MultiplexedConnection, Driver);

/// First and last slot, and their owner.
type Range = (usize, usize, HostPort);

/// First and last slot, and the node of their channels that are not sharded.
pub(crate) type Home = (usize, usize, HostPort);

impl Cluster {
    pub(super) fn new(settings: Arc<Settings>, seeds: Vec<HostPort>, sharded: Vec<String>, workers: usize) -> Self {
        let fault = Some("no node of the cluster was asked yet".to_owned());
        Self {
            settings,
            seeds,
            sharded,
            workers,
            topology: watch::Sender::new(Arc::default()),
            doubt: Notify::new(),
            is_watched: AtomicBool::new(false),
            state: Mutex::new(State { known_at: None, fault, is_told: false, fails: false, inherited: None }),
        }
    }

    /// The cluster's address in the settings.
    pub(super) fn server(&self) -> &RedisUrl {
        self.settings.server()
    }

    /// For how many masters descriptors are reserved: before the first topology, the number of masters is unknown.
    pub(super) fn likely_masters(&self) -> usize {
        self.seeds.len().max(LIKELY_MASTERS)
    }

    /// The nodes of the channels that are not sharded, each with a range of slots.
    pub(crate) fn homes(&self) -> Vec<Home> {
        let topology = self.topology.borrow();
        let mut homes: Vec<Home> = Vec::new();
        for (slot, place) in (0..SLOTS.into()).filter_map(|slot| Some((slot, topology.home(slot)?))) {
            match homes.last_mut() {
                Some((_, last, before)) if *before == place && *last + 1 == slot => *last = slot,
                _ => homes.push((slot, slot, place)),
            }
        }
        homes
    }

    /// Keeps these channels at the nodes where another process had them, as far as those nodes exist.
    pub(crate) fn inherit(&self, homes: Vec<Home>) {
        let mut all = vec![None; SLOTS.into()];
        for (first, last, place) in homes {
            all.iter_mut().take(last.saturating_add(1)).skip(first).for_each(|home| *home = Some(place.clone()));
        }
        self.change(|state| state.inherited = Some(all));
    }

    /// Follows the topology, beginning with the current one.
    pub(super) fn topology(&self) -> watch::Receiver<Arc<Topology>> {
        let mut topology = self.topology.subscribe();
        topology.mark_changed();
        topology
    }

    /// A node contradicts the topology.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Until when the topology certainly held.
    pub(super) fn known_at(&self) -> Option<Instant> {
        self.change(|state| state.known_at)
    }

    /// Why no node knows the topology, or what the cluster reports as wrong.
    pub(super) fn fault(&self) -> Option<String> {
        let down = || "the cluster says that it is down".to_owned();
        let fault = self.change(|state| state.fault.clone().or_else(|| state.fails.then(down)));
        fault.or_else(|| {
            let lost = self.topology.borrow().owners.iter().filter(|owner| owner.is_none()).count();
            (lost > 0).then(|| format!("{lost} slots of the cluster have no owner"))
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the topology up to date, forever; the first worker that calls does so for all.
    pub(super) async fn watch(&self) {
        if self.is_watched.swap(true, Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let mut link = None;
        loop {
            let asked_at = Instant::now();
            let pause = match self.ask(&mut link).await {
                Ok(ranges) => {
                    self.adopt(&ranges, asked_at);
                    ASK
                }
                Err(error) => {
                    link = None;
                    self.complain(&error);
                    ASK_AGAIN
                }
            };
            // A request that came meanwhile is fulfilled by the same answer.
            if timeout(pause, self.doubt.notified()).await.is_ok() {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    fn complain(&self, error: &LinkError) {
        let was_told = self.change(|state| {
            state.fault = Some(error.to_string());
            std::mem::replace(&mut state.is_told, true)
        });
        if !was_told {
            tracing::warn!(
                %error,
                "no node of the Redis Cluster reports which node owns which slots ({error}): webws keeps asking"
            );
        } else {
            tracing::debug!(%error, "a node of the Redis Cluster does not report which node owns which slots: {error}");
        }
    }

    /// Asks the same node as before, or another one.
    async fn ask(&self, link: &mut Option<Link>) -> Result<Vec<Range>, LinkError> {
        if link.is_none() {
            let place = self.some_node();
            let settings = self.settings.at(place.clone());
            let greeted = settings.connect(Purpose::Topology, &|slow| self.complain(slow)).await?;
            let (connection, driver) = multiplex(greeted.transport).await?;
            *link = Some((place, connection, driver));
        }
        let Some((place, connection, driver)) = link else { return Err(LinkError::Closed) };
        let mut questions = Pipeline::new();
        questions.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let limit = self.settings.connect_timeout;
        let answers = tokio::select! {
            answers = timeout(limit, connection.send_packed_commands(&questions, 0, 2)) => answers,
            () = driver => return Err(LinkError::Closed),
        };
        let silent = |_| LinkError::Silent(format!("{}:{}", place.0, place.1), limit);
        let mut answers = answers.map_err(silent)?.map_err(LinkError::Ended)?.into_iter();
        let info: String = answers.next().and_then(|info| redis::from_redis_value(info).ok()).unwrap_or_default();
        let fails = info.contains("cluster_state:fail");
        // A node that has lost contact suspects all others, and knows an old topology. Nodes in contact agree on a dead
        // one, and suspect none any more. A wrong topology at the start is better than none.
        let suspects =
            info.lines().any(|line| line.starts_with("cluster_slots_pfail:") && line != "cluster_slots_pfail:0");
        if fails && suspects && !self.topology.borrow().nodes.is_empty() {
            return Err(LinkError::ClusterDown);
        }
        let slots = answers.next().unwrap_or(Value::Nil).extract_error().map_err(|error| {
            let is_single = error.to_string().contains("cluster support disabled");
            if is_single {
                LinkError::NoCluster(place.0.clone(), place.1)
            } else {
                LinkError::Refused(error, "its user needs +cluster|info and +cluster|slots")
            }
        })?;
        ranges(&slots, &place.0).ok_or(LinkError::NoTopology).inspect(|_| {
            self.change(|state| state.fails = fails);
        })
    }

    /// One of the masters or of the configured nodes.
    fn some_node(&self) -> HostPort {
        let topology = self.topology.borrow();
        let known = topology.nodes.iter().filter_map(|known_node| known_node.settings.place());
        let all: Vec<_> = known.chain(self.seeds.iter().cloned()).collect();
        all.get(fastrand::usize(..all.len().max(1))).cloned().unwrap_or_default()
    }

    fn adopt(&self, ranges: &[Range], asked_at: Instant) {
        let (was_told, old_until) = self.change(|state| {
            state.fault = None;
            (std::mem::take(&mut state.is_told), state.known_at.replace(asked_at))
        });
        if was_told {
            tracing::info!("the Redis Cluster again reports which node owns which slots");
        }
        let known = self.topology.borrow().clone();
        let (owners, version) = (vec![None; SLOTS.into()], known.version + 1);
        let mut topology = Topology { nodes: Vec::new(), homes: owners.clone(), owners, version, old_until };
        let mut places = HashMap::new();
        for (first, last, place) in ranges {
            let node = *places.entry(place).or_insert_with(|| {
                let old = known.nodes.iter().find(|known_node| known_node.settings.place().as_ref() == Some(place));
                topology.nodes.push(old.cloned().unwrap_or_else(|| self.node(place)));
                topology.nodes.len() - 1
            });
            topology.owners.iter_mut().take(last + 1).skip(*first).for_each(|owner| *owner = Some(node));
        }
        let inherited = self.change(|state| state.inherited.take());
        topology.homes = (0..SLOTS.into())
            .map(|slot| {
                let before = match &inherited {
                    Some(homes) => homes.get(slot).cloned().flatten(),
                    None => known.home(slot),
                };
                let home = topology
                    .nodes
                    .iter()
                    .position(|known_node| before.is_some() && known_node.settings.place() == before);
                home.or(topology.owners.get(slot).copied().flatten())
            })
            .collect();
        if topology.is_same(&known) {
            return;
        }
        let (masters, before) = (topology.masters(), known.masters());
        if masters == before {
            tracing::debug!("slots of the Redis Cluster have moved between known masters");
        } else {
            let masters = masters.join(" ");
            tracing::info!(masters, "the Redis Cluster's masters are {masters}");
        }
        self.topology.send_replace(Arc::new(topology));
    }

    fn node(&self, place: &HostPort) -> KnownNode {
        KnownNode::new(Arc::new(self.settings.at(place.clone())), self.workers)
    }
}

impl Topology {
    fn home(&self, slot: usize) -> Option<HostPort> {
        let node = self.homes.get(slot).copied().flatten()?;
        self.nodes.get(node)?.settings.place()
    }

    fn masters(&self) -> Vec<String> {
        let mut all: Vec<_> = self.nodes.iter().map(|known_node| known_node.server().to_string()).collect();
        all.sort();
        all
    }

    fn is_same(&self, other: &Self) -> bool {
        let owner = |topology: &Self, slot: Option<usize>| {
            slot.and_then(|node| topology.nodes.get(node)).and_then(|known_node| known_node.settings.place())
        };
        self.nodes.len() == other.nodes.len()
            && [(&self.owners, &other.owners), (&self.homes, &other.homes)].iter().all(|(ours, theirs)| {
                ours.len() == theirs.len() && ours.iter().zip(*theirs).all(|(a, b)| owner(self, *a) == owner(other, *b))
            })
    }
}

/// What `CLUSTER SLOTS` answers (<https://redis.io/docs/latest/commands/cluster-slots/>).
fn ranges(answer: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = answer else { return None };
    ranges.iter().map(|range| self::range(range, asked)).collect()
}

fn range(answer: &Value, asked: &str) -> Option<Range> {
    let Value::Array(range) = answer else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = range.as_slice() else { return None };
    let [endpoint, Value::Int(port), further @ ..] = master.as_slice() else { return None };
    let host = match text(endpoint) {
        // The node is set to announce a hostname, and has none: its address is in the metadata.
        Some("?") => further.get(1).and_then(address_in).unwrap_or(asked),
        Some(host) if !host.is_empty() => host.trim_matches(['[', ']']),
        // The endpoint is unknown, or the node does not know its own address: use the address that was asked.
        _ => asked,
    };
    let last = usize::try_from(*last).ok().filter(|last| *last < SLOTS.into())?;
    // Port 0 belongs to a node without TLS among nodes with TLS, or the reverse.
    let port = u16::try_from(*port).ok().filter(|port| *port != 0)?;
    Some((usize::try_from(*first).ok()?, last, (host.to_owned(), port)))
}

/// The `ip` among a node's metadata: pairs in RESP2, a map in RESP3.
fn address_in(metadata: &Value) -> Option<&str> {
    let found = match metadata {
        Value::Map(pairs) => pairs.iter().find(|(name, _)| text(name) == Some("ip")).map(|(_, value)| value),
        Value::Array(all) => all.chunks(2).find_map(|pair| match pair {
            [name, value] if text(name) == Some("ip") => Some(value),
            _ => None,
        }),
        _ => None,
    };
    found.and_then(text).filter(|address| !address.is_empty())
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_comes_late_learns_what_is_known() {
        use crate::config::RedisConfig;
        let settings = Settings::try_new(&RedisUrl::default(), &RedisConfig::default(), &Default::default()).unwrap();
        let cluster = Cluster::new(Arc::new(settings), Vec::new(), Vec::new(), 2);
        let all_at = |host: &str| [(0, usize::from(SLOTS) - 1, (host.to_owned(), 7000))];
        cluster.adopt(&all_at("a"), Instant::now());
        let mut topology = cluster.topology();
        topology.changed().await.unwrap();
        assert_eq!(topology.borrow_and_update().masters(), ["redis://a:7000"]);
        cluster.adopt(&all_at("a"), Instant::now());
        assert!(!topology.has_changed().unwrap(), "nothing has changed");
        cluster.adopt(&all_at("b"), Instant::now());
        assert!(topology.has_changed().unwrap() && cluster.fault().is_none());
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn owner(first: i64, last: i64, endpoint: Value, port: i64, metadata: Value) -> Value {
        let node = Value::Array(vec![endpoint, Value::Int(port), bulk("id"), metadata]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node])
    }

    fn told(host: &str, port: u16) -> (String, u16) {
        (host.to_owned(), port)
    }

    #[test]
    fn the_owners_of_slots_are_read() {
        let none = || Value::Array(vec![]);
        let answer = Value::Array(vec![
            owner(0, 99, bulk("10.0.0.1"), 7000, none()),
            owner(100, 16_383, bulk("10.0.0.2"), 7001, none()),
        ]);
        assert_eq!(
            ranges(&answer, "a.example"),
            Some(vec![(0, 99, told("10.0.0.1", 7000)), (100, 16_383, told("10.0.0.2", 7001))])
        );
        for wrong in [
            owner(0, 16_384, bulk("a"), 1, none()),
            owner(0, 1, bulk("a"), 70_000, none()),
            owner(0, 1, bulk("a"), 0, none()),
            owner(0, 1, Value::BulkString(b"\xff".to_vec()), -1, none()),
            bulk("x"),
        ] {
            assert_eq!(ranges(&Value::Array(vec![wrong]), ""), None);
        }
    }

    #[test]
    fn every_form_of_an_endpoint_is_read() {
        let pairs = |name, value| Value::Array(vec![bulk(name), bulk(value)]);
        let map = |name, value| Value::Map(vec![(bulk(name), bulk(value))]);
        for (endpoint, metadata, host) in [
            (bulk("10.0.0.1"), pairs("hostname", "r.example"), "10.0.0.1"),
            (bulk("r.example"), pairs("ip", "10.0.0.1"), "r.example"),
            (Value::SimpleString("r.example".to_owned()), map("ip", "10.0.0.1"), "r.example"),
            (bulk("2001:db8::1"), Value::Array(vec![]), "2001:db8::1"),
            (bulk("[2001:db8::1]"), Value::Array(vec![]), "2001:db8::1"),
            (Value::Nil, pairs("ip", "10.0.0.1"), "asked.example"),
            (bulk(""), Value::Array(vec![]), "asked.example"),
            (bulk("?"), pairs("ip", "10.0.0.1"), "10.0.0.1"),
            (bulk("?"), map("ip", "2001:db8::1"), "2001:db8::1"),
            (bulk("?"), map("ip", ""), "asked.example"),
            (bulk("?"), Value::Nil, "asked.example"),
        ] {
            let answer = Value::Array(vec![owner(0, 16_383, endpoint.clone(), 7001, metadata)]);
            assert_eq!(ranges(&answer, "asked.example"), Some(vec![(0, 16_383, told(host, 7001))]), "{endpoint:?}");
        }
        // Before Redis 7 there is no metadata.
        let node = Value::Array(vec![bulk("?"), Value::Int(1)]);
        let answer = Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1), node])]);
        assert_eq!(ranges(&answer, "a"), Some(vec![(0, 1, told("a", 1))]));
    }
}
