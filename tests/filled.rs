//! Promise: with a replication log to read (`redis.replay`), clients miss nothing of what was published while a link to
//! Redis was away: every message comes once and in order, and no client notices.

use std::time::Duration;

use crate::gap::Stage;
use crate::support::proxy::Mode;
use crate::support::{SOON, lasting, until};

const REPLAY: &str = "[redis]\nreplay = \"on\"";

/// A stage whose Redis has a log, named by the milestone that was heard last.
async fn start() -> Stage {
    let mut stage = Stage::start_with(REPLAY).await;
    let redis = &stage.redis;
    let has_log = async || {
        let info = redis.command(&["INFO", "replication"]).await;
        redis::from_redis_value::<String>(info).unwrap().contains("repl_backlog_active:1")
    };
    until("there is a log", SOON, has_log).await;
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
