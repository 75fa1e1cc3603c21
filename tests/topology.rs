//! Promise: a Redis that others watch over may change places, and nobody's WebSocket notices.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{Process, SOON, START, free_port, lasting, until};

const PATH: &str = "/webws?channel=%22a%22";
/// From the master's end to the first text through the new one: the Sentinels need half a second to
/// notice and some more to agree.
const FAILOVER: Duration = Duration::from_secs(15);

#[tokio::test]
async fn messages_wait_for_the_new_master_when_the_old_one_dies() {
    let mut stage = Stage::start().await;
    stage.master.kill();
    let killed = Instant::now();
    for n in 0..5 {
        stage.witness.client.send_text(&format!("{n} ")).await;
    }
    for n in 0..5 {
        stage.witness.await_text(&format!("{n} a"), FAILOVER.saturating_sub(killed.elapsed())).await;
    }
    println!("Sentinel: the first text {:?} after the master's death", killed.elapsed());
    assert_eq!(stage.witness.texts, ["0 a", "1 a", "2 a", "3 a", "4 a"]);
    stage.goes_on(&stage.replica_port()).await;
}

#[tokio::test]
async fn a_master_that_is_replaced_and_lives_on_is_left() {
    let mut stage = Stage::start().await;
    stage.sentinels.command(&["SENTINEL", "FAILOVER", "main"]);
    stage.goes_on(&stage.replica_port()).await;
    assert_eq!(stage.master.numsub(b"chat:a").await, 0, "nobody listens to the old master");
}

#[tokio::test]
async fn sentinels_that_are_away_or_know_no_such_master_are_reported() {
    let stage = Stage::start().await;
    let dead = free_port();
    let broker = format!("redis+sentinel://127.0.0.1:{dead},127.0.0.1:{}/main", stage.sentinels.ports[0]);
    let webws = Webws::builder().broker(&broker).workers(1).start().await;
    assert!(upgrades_within(&webws.target(), PATH, SOON).await, "one living Sentinel is enough");
    for (port, name, why) in [(dead, "main", "refused"), (stage.sentinels.ports[0], "other", "a master named 'other'")]
    {
        let broker = format!("redis+sentinel://127.0.0.1:{port}/{name}");
        let webws = Webws::builder().broker(&broker).workers(1).start().await;
        until("it is said", SOON, async || webws.warns_of(why)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_no_redis_is_reported_in_one_sentence() {
    let mut all = JoinSet::new();
    for (answer, why) in [
        // Of a web server; of a port that wants TLS; of something that refuses every command.
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak Redis' protocol"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "write rediss://"),
        (b"-ERR no such command\r\n", "no such command"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = format!("redis://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut asked = [0; 1024];
                    while let Ok(1..) = client.read(&mut asked).await {
                        if client.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        all.spawn(async move {
            let webws = Webws::builder().broker(&broker).workers(1).start().await;
            until("it is said", SOON, async || webws.warns_of(why)).await;
            assert!(!upgrades_within(&webws.target(), PATH, SOON).await);
            assert!(webws.entries().len() < 6, "{}", webws.log());
        });
    }
    all.join_all().await;
}

#[tokio::test]
async fn messages_that_redis_refuses_for_a_moment_are_not_lost() {
    let redis = Redis::start_with(&["--busy-reply-threshold", "20"]).await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    // A script that does not end: everybody else is told BUSY.
    let port = redis.port().to_string();
    let words = ["-p", &port, "EVAL", "while true do end", "0"];
    let mut script = Command::new("redis-cli").args(words).stdout(Stdio::null()).spawn().unwrap();
    let told = || Command::new("redis-cli").args(["-p", &port, "PING"]).output().unwrap().stdout;
    until("Redis is busy", SOON, async || told().starts_with(b"BUSY")).await;
    for n in 0..20 {
        witness.client.send_text(&format!("{n} ")).await;
    }
    let target = webws.target();
    let joining = tokio::spawn(async move { Witness::join(&target, "/webws?channel=%22new%22").await });
    lasting(Duration::from_secs(1)).await;
    assert_eq!(witness.texts, [""; 0]);
    witness.assert_open();
    Command::new("redis-cli").args(["-p", &port, "SCRIPT", "KILL"]).output().unwrap();
    script.wait().unwrap();
    witness.await_texts(20, SOON).await;
    let expected: Vec<_> = (0..20).map(|n| format!("{n} a")).collect();
    assert_eq!(witness.texts, expected);
    let mut other = joining.await.unwrap();
    assert_eq!(redis.publish(b"chat:new", b"heard ").await, 1);
    other.await_text("heard new", SOON).await;
    assert_eq!(webws.outages(), [0; 0]);
}

#[tokio::test]
async fn a_name_that_moves_to_another_address_is_followed() {
    let (mut old, new) = (Redis::start().await, Redis::start().await);
    let way = Proxy::start_on(([127, 0, 0, 2], old.port()).into(), new.port()).await;
    let broker = format!("redis://redis.test:{}", old.port());
    let webws = Webws::builder().broker(&broker).workers(1).hosts("127.0.0.1 redis.test\n").start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    webws.set_hosts("127.0.0.2 redis.test\n");
    old.kill();
    witness.client.send_text("waits for the new one ").await;
    witness.await_text("waits for the new one a", 2 * SOON).await;
    assert_eq!(new.publish(b"chat:a", b"is there ").await, 1);
    witness.await_text("is there a", SOON).await;
    witness.assert_open();
    drop(way);
}

#[tokio::test]
async fn channels_are_spread_over_several_servers_and_one_that_dies_takes_only_its_own_along() {
    let (mut first, second) = (Redis::start().await, Redis::start().await);
    let broker = format!("{} {}", first.url(), second.url());
    let webws = Webws::builder().broker(&broker).workers(2).start().await;
    let mut names = ["zhang", "li", "c0", "c1", "c2", "c3"].map(|name| (name, node_of(name, 2)));
    names.sort_by_key(|(_, node)| *node);
    assert!(names.iter().any(|(_, node)| *node == 0) && names.iter().any(|(_, node)| *node == 1), "{names:?}");
    let mut witnesses = Vec::new();
    for (name, node) in names {
        let mut witness = Witness::join(&webws.target(), &format!("/webws?channel=%22{name}%22")).await;
        let channel = format!("chat:{name}");
        let counts = [first.numsub(channel.as_bytes()).await, second.numsub(channel.as_bytes()).await];
        assert_eq!(counts.map(|count| count > 0), [node == 0, node == 1], "{name}");
        witness.client.send_text("there and back ").await;
        witness.await_text(&format!("there and back {name}"), SOON).await;
        witnesses.push((name, node, witness));
    }
    first.has_answered().await;
    first.kill();
    until("it is noticed", SOON, async || !webws.outages().is_empty()).await;
    for (name, node, witness) in &mut witnesses {
        witness.client.send_text("meanwhile ").await;
        if *node == 1 {
            witness.await_text(&format!("meanwhile {name}"), SOON).await;
        }
    }
    first.start_again().await;
    for (name, _, witness) in &mut witnesses {
        witness.await_text(&format!("meanwhile {name}"), 2 * SOON).await;
        assert_eq!(witness.texts.len(), 2, "{:?}", witness.texts);
        witness.assert_open();
    }
}

/// Where `chat:NAME` lives, as the README tells producers to compute it.
#[expect(clippy::cast_possible_truncation, reason = "never more than `nodes`, or a little")]
fn node_of(name: &str, nodes: i64) -> i64 {
    let bytes = format!("chat:{name}").into_bytes();
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let mut key = bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    let (mut bucket, mut next) = (-1, 0);
    while next < nodes {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * (f64::from(1_u32 << 31) / ((key >> 33) + 1) as f64)) as i64;
    }
    bucket
}

/// A master, a replica, three Sentinels, and a client.
struct Stage {
    master: Redis,
    replica: Redis,
    sentinels: Sentinels,
    webws: Webws,
    witness: Witness,
}

impl Stage {
    async fn start() -> Stage {
        let master = Redis::start().await;
        let of = format!("127.0.0.1 {}", master.port());
        let replica = Redis::start_with(&["--replicaof", &of, "--repl-diskless-sync-delay", "0"]).await;
        let sentinels = Sentinels::start(master.port()).await;
        let webws = Webws::builder().broker(&sentinels.url()).workers(1).start().await;
        let witness = Witness::join(&webws.target(), PATH).await;
        assert_eq!(master.numsub(b"chat:a").await, 1);
        Stage { master, replica, sentinels, webws, witness }
    }

    fn replica_port(&self) -> String {
        self.replica.port().to_string()
    }

    /// Messages flow through the one that was the replica.
    async fn goes_on(&mut self, port: &str) {
        until("it is subscribed there", FAILOVER, async || self.replica.numsub(b"chat:a").await == 1).await;
        self.replica.publish(b"chat:a", b"from the new master ").await;
        self.witness.await_text("from the new master a", SOON).await;
        self.witness.client.send_text("back ").await;
        self.witness.await_text("back a", SOON).await;
        self.witness.assert_open();
        let now = self.sentinels.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        assert!(now.contains(port), "{now}\n{}", self.webws.log());
    }
}

/// Three Sentinels of a master, named `main`.
pub(crate) struct Sentinels {
    ports: Vec<u16>,
    _processes: Vec<Process>,
    _dir: TempDir,
}

impl Sentinels {
    /// Three that watch the master at `port` and know each other and its replica.
    pub(crate) async fn start(port: u16) -> Sentinels {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let processes = ports.iter().map(|own| {
            let file = dir.path().join(format!("{own}.conf"));
            let settings = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\nlogfile {own}.log\n\
                 sentinel monitor main 127.0.0.1 {port} 2\nsentinel down-after-milliseconds main 500\n\
                 sentinel failover-timeout main 5000\n",
                dir.path().display()
            );
            std::fs::write(&file, settings).unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
            Process::spawn(&mut command, Signal::SIGKILL, "apt-get install redis-server")
        });
        let sentinels = Sentinels { _processes: processes.collect(), ports, _dir: dir };
        let is_complete = async || {
            let state = sentinels.command(&["SENTINEL", "MASTER", "main"]);
            let count = |name: &str| state.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
            count("num-slaves").as_deref() == Some("1") && count("num-other-sentinels").as_deref() == Some("2")
        };
        until("the Sentinels know all", START, is_complete).await;
        sentinels
    }

    /// The broker's address for webws.
    pub(crate) fn url(&self) -> String {
        let places: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/main", places.join(","))
    }

    /// What the first says, a line a value.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let port = self.ports[0].to_string();
        let told = Command::new("redis-cli").args(["-p", &port]).args(words).output().unwrap();
        String::from_utf8_lossy(&told.stdout).into_owned()
    }
}
