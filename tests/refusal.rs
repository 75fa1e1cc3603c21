//! Promise: a Redis that refuses all subscriptions is said so, in the log and by readiness, until it takes one
//! again; one that refuses a single channel is nobody's business but its client's.

use crate::support::http::handshake;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, until};

const PATH: &str = "/webws?channel=%22a%22";
const RIGHTS: &str = "resetkeys resetchannels -@all &webws:probe:* \
    +subscribe +unsubscribe +publish +ping +hello +auth +client|setname +client|info";

async fn stage(channels: &str) -> (Redis, Webws) {
    let redis = Redis::start().await;
    set_user(&redis, &format!("on >pw {RIGHTS} {channels}")).await;
    let broker = redis.url().replace("redis://", "redis://web:pw@");
    let webws = Webws::builder().broker(&broker).workers(2).start().await;
    (redis, webws)
}

async fn set_user(redis: &Redis, rules: &str) {
    let words: Vec<_> = ["ACL", "SETUSER", "web"].into_iter().chain(rules.split_whitespace()).collect();
    redis.command(&words).await;
}

#[tokio::test]
async fn a_user_without_channels_is_reported_once_and_granted_channels_are_found_without_clients() {
    let (redis, webws) = stage("").await;
    until("its links are up", SOON, async || webws.is_ready().await).await;
    for path in [PATH, "/webws?channel=%22b%22", PATH] {
        handshake(&webws.target(), path).await.assert_unavailable("2");
    }
    let (status, why) = webws.readiness().await;
    assert!(status == 503 && why.contains("refuses subscriptions") && why.contains("NOPERM"), "{status} {why}");
    // Of the first channel alone nobody could know.
    until("both are reported", SOON, async || webws.warnings().len() == 2).await;
    let log = webws.log();
    assert_eq!(log.matches("&chat:*").count(), 1, "what to do is said once: {log}");
    assert!(!log.contains(">pw") && !log.contains(":pw@"), "{log}");
    set_user(&redis, "&chat:*").await;
    until("it is ready again", 3 * SOON, async || webws.is_ready().await).await;
    assert_eq!(redis.numsub(b"chat:a").await, 0, "what was tried is given back");
    assert!(upgrades_within(&webws.target(), PATH, SOON).await);
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_found_by_the_next_client() {
    let (redis, webws) = stage("&chat:*").await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    set_user(&redis, "-subscribe").await;
    // Both workers may get one.
    for _ in 0..4 {
        handshake(&webws.target(), "/webws?channel=%22b%22").await.assert_unavailable("2");
    }
    assert!(!webws.is_ready().await);
    witness.ping(b"still there", SOON).await;
    set_user(&redis, "+subscribe").await;
    until("it is ready again", 3 * SOON, async || webws.is_ready().await).await;
    witness.assert_open();
}

#[tokio::test]
async fn a_client_that_asks_for_a_channel_of_others_does_not_make_the_process_unready() {
    let (_redis, webws) = stage("&chat:a &chat:b").await;
    let mut witnesses = Vec::new();
    // In both workers.
    for path in [PATH, PATH, "/webws?channel=%22b%22", "/webws?channel=%22b%22"] {
        witnesses.push(Witness::join(&webws.target(), path).await);
    }
    for _ in 0..6 {
        handshake(&webws.target(), "/webws?channel=%22forbidden%22").await.assert_unavailable("2");
        assert!(webws.is_ready().await);
    }
    assert_eq!(webws.warnings().len(), 1, "{}", webws.log());
}

#[tokio::test]
async fn one_channel_that_is_asked_for_again_and_again_does_not_make_a_fresh_process_unready() {
    let (redis, webws) = stage("&chat:a &chat:b").await;
    until("its links are up", SOON, async || webws.is_ready().await).await;
    // Nothing was ever taken, in no worker.
    for _ in 0..6 {
        handshake(&webws.target(), "/webws?channel=%22forbidden%22").await.assert_unavailable("2");
        assert!(webws.is_ready().await);
    }
    // Once one worker has been let in, all know that some channels are allowed.
    let _witness = Witness::join(&webws.target(), PATH).await;
    for n in 0..8 {
        let path = format!("/webws?channel=%22forbidden{n}%22");
        handshake(&webws.target(), &path).await.assert_unavailable("2");
        assert_eq!(webws.readiness().await.0, 200, "{}", webws.readiness().await.1);
    }
    assert_eq!(webws.warnings().len(), 1, "{}", webws.log());
    until("what was tried is given back", SOON, async || redis.numsub(b"chat:a").await == 1).await;
}
