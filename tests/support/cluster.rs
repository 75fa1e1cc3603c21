//! A real Redis Cluster of its own for a test: masters, replicas, and somebody who moves slots.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::redis::Redis;
use super::{START, free_port, ledger, until};

/// Between two numbers of a count.
const STEP: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Cluster {
    /// The masters first.
    pub(crate) nodes: Vec<Redis>,
}

/// Slots that are moving.
#[derive(Debug)]
pub(crate) struct Resharding {
    command: Command,
    child: Child,
    since: Instant,
}

impl Resharding {
    fn start(mut command: Command) -> Resharding {
        let child = command.spawn().unwrap();
        Resharding { command, child, since: Instant::now() }
    }

    pub(crate) fn is_done(&mut self) -> bool {
        match self.child.try_wait().unwrap() {
            None => false,
            Some(status) if status.success() => true,
            // It begins only when all nodes agree at that very moment.
            Some(status) => {
                assert!(self.since.elapsed() < START, "redis-cli --cluster reshard: {status}");
                self.child = self.command.spawn().unwrap();
                false
            }
        }
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
        let owns = |line: &&str| {
            let ranges = line.split(' ').skip(8).filter(|range| !range.starts_with('['));
            ranges
                .filter_map(|range| {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
                })
                .any(|range| range.contains(&slot))
        };
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

    /// Moves all slots of a node but so many while all goes on: without any it is a master no more.
    pub(crate) async fn reshard(&self, from: usize, to: usize, but: usize) -> Resharding {
        self.settled().await;
        let ranges = self.told(&self.nodes[from], &["CLUSTER", "SLOTS"]);
        let ranges: Vec<_> = ranges.lines().filter(|line| !line.is_empty()).collect();
        let port = self.nodes[from].port().to_string();
        let own = ranges.windows(4).filter(|range| range[3] == port && range[2] == "127.0.0.1");
        let count = |range: &[&str]| Some(range[1].parse::<usize>().ok()? + 1 - range[0].parse::<usize>().ok()?);
        let slots = own.filter_map(count).sum::<usize>() - but;
        let [from, to] = [from, to].map(|node| self.told(&self.nodes[node], &["CLUSTER", "MYID"]).trim().to_owned());
        let (place, slots) = (place(&self.nodes[0]), slots.to_string());
        let words = ["--cluster", "reshard", &place, "--cluster-from", &from, "--cluster-to", &to];
        let mut command = Command::new("redis-cli");
        command.args(words).args(["--cluster-slots", &slots, "--cluster-yes"]).stdout(Stdio::null());
        Resharding::start(command)
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

async fn count(mut urls: Vec<String>, channel: String, stop: watch::Receiver<bool>) -> Vec<SystemTime> {
    let (mut sent, mut at) = (Vec::new(), 0);
    let mut link: Option<MultiplexedConnection> = None;
    while !*stop.borrow() {
        sleep(STEP).await;
        let now = SystemTime::now();
        let text = ledger::text(sent.len(), now);
        let publish = async || {
            let mut open = match link.clone() {
                Some(open) => open,
                None => connect(&urls[at]).await?,
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

async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(Duration::from_millis(500)));
    Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

fn place(node: &Redis) -> String {
    format!("127.0.0.1:{}", node.port())
}

fn cli(words: &[&str]) {
    let output = Command::new("redis-cli").args(words).output().unwrap();
    assert!(output.status.success(), "redis-cli {words:?}: {}", String::from_utf8_lossy(&output.stdout));
}
