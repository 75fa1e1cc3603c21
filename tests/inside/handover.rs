//! Promise: a new process that fails at any step of a hand-over is given up, and no client notices.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::handover::{Stage, UPGRADE};
use crate::support::http::get;
use crate::support::{SOON, until};

#[tokio::test]
async fn a_new_process_that_fails_on_the_way_is_given_up_at_every_step() {
    let mut stage = Stage::start().await;
    for (fault, why) in [
        ("abort Ready", "signal: 6"),
        ("abort AfterReady", "signal: 6"),
        ("abort Sessions", "signal: 6"),
        ("abort Adopted", "signal: 6"),
        ("abort Commit", "signal: 6"),
        ("hang Sessions", "no message came from it within 5s"),
        ("hang Commit", "no message came from it within 5s"),
        ("format 9 9", "do not overlap"),
    ] {
        stage.webws.set_fault(fault);
        stage.fails(why).await;
    }
    // A newer version that still understands us, and says things that nobody knows.
    stage.webws.set_fault("format 2 1");
    stage.succeeds().await;
    stage.webws.set_fault("");
    stage.succeeds().await;
}

#[tokio::test]
async fn a_process_that_is_told_to_stop_stops_while_the_new_one_hangs() {
    // The new one never says that it serves: the old one goes on, and then does as it was told.
    let mut stage = Stage::start().await;
    let target = stage.webws.target();
    stage.webws.set_fault("hang Commit");
    stage.webws.signal(Signal::SIGUSR2);
    until("both are subscribed", UPGRADE, async || stage.redis.numsub(b"chat:a").await == 2).await;
    // Far longer than a hand-over stands still: all is handed over, and only the last sentence is missing.
    let answers = async || tokio::time::timeout(Duration::from_millis(500), get(&target, "/healthz")).await.is_ok();
    until("nothing is served", SOON, async || !answers().await).await;
    stage.webws.term();
    while stage.witness.closed.is_none() {
        assert!(stage.witness.take(2 * SOON).await, "{}", stage.webws.log());
    }
    assert_eq!((stage.witness.closed, stage.webws.heirs().len()), (Some(1001), 0));
    until("its socket is gone", SOON, async || !stage.webws.socket().exists()).await;
}
