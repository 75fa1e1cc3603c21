//! Promise: with a replication log to read (`redis.replay`), clients miss nothing of what was published while a link to
//! Redis was away: every message comes once and in order, and no client notices.

use std::time::Duration;

use crate::gap::Stage;
use crate::support::events::EventStream;
use crate::support::proxy::Mode;
use crate::support::redis::{Redis, Spy};
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, lasting, until};
use crate::topology::Sentinels;

const REPLAY: &str = "[redis]\nreplay = \"on\"";

/// A stage whose Redis has a log, made by webws, and named by the milestone that was heard last.
async fn start() -> Stage {
    let mut stage = Stage::start_with(REPLAY).await;
    let milestones = stage.redis.spy(b"webws:milestone").await;
    knows_the_log(&mut stage, &milestones).await;
    stage
}

/// The same with the default settings: the log is there because of a replica that was there.
async fn start_with_defaults() -> (Stage, Spy) {
    let mut stage = Stage::start_with("").await;
    let replica = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    stage.redis.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
    replica.command(&["REPLICAOF", "127.0.0.1", &stage.redis.port().to_string()]).await;
    let milestones = stage.redis.spy(b"webws:milestone").await;
    knows_the_log(&mut stage, &milestones).await;
    (stage, milestones)
}

/// Waits until webws has heard a milestone that names the log.
async fn knows_the_log(stage: &mut Stage, milestones: &Spy) {
    let names_it = || milestones.seen().last().is_some_and(|milestone| milestone.contains(&b' '));
    until("a milestone names the log", 2 * SOON, async || names_it()).await;
    has_read_all(stage).await;
}

/// Waits until webws has read what Redis has told its links so far.
async fn has_read_all(stage: &mut Stage) {
    stage.witness.collect(Duration::ZERO).await;
    stage.flows_again().await;
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

#[tokio::test]
async fn by_default_a_log_that_is_there_fills_the_gaps_of_all_channels() {
    let (mut stage, _) = start_with_defaults().await;
    for count in 1..=5 {
        stage.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        until("the gap is filled", SOON, async || stage.filled() == count).await;
        stage.flows_again().await;
    }
    stage.proxy.reset();
    until("the gap is filled", SOON, async || stage.filled() == 6).await;
    assert_eq!((stage.settle().await.lost, stage.webws.gaps().len()), (0, 0), "{}", stage.webws.log());
    // A log is used, and none is made.
    let info = format!("{:?}", stage.redis.command(&["INFO", "stats"]).await);
    assert!(info.contains("sync_full:1"), "only the replica's: {info}");
}

#[tokio::test]
async fn by_default_no_log_is_made_and_a_gap_is_a_gap() {
    let mut stage = Stage::start_with("").await;
    stage.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    stage.settle().await;
    assert_eq!((stage.filled(), stage.webws.gaps().len()), (0, 1), "{}", stage.webws.log());
    let warnings = stage.webws.warnings().len();
    assert_eq!(warnings, 2, "the link and the gap: {}", stage.webws.log());
    let info = format!("{:?}", stage.redis.command(&["INFO", "replication"]).await);
    assert!(info.contains("repl_backlog_active:0"), "{info}");
}

#[tokio::test]
async fn a_channel_that_was_just_subscribed_is_continued_as_well() {
    let (mut stage, milestones) = start_with_defaults().await;
    for count in 1..=5 {
        let before = milestones.seen().len();
        let mut fresh = Witness::join(&stage.webws.target(), &format!("/webws?channel=%22fresh{count}%22")).await;
        until("there is a milestone", SOON, async || milestones.seen().len() > before).await;
        // The one that crossed the SUBSCRIBE may be the first.
        until("there is another", SOON, async || milestones.seen().len() > before + 1).await;
        has_read_all(&mut stage).await;
        stage.proxy.set(Mode::Hold);
        stage.proxy.reset();
        let channel = format!("chat:fresh{count}");
        until("its subscription is gone", SOON, async || stage.redis.numsub(channel.as_bytes()).await == 0).await;
        stage.redis.publish(channel.as_bytes(), b"meanwhile ").await;
        stage.proxy.set(Mode::Pass);
        until("the gap is filled", 2 * SOON, async || stage.filled() == count).await;
        fresh.await_text(&format!("meanwhile fresh{count}"), SOON).await;
        assert_eq!(fresh.texts.len(), 1, "once: {:?}", fresh.texts);
        stage.flows_again().await;
    }
    assert_eq!((stage.settle().await.lost, stage.webws.gaps().len()), (0, 0), "{}", stage.webws.log());
}
