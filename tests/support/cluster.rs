//! A real Redis Cluster of its own for a test: masters, replicas, and somebody who moves slots.

use std::ops::RangeInclusive;
use std::process::Command;
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::redis::Redis;
use super::{START, free_port, ledger, until};

/// Between two numbers of a count.
const STEP: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Cluster {
    /// The masters first.
    pub(crate) nodes: Vec<Redis>,
}

/// A node that does not answer within this time is taken for dead.
const ANSWER: Duration = Duration::from_millis(500);

/// Slots that move together. Chosen: a node writes its configuration to the disk after each command or batch.
const BATCH: usize = 256;

/// Slots that are moving, as `redis-cli --cluster reshard` moves them, which takes a minute for a node's slots.
#[derive(Debug)]
pub(crate) struct Resharding(JoinHandle<()>);

impl Resharding {
    pub(crate) fn is_done(&self) -> bool {
        self.0.is_finished()
    }
}

impl Cluster {
    /// `masters` with `replicas` each; a node that is silent for two seconds is dead.
    pub(crate) async fn start(masters: usize, replicas: usize) -> Cluster {
        let mut nodes = Vec::new();
        for _ in 0..masters * (1 + replicas) {
            nodes.push(Cluster::node().await);
        }
        let cluster = Cluster { nodes };
        let places: Vec<_> = cluster.nodes.iter().map(place).collect();
        let mut words = vec!["--cluster", "create"];
        words.extend(places.iter().map(String::as_str));
        let replicas = replicas.to_string();
        words.extend(["--cluster-replicas", &replicas, "--cluster-yes"]);
        cli(&words);
        cluster.agrees(masters).await;
        let is_synced = async || {
            cluster.nodes.iter().all(|node| {
                let told = cluster.told(node, &["INFO", "replication"]);
                !told.contains("role:slave") || told.contains("master_link_status:up")
            })
        };
        until("the replicas are ready", START, is_synced).await;
        cluster
    }

    /// A node that belongs to no cluster yet.
    pub(crate) async fn node() -> Redis {
        let bus = free_port().to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"];
        Redis::start_with(&settings).await
    }

    /// Its address for webws, of which the first node must be up.
    pub(crate) fn url(&self) -> String {
        format!("redis+cluster://{}", place(&self.nodes[0]))
    }

    /// Waits until all nodes that are up agree that all is well with that many masters.
    pub(crate) async fn agrees(&self, masters: usize) {
        let size = format!("cluster_size:{masters}");
        let is_well = async || {
            let told: Vec<_> = self.nodes.iter().map(|node| self.told(node, &["CLUSTER", "INFO"])).collect();
            let up: Vec<_> = told.iter().filter(|told| told.contains("cluster_state")).collect();
            !up.is_empty() && up.iter().all(|told| told.contains("cluster_state:ok") && told.contains(&size))
        };
        until("the cluster agrees", START, is_well).await;
    }

    /// What a node says, a line a value; nothing when it is down.
    #[expect(clippy::unused_self, reason = "it is a node of this one")]
    pub(crate) fn told(&self, node: &Redis, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &node.port().to_string()]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The node that owns the slot of `channel`, as the last node says.
    pub(crate) fn owner(&self, channel: &str) -> usize {
        let witness = self.nodes.iter().rev().find(|node| self.told(node, &["PING"]).contains("PONG")).unwrap();
        let slot: u16 = self.told(witness, &["CLUSTER", "KEYSLOT", channel]).trim().parse().unwrap();
        let slots = self.told(witness, &["CLUSTER", "NODES"]);
        let owns = |line: &&str| ranges(line).any(|range| range.contains(&slot));
        let line = slots.lines().find(owns).unwrap_or_else(|| panic!("nobody owns {slot}:\n{slots}"));
        self.nodes.iter().position(|node| line.contains(&format!(":{}@", node.port()))).unwrap()
    }

    /// Waits until all nodes agree on who owns what, and none is about to change that.
    pub(crate) async fn settled(&self) {
        let is_settled = async || {
            let check = ["--cluster", "check", &place(&self.nodes[0])];
            Command::new("redis-cli").args(check).output().unwrap().status.success()
        };
        until("the cluster is settled", START, is_settled).await;
    }

    /// Moves all slots of a node but so many while all goes on. A node without any becomes a replica.
    pub(crate) async fn reshard(&self, from: usize, to: usize, but: usize) -> Resharding {
        self.settled().await;
        let known = self.told(&self.nodes[from], &["CLUSTER", "NODES"]);
        let own = known.lines().find(|line| line.contains("myself")).unwrap();
        let mut slots: Vec<_> = ranges(own).flatten().collect();
        slots.truncate(slots.len() - but);
        let ids = [from, to].map(|node| self.told(&self.nodes[node], &["CLUSTER", "MYID"]).trim().to_owned());
        // The new owner is told first.
        let mut masters = vec![connect(&self.nodes[to].url(), START).await.unwrap()];
        masters.push(connect(&self.nodes[from].url(), START).await.unwrap());
        for (index, node) in self.nodes.iter().enumerate() {
            if index != from && index != to && self.told(node, &["ROLE"]).contains("master") {
                masters.push(connect(&node.url(), START).await.unwrap());
            }
        }
        Resharding(tokio::spawn(move_slots(slots, masters, ids)))
    }

    /// How many connections have SSUBSCRIBEd to `channel` at a node.
    pub(crate) fn shard_subscribers(&self, node: usize, channel: &str) -> usize {
        let told = self.told(&self.nodes[node], &["PUBSUB", "SHARDNUMSUB", channel]);
        told.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_default()
    }

    /// Counts aloud on a sharded channel until it is told to stop; returns when each number was taken.
    pub(crate) fn count(&self, channel: &str, stop: watch::Receiver<bool>) -> JoinHandle<Vec<SystemTime>> {
        let urls: Vec<_> = self.nodes.iter().map(Redis::url).collect();
        tokio::spawn(count(urls, channel.to_owned(), stop))
    }
}

/// The slots that a line of CLUSTER NODES names, without those that are moving.
fn ranges(line: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    line.split(' ').skip(8).filter(|range| !range.starts_with('[')).filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse().ok()?)
    })
}

/// `masters` has the new owner, the old one, and the others; `ids` are the old owner's and the new one's.
async fn move_slots(slots: Vec<u16>, mut masters: Vec<MultiplexedConnection>, [from, to]: [String; 2]) {
    for slots in slots.chunks(BATCH) {
        set_slots(&mut masters[0], slots, ["IMPORTING", &from]).await;
        set_slots(&mut masters[1], slots, ["MIGRATING", &to]).await;
        // Clients meet slots that are on their way.
        sleep(STEP).await;
        for master in &mut masters {
            set_slots(master, slots, ["NODE", &to]).await;
        }
    }
}

async fn set_slots(master: &mut MultiplexedConnection, slots: &[u16], state: [&str; 2]) {
    let mut pipeline = ::redis::pipe();
    for slot in slots {
        pipeline.cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(&state).ignore();
    }
    pipeline.exec_async(master).await.unwrap();
}

async fn count(mut urls: Vec<String>, channel: String, stop: watch::Receiver<bool>) -> Vec<SystemTime> {
    let (mut sent, mut at) = (Vec::new(), 0);
    let mut link: Option<MultiplexedConnection> = None;
    let mut pace = interval(STEP);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        let now = SystemTime::now();
        let text = ledger::text(sent.len(), now);
        let publish = async || {
            let mut open = match link.clone() {
                Some(open) => open,
                None => connect(&urls[at], ANSWER).await?,
            };
            ::redis::cmd("SPUBLISH").arg(&channel).arg(text).query_async::<i64>(&mut open).await?;
            Ok::<_, RedisError>(open)
        };
        match publish().await {
            Ok(open) => {
                sent.push(now);
                link = Some(open);
            }
            // It may have been taken: the number is not used again.
            Err(error) if error.is_timeout() => {
                sent.push(now);
                (link, at) = (None, (at + 1) % urls.len());
            }
            Err(error) if error.redirect_node().is_some() => {
                let url = format!("redis://{}", error.redirect_node().unwrap().0);
                at = urls.iter().position(|known| *known == url).unwrap_or(urls.len());
                if at == urls.len() {
                    urls.push(url);
                }
                link = None;
            }
            Err(_) => (link, at) = (None, (at + 1) % urls.len()),
        }
    }
    sent
}

/// A link whose commands are answered within `answer`.
async fn connect(url: &str, answer: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(ANSWER)).set_response_timeout(Some(answer));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

fn place(node: &Redis) -> String {
    format!("127.0.0.1:{}", node.port())
}

fn cli(words: &[&str]) {
    let output = Command::new("redis-cli").args(words).output().unwrap();
    assert!(output.status.success(), "redis-cli {words:?}: {}", String::from_utf8_lossy(&output.stdout));
}
