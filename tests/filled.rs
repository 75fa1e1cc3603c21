//! Promise: with a replication log to read (`redis.replay`), clients miss nothing of what was published while a link to
//! Redis was away: every message comes once and in order, and no client notices.

use std::time::Duration;

use crate::gap::Stage;
use crate::support::events::EventStream;
use crate::support::proxy::Mode;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, lasting, until};
use crate::topology::Sentinels;

const REPLAY: &str = "[redis]\nreplay = \"on\"";

/// A stage whose Redis has a log, named by the milestone that was heard last.
async fn start() -> Stage {
    let mut stage = Stage::start_with(REPLAY).await;
    until("there is a log", SOON, async || stage.redis.info("repl_backlog_active").await == "1").await;
    // The next milestone knows the log, and the one behind it surely.
    lasting(Duration::from_millis(2_500)).await;
    stage.witness.collect(Duration::ZERO).await;
    stage
}

impl Stage {
    /// How many gaps were filled, by the log.
    fn filled(&self) -> usize {
        self.webws.entries_with("filled_ms").len()
    }
}

#[tokio::test]
async fn links_that_are_cut_again_and_again_lose_nothing() {
    let mut stage = start().await;
    for count in 1..=10 {
        stage.proxy.reset();
        until("the gap is filled", SOON, async || stage.filled() == count).await;
        stage.flows_again().await;
    }
    assert_eq!((stage.settle().await.lost, stage.webws.gaps().len()), (0, 0), "{}", stage.webws.log());
}

#[tokio::test]
async fn clients_that_redis_kills_lose_nothing() {
    let mut stage = start().await;
    for count in 1..=5 {
        stage.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        until("the gap is filled", SOON, async || stage.filled() == count).await;
    }
    assert_eq!((stage.settle().await.lost, stage.webws.gaps().len()), (0, 0), "{}", stage.webws.log());
}

#[tokio::test]
async fn a_network_that_is_away_for_seconds_costs_no_message() {
    let mut stage = start().await;
    stage.proxy.set(Mode::Hold);
    stage.proxy.reset();
    lasting(Duration::from_secs(5)).await;
    stage.proxy.set(Mode::Pass);
    until("the gap is filled", 2 * SOON, async || stage.filled() == 1).await;
    assert_eq!((stage.settle().await.lost, stage.webws.gaps().len()), (0, 0), "{}", stage.webws.log());
}

#[tokio::test]
async fn without_a_log_the_gap_is_told_with_the_reason() {
    let mut stage = start().await;
    stage.redis.kill();
    lasting(Duration::from_millis(500)).await;
    stage.redis.start_again().await;
    assert!(stage.settle().await.lost > 0, "a Redis that is restarted has another history");
    assert_eq!((stage.filled(), stage.webws.gaps().len()), (0, 1), "{}", stage.webws.log());
    assert!(stage.webws.log().contains("cannot be filled from its replication log"), "{}", stage.webws.log());
}

#[tokio::test]
async fn a_log_that_no_longer_has_the_start_is_given_up_with_the_reason() {
    let mut stage = start().await;
    stage.redis.command(&["CONFIG", "SET", "repl-backlog-size", "16kb"]).await;
    stage.proxy.set(Mode::Hold);
    stage.proxy.reset();
    for _ in 0..4 {
        stage.redis.publish(b"elsewhere", &[b'x'; 16_384]).await;
    }
    stage.proxy.set(Mode::Pass);
    until("the gap is told", 2 * SOON, async || stage.webws.gaps().len() == 1).await;
    assert!(stage.settle().await.lost > 0, "nobody keeps what was missed");
    let reason = "bytes too short";
    let told =
        stage.webws.warnings().into_iter().filter(|line| line["error"].as_str().is_some_and(|e| e.contains(reason)));
    assert_eq!((told.count(), stage.filled()), (1, 0), "{}", stage.webws.log());
    assert_eq!(stage.redis.info("sync_full").await, "1", "that which made the log");
}

#[tokio::test]
async fn nothing_is_ever_copied_and_under_sentinel_the_replica_is_read() {
    let arguments = ["--repl-diskless-sync-delay", "0"];
    let master = Redis::start_with(&arguments).await;
    let of = format!("127.0.0.1 {}", master.port());
    let replica = Redis::start_with(&["--replicaof", &of]).await;
    let sentinels = Sentinels::start(master.port()).await;
    let history = "path = \"/webws\"\nhistory = { messages = 5 }";
    let webws = Webws::builder().broker(&sentinels.url()).workers(1).endpoint_toml(history).extra_toml(REPLAY);
    let webws = webws.start().await;
    let milestones = master.spy(b"webws:milestone").await;
    let mut stream = EventStream::open(&webws.target(), "/webws?channel=%22a%22").await;
    for number in 1..=3 {
        let before = milestones.seen().len();
        until("two milestones know the log", SOON, async || milestones.seen().len() >= before + 2).await;
        master.kill_links().await;
        master.publish(b"chat:a", number.to_string().as_bytes()).await;
        stream.expect(&number.to_string()).await;
        until("the gap is filled", SOON, async || webws.entries_with("filled_ms").len() == number).await;
    }
    assert_eq!(webws.gaps().len(), 0, "{}", webws.log());
    // Once for each gap at the replica, and once by the replica.
    assert_eq!((replica.calls("psync").await, master.calls("psync").await), (3, 1));
    assert_eq!(master.info("sync_full").await, "1", "the replica's");
    assert_eq!((replica.info("sync_full").await.as_str(), replica.info("sync_partial_ok").await.as_str()), ("0", "3"));
}
