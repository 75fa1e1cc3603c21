//! Promise: in a Redis Cluster channels are where their slots are, and whatever the cluster does with
//! those, nobody goes deaf, nothing comes twice or out of order, and what is missing lies in a gap
//! that was reported.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;

use crate::support::cluster::Cluster;
use crate::support::ledger;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, free_port, until};

/// A node is dead after two seconds; then the others agree on that, elect, and tell.
const FAILOVER: Duration = Duration::from_secs(20);

const PLAIN: &str = "path = \"/webws\"\nidle_timeout = \"0s\"";
const SHARDED: &str = "path = \"/live\"\nprefix = \"live:\"\nsharded = true\nidle_timeout = \"0s\"\nwire = \"plain\"";

async fn webws_at(broker: &str, workers: usize) -> Webws {
    Webws::builder().broker(broker).workers(workers).endpoint_toml(PLAIN).endpoint_toml(SHARDED).start().await
}

async fn join(webws: &Webws, path: &str, name: &str) -> Witness {
    Witness::join(&webws.target(), &format!("{path}?channel=%22{name}%22")).await
}

#[tokio::test]
async fn every_channel_is_heard_across_processes_and_sharded_ones_load_only_their_owner() {
    let cluster = Cluster::start(3, 0).await;
    // The least rights, as the README has them.
    let least = "on >pw resetkeys resetchannels &chat:* &live:* &webws:probe:* -@all +subscribe +unsubscribe \
        +publish +ping +hello +auth +client|setname +client|info \
        +ssubscribe +sunsubscribe +spublish +cluster|slots +cluster|info";
    let words: Vec<_> = ["ACL", "SETUSER", "web"].into_iter().chain(least.split_whitespace()).collect();
    for node in &cluster.nodes {
        node.command(&words).await;
    }
    let broker = cluster.url().replace("://", "://web:pw@");
    let (one, other) = (webws_at(&broker, 2).await, webws_at(&broker, 1).await);
    let mut owners = [0; 3];
    for n in 0..12 {
        for (path, prefix) in [("/webws", "chat:"), ("/live", "live:")] {
            let name = format!("c{n}");
            let (mut here, mut there) = (join(&one, path, &name).await, join(&other, path, &name).await);
            let seen = |text: &str| if path == "/live" { text.to_owned() } else { format!("{text}{name}") };
            here.client.send_text("from here ").await;
            there.client.send_text("from there ").await;
            for witness in [&mut here, &mut there] {
                witness.await_texts(2, SOON).await;
                witness.texts.sort();
                assert_eq!(witness.texts, [seen("from here "), seen("from there ")]);
            }
            let channel = format!("{prefix}{name}");
            let owner = cluster.owner(&channel);
            if path == "/live" {
                owners[owner] += 1;
                let at = [0, 1, 2].map(|node| cluster.shard_subscribers(node, &channel));
                assert!(at[owner] >= 2 && at.iter().sum::<usize>() == at[owner], "{channel}: {at:?}, owner {owner}");
                cluster.told(&cluster.nodes[owner], &["SPUBLISH", &channel, "from outside "]);
            } else {
                // Any node takes what is not sharded.
                cluster.told(&cluster.nodes[(owner + 1) % 3], &["PUBLISH", &channel, "from outside "]);
            }
            here.await_text(&seen("from outside "), SOON).await;
            there.await_text(&seen("from outside "), SOON).await;
        }
    }
    assert!(owners.iter().all(|count| *count > 0), "{owners:?}: too few channels for this test");
    assert_eq!(one.warnings(), [0; 0]);
    let is_gone = async || (0..3).all(|node| cluster.shard_subscribers(node, "live:c0") == 0);
    until("what nobody wants is unsubscribed", SOON, is_gone).await;
}

#[tokio::test]
async fn slots_that_move_under_traffic_take_their_subscriptions_along() {
    let cluster = Cluster::start(3, 0).await;
    let webws = webws_at(&cluster.url(), 1).await;
    let mut stage = Stage::start(&cluster, &webws).await;
    let mut speaker = join(&webws, "/live", "speaker").await;
    let mut plain = join(&webws, "/webws", "plain").await;
    let mut said = 0;
    let home = cluster.owner("live:ledger");
    for (from, to) in [(home, (home + 1) % 3), ((home + 1) % 3, home)] {
        // All that it has: the ledger's and, when it lives there, the speaker's.
        let resharding = cluster.reshard(from, to, 1).await;
        while !resharding.is_done() {
            speaker.client.send_text(&said.to_string()).await;
            plain.client.send_text(&format!("{said} ")).await;
            said += 1;
            // Read all the time: who reads nothing for long is ended.
            for witness in [&mut speaker, &mut plain, &mut stage.witness] {
                while witness.take(Duration::from_millis(3)).await {}
            }
        }
        assert_eq!(cluster.owner("live:ledger"), to);
        stage.flows_again().await;
        assert!(
            cluster.shard_subscribers(to, "live:ledger") > 0 && cluster.shard_subscribers(from, "live:ledger") == 0
        );
    }
    // What clients send waits for its slot, and their own text comes back.
    speaker.await_texts(said, SOON).await;
    plain.await_texts(said, SOON).await;
    for (n, (sharded, plain)) in speaker.texts.iter().zip(&plain.texts).enumerate() {
        assert_eq!((sharded.clone(), plain.clone()), (n.to_string(), format!("{n} plain")), "of {said}");
    }
    let lost = stage.lost(&webws).await;
    assert!(webws.outages().is_empty(), "lost {lost}\n{}", webws.log());
}

#[tokio::test]
async fn a_master_that_dies_is_followed_by_its_replica() {
    let mut cluster = Cluster::start(3, 1).await;
    let victim = cluster.owner("live:ledger");
    let alive = (0..3).find(|node| *node != victim).unwrap();
    let broker = format!("redis+cluster://127.0.0.1:{}", cluster.nodes[alive].port());
    let webws = webws_at(&broker, 1).await;
    let mut stage = Stage::start(&cluster, &webws).await;
    let mut plain = join(&webws, "/webws", "ledger").await;
    cluster.nodes[victim].kill();
    let killed = std::time::Instant::now();
    stage.witness.client.send_text("while it is dead").await;
    stage.witness.await_text("while it is dead", FAILOVER).await;
    println!("cluster: the first text {:?} after the master's death", killed.elapsed());
    cluster.agrees(3).await;
    stage.flows_again().await;
    plain.client.send_text("and all goes on ").await;
    plain.await_text("and all goes on ledger", FAILOVER).await;
    until("the gap is reported", SOON, async || !webws.gaps().is_empty()).await;
    until("it is ready again", SOON, async || webws.is_ready().await).await;
    // It comes back as a replica, and is nobody's business.
    cluster.nodes[victim].start_again().await;
    let is_replica = async || cluster.told(&cluster.nodes[victim], &["ROLE"]).contains("slave");
    until("it is a replica", FAILOVER, is_replica).await;
    stage.flows_again().await;
    assert!(webws.is_ready().await);
    let clients = cluster.told(&cluster.nodes[victim], &["CLIENT", "LIST"]);
    assert!(clients.contains("cmd=client") && !clients.contains("name=webws-subscriber"), "{clients}");
    stage.lost(&webws).await;
}

#[tokio::test]
async fn a_promoted_replica_and_nodes_that_leave_and_join_are_followed() {
    let mut cluster = Cluster::start(3, 1).await;
    let webws = webws_at(&cluster.url(), 1).await;
    let mut stage = Stage::start(&cluster, &webws).await;
    let old = cluster.owner("live:ledger");
    let id = cluster.told(&cluster.nodes[old], &["CLUSTER", "MYID"]);
    let is_its_replica = |node: &&Redis| {
        let own = cluster.told(node, &["CLUSTER", "NODES"]);
        own.lines().any(|line| line.contains("myself,slave") && line.contains(id.trim()))
    };
    let replica = cluster.nodes.iter().find(is_its_replica).unwrap();
    let failover = async || cluster.told(replica, &["CLUSTER", "FAILOVER"]).contains("OK");
    until("the replica is ready for it", FAILOVER, failover).await;
    until("it has the slots", FAILOVER, async || cluster.owner("live:ledger") != old).await;
    stage.flows_again().await;
    // A new node takes everything from whoever has the ledger.
    cluster.settled().await;
    let new = Cluster::node().await;
    let (place, known) = (format!("127.0.0.1:{}", new.port()), format!("127.0.0.1:{}", cluster.nodes[0].port()));
    let added =
        std::process::Command::new("redis-cli").args(["--cluster", "add-node", &place, &known]).output().unwrap();
    assert!(added.status.success(), "{added:?}");
    cluster.nodes.push(new);
    cluster.agrees(3).await;
    let from = cluster.owner("live:ledger");
    let to = cluster.nodes.len() - 1;
    let resharding = cluster.reshard(from, to, 0).await;
    while !resharding.is_done() {
        stage.witness.take(Duration::from_millis(10)).await;
    }
    stage.flows_again().await;
    stage.lost(&webws).await;
    let away = format!("port={}", cluster.nodes[from].port());
    let has_left = async || {
        let clients = cluster.told(&cluster.nodes[from], &["CLIENT", "LIST"]);
        clients.contains("cmd=client") && !clients.contains("webws-subscriber") && !clients.contains("webws-publisher")
    };
    until(&format!("nobody is at {away}"), SOON, has_left).await;
}

#[tokio::test]
async fn a_new_process_takes_over_in_a_cluster_without_a_seam() {
    let cluster = Cluster::start(3, 0).await;
    let builder = Webws::builder().broker(&cluster.url()).workers(2).endpoint_toml(PLAIN).endpoint_toml(SHARDED);
    let webws = builder.exchangeable().start().await;
    let mut stage = Stage::start(&cluster, &webws).await;
    let mut plain = Vec::new();
    for n in 0..6 {
        plain.push((0, join(&webws, "/webws", &format!("p{n}")).await));
    }
    // Channels that are not sharded are not where their slots are any more.
    let home = cluster.owner("live:ledger");
    let resharding = cluster.reshard(home, (home + 1) % 3, 1).await;
    while !resharding.is_done() {
        stage.witness.take(Duration::from_millis(10)).await;
    }
    stage.flows_again().await;
    let gaps = webws.gaps().len();
    for upgrades in 1..=3 {
        webws.signal(Signal::SIGUSR2);
        while webws.heirs().len() < upgrades {
            for (n, (said, witness)) in plain.iter_mut().enumerate() {
                witness.client.send_text(&format!("{said} ")).await;
                cluster
                    .told(&cluster.nodes[n % 3], &["PUBLISH", &format!("chat:p{n}"), &format!("from outside {said} ")]);
                *said += 1;
                while witness.take(Duration::from_millis(2)).await {}
            }
            stage.witness.take(Duration::from_millis(2)).await;
        }
        stage.flows_again().await;
    }
    for (n, (said, witness)) in plain.iter_mut().enumerate() {
        witness.await_texts(2 * *said, SOON).await;
        for way in ["", "from outside "] {
            let is_it = |text: &&String| text.starts_with("from") != way.is_empty();
            let came: Vec<_> = witness.texts.iter().filter(is_it).cloned().collect();
            let expected: Vec<_> = (0..*said).map(|k| format!("{way}{k} p{n}")).collect();
            assert_eq!(came, expected);
        }
    }
    assert_eq!(webws.gaps().len(), gaps, "{}", webws.log());
    stage.lost(&webws).await;
}

#[tokio::test]
async fn a_cluster_that_is_away_and_a_redis_that_is_in_none_are_reported_and_found_later() {
    let single = Redis::start().await;
    let none =
        Webws::builder().broker(&format!("redis+cluster://127.0.0.1:{}", single.port())).workers(2).start().await;
    until("it is said", SOON, async || none.warns_of("is not a node of a cluster")).await;
    let (status, why) = none.readiness().await;
    assert!(status == 503 && why.contains("is not a node of a cluster"), "{status} {why}");

    let mut cluster = Cluster::start(3, 0).await;
    let broker = format!("{},127.0.0.1:{}", cluster.url(), free_port());
    cluster.nodes.iter_mut().for_each(Redis::kill);
    let webws = webws_at(&broker, 2).await;
    assert!(!upgrades_within(&webws.target(), "/live?channel=%22a%22", Duration::from_secs(2)).await);
    for node in &mut cluster.nodes {
        node.start_again().await;
    }
    cluster.agrees(3).await;
    until("it is found", FAILOVER, async || upgrades_within(&webws.target(), "/live?channel=%22a%22", SOON).await)
        .await;
    let mut witness = join(&webws, "/live", "a").await;
    witness.client.send_text("there and back").await;
    witness.await_text("there and back", SOON).await;
    assert!(webws.entries().len() < 30, "{}", webws.log());
}

/// Somebody who counts aloud on a sharded channel, and who listens.
struct Stage {
    witness: Witness,
    stop: watch::Sender<bool>,
    counting: tokio::task::JoinHandle<Vec<std::time::SystemTime>>,
}

impl Stage {
    async fn start(cluster: &Cluster, webws: &Webws) -> Stage {
        let mut witness = join(webws, "/live", "ledger").await;
        let stop = watch::Sender::new(false);
        let counting = cluster.count("live:ledger", stop.subscribe());
        witness.await_texts(3, SOON).await;
        Stage { witness, stop, counting }
    }

    /// What is sent from now on arrives in time.
    async fn flows_again(&mut self) {
        let now = std::time::SystemTime::now();
        let is_new = |text: &String| ledger::number_and_time(text).is_some_and(|(_, sent)| sent > now);
        while !self.witness.texts.last().is_some_and(is_new) {
            assert!(
                self.witness.take(SOON).await,
                "nothing came for {SOON:?}; it is {:?}",
                std::time::SystemTime::now()
            );
        }
        self.witness.assert_open();
    }

    /// How many were lost, all of them in gaps that were reported.
    async fn lost(&mut self, webws: &Webws) -> usize {
        self.stop.send_replace(true);
        let sent = (&mut self.counting).await.unwrap();
        self.witness.collect(Duration::from_millis(500)).await;
        ledger::lost(&self.witness.texts, &sent, &webws.log())
    }
}
