//! Promise: all webws of a Redis prove their links by milestones that they share, about one a second together, and each
//! finds a link of its own that delivers nothing, whatever the others hear.

use std::time::Duration;

use crate::support::proxy::{Mode, Proxy};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, lasting, until};

const PATH: &str = "/webws?channel=%22a%22";
const CHANNEL: &[u8] = b"webws:milestone";

async fn on(broker: &str) -> Webws {
    Webws::builder().broker(broker).workers(2).start().await
}

/// How often Redis has executed PUBLISH.
async fn published(redis: &Redis) -> usize {
    let stats = format!("{:?}", redis.command(&["INFO", "commandstats"]).await);
    let (_, calls) = stats.split_once("cmdstat_publish:calls=").expect("something was published");
    calls.split(',').next().unwrap().parse().unwrap()
}

async fn probes(redis: &Redis) -> String {
    format!("{:?}", redis.command(&["PUBSUB", "CHANNELS", "webws:probe:*"]).await)
}

#[tokio::test]
async fn a_fleet_costs_redis_about_one_message_a_second() {
    const SECONDS: usize = 10;
    let redis = Redis::start().await;
    let spy = redis.spy(CHANNEL).await;
    let fleet = [on(&redis.url()).await, on(&redis.url()).await, on(&redis.url()).await];
    for webws in &fleet {
        until("it is ready", SOON, async || webws.is_ready().await).await;
    }
    until("all links hear milestones", SOON, async || redis.numsub(CHANNEL).await == 6).await;
    let (before, heard) = (published(&redis).await, spy.seen().len());
    lasting(Duration::from_secs(SECONDS as u64)).await;
    let (published, heard) = (published(&redis).await - before, spy.seen().len() - heard);
    // Six links would publish sixty probes. Some milestones of a loaded machine cross.
    assert!((SECONDS / 2..=3 * SECONDS).contains(&published), "{published} in {SECONDS} s");
    assert!(published.abs_diff(heard) <= 1, "{published} messages, {heard} milestones");
    assert!(!probes(&redis).await.contains("webws:probe"), "no link has a probe of its own");
    for webws in &fleet {
        assert_eq!(webws.outages(), [0; 0]);
    }
}

#[tokio::test]
async fn a_link_that_delivers_nothing_is_found_while_others_hear_everything() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.port()).await;
    let (well, deaf) = (on(&redis.url()).await, on(&proxy.url()).await);
    let mut witness = Witness::join(&deaf.target(), PATH).await;
    until("all are ready", SOON, async || well.is_ready().await && deaf.is_ready().await).await;
    proxy.set(Mode::Deafen);
    until("it is found out", 2 * SOON, async || !deaf.outages().is_empty()).await;
    proxy.set(Mode::Pass);
    until("it is back", SOON, async || deaf.is_ready().await).await;
    redis.publish(b"chat:a", b"again ").await;
    witness.await_text("again a", SOON).await;
    assert_eq!(well.outages(), [0; 0]);
}

#[tokio::test]
async fn without_the_right_to_milestones_links_are_proved_by_probes_and_nothing_is_wrong() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "default", "resetchannels", "&chat:*", "&webws:probe:*"]).await;
    let webws = on(&redis.url()).await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    until("it is ready", SOON, async || webws.is_ready().await).await;
    until("there are probes", SOON, async || probes(&redis).await.matches("webws:probe").count() == 2).await;
    redis.publish(b"chat:a", b"there ").await;
    witness.await_text("there a", SOON).await;
    let said = || webws.log().matches("&webws:milestone").count();
    until("it is said", SOON, async || said() == 1).await;
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until("it is away", SOON, async || !webws.outages().is_empty()).await;
    until("it is back", SOON, async || webws.is_ready().await).await;
    redis.publish(b"chat:a", b"back ").await;
    witness.await_text("back a", SOON).await;
    assert_eq!(said(), 1, "once: {}", webws.log());
    assert!(!webws.warns_of("&webws:milestone"), "no setting asks for it: {}", webws.log());
}

#[tokio::test]
async fn where_the_log_is_not_to_be_read_and_nothing_is_kept_there_are_no_milestones() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).extra_toml("[redis]\nreplay = \"off\"").start().await;
    until("it is ready", SOON, async || webws.is_ready().await).await;
    until("there is a probe", SOON, async || probes(&redis).await.contains("webws:probe")).await;
    assert_eq!(redis.numsub(CHANNEL).await, 0);
}
