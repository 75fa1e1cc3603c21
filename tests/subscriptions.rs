//! Promise: Redis is subscribed to exactly the channels that somebody listens to, over one link per worker.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::{Client, Socket, upgrade_request};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, throughout, until};

/// A channel that nobody listens to any more is given up within.
const RELEASE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_channel_stays_while_anybody_listens_and_goes_with_the_last() {
    let (redis, webws) = stack(1).await;
    let first = Client::connect(&webws.target(), &path("a")).await;
    let mut second = Witness::join(&webws.target(), &path("a")).await;
    first.close().await;
    // Longer than the channel would linger.
    second.collect(Duration::from_millis(1_500)).await;
    assert_eq!(redis.publish(b"chat:a", b"x").await, 1);
    second.await_text("xa", SOON).await;
    second.client.close().await;
    until("NUMSUB is 0", RELEASE, async || redis.numsub(b"chat:a").await == 0).await;
    let mut again = Witness::join(&webws.target(), &path("a")).await;
    assert_eq!(redis.publish(b"chat:a", b"y").await, 1);
    again.await_text("ya", SOON).await;
}

#[tokio::test]
async fn coming_back_at_once_neither_loses_the_subscription_nor_makes_it_again() {
    let (redis, webws) = stack(1).await;
    let mut monitor = redis.spy_commands().await;
    let mut witness = Witness::join(&webws.target(), &path("a")).await;
    for round in 0..10 {
        witness.client.close().await;
        // Nobody is there, and yet the channel is.
        if round == 0 {
            // Well within the linger of a second, and longer than the worker's tick.
            let lingers = async || redis.numsub(b"chat:a").await == 1;
            throughout("the channel is subscribed", Duration::from_millis(400), lingers).await;
        }
        assert_eq!(redis.publish(b"chat:a", b"missed").await, 1);
        witness = Witness::join(&webws.target(), &path("a")).await;
        redis.publish(b"chat:a", format!("{round}").as_bytes()).await;
        witness.await_text(&format!("{round}a"), SOON).await;
        // What was missed may still have been on its way when the witness came back.
        witness.texts.retain(|text| text != "misseda");
        assert_eq!(witness.texts.len(), 1, "{:?}", witness.texts);
    }
    witness.client.close().await;
    until("NUMSUB is 0", RELEASE, async || redis.numsub(b"chat:a").await == 0).await;
    let commands = monitor.until_quiet(Duration::from_millis(200)).await;
    let count = |name: &str| commands.iter().filter(|line| line.contains(&format!("\"{name}\" \"chat:a\""))).count();
    assert_eq!((count("SUBSCRIBE"), count("UNSUBSCRIBE")), (1, 1), "{commands:?}");
}

#[tokio::test]
async fn many_quick_visits_leave_exactly_the_subscriptions_of_those_who_stay() {
    const CHANNELS: usize = 4;
    const VISITS: usize = 200;
    let redis = Redis::start().await;
    // No linger: each visit may end in an UNSUBSCRIBE that races the next SUBSCRIBE.
    let linger = "[redis]\nsubscription_linger = \"0s\"";
    let webws = Webws::builder().broker(&redis.url()).workers(2).extra_toml(linger).start().await;
    let mut survivors = Vec::new();
    let mut visiting = JoinSet::new();
    for visit in 0..VISITS {
        let (target, name) = (webws.target(), format!("c{}", visit % CHANNELS));
        visiting.spawn(async move {
            let mut visitor = Witness::join(&target, &path(&name)).await;
            // Who has its 101 hears itself, whatever the others do.
            let text = format!("{visit} ");
            visitor.client.send_text(&text).await;
            visitor.await_text(&format!("{text}{name}"), SOON).await;
            match visit % 3 {
                0 => {
                    visitor.client.send_close(1000).await;
                    visitor.expect_close(1005, SOON).await;
                }
                1 => visitor.client.reset(),
                _ => drop(visitor),
            }
        });
        if visit % 20 == 0 {
            redis.publish(format!("chat:c{}", visit % CHANNELS).as_bytes(), b"noise ").await;
        }
        if visit % 50 == 49 {
            let name = format!("c{}", survivors.len());
            survivors.push((name.clone(), Witness::join(&webws.target(), &path(&name)).await));
        }
    }
    visiting.join_all().await;
    for (name, _) in &survivors {
        let channel = format!("chat:{name}");
        let what = format!("one worker has {channel}");
        until(&what, RELEASE, async || redis.numsub(channel.as_bytes()).await == 1).await;
    }
    for (name, survivor) in &mut survivors {
        redis.publish(format!("chat:{name}").as_bytes(), b"last ").await;
        survivor.await_text(&format!("last {name}"), SOON).await;
        let copies = survivor.texts.iter().filter(|text| text.starts_with("last")).count();
        assert_eq!(copies, 1);
    }
    drop(survivors);
    until("nothing is subscribed", RELEASE, async || channels(&redis).await == 0).await;
}

#[tokio::test]
async fn redis_sees_two_connections_per_worker_and_no_more() {
    for workers in [1, 3] {
        let (redis, webws) = stack(workers).await;
        let mut open = Vec::new();
        for n in 0..60 {
            let mut witness = Witness::join(&webws.target(), &path(&format!("n{}", n % 20))).await;
            witness.client.send_text("x").await;
            witness.await_text(&format!("xn{}", n % 20), SOON).await;
            open.push(witness);
        }
        let clients = redis.clients().await;
        let named = |name: &str| clients.iter().filter(|client| client.contains(&format!(" name={name} "))).count();
        assert_eq!((named("webws-subscriber"), named("webws-publisher")), (workers, workers), "{clients:?}");
        // The harness has one of its own.
        assert_eq!(clients.len(), 2 * workers + 1, "{clients:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_a_thousand_handshakes_on_a_thousand_channels_is_served() {
    const COUNT: usize = 1_000;
    let (redis, webws) = stack(2).await;
    let start = Instant::now();
    let mut joining = JoinSet::new();
    for n in 0..COUNT {
        let target = webws.target();
        joining.spawn(async move { (n, Witness::join(&target, &path(&format!("n{n}"))).await) });
    }
    let mut open = joining.join_all().await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(channels(&redis).await, COUNT);
    for (n, witness) in &mut open {
        assert_eq!(redis.publish(format!("chat:n{n}").as_bytes(), b"x").await, 1);
        witness.await_text(&format!("xn{n}"), SOON).await;
    }
    for (n, witness) in open {
        if n % 2 == 0 { drop(witness) } else { witness.client.reset() }
    }
    until("nothing is subscribed", RELEASE * 2, async || channels(&redis).await == 0).await;
}

#[tokio::test]
async fn handshakes_that_are_given_up_leave_no_subscription() {
    let (redis, webws) = stack(1).await;
    redis.freeze();
    let mut asking = JoinSet::new();
    for n in 0..100 {
        let target = webws.target();
        asking.spawn(async move {
            let socket = Socket::connect(&target).await.unwrap();
            socket.write(&upgrade_request(&path(&format!("n{n}")))).await.unwrap();
            socket.reset();
        });
    }
    asking.join_all().await;
    redis.thaw();
    assert!(upgrades_within(&webws.target(), &path("a"), SOON).await);
    let mut witness = Witness::join(&webws.target(), &path("a")).await;
    redis.publish(b"chat:a", b"x").await;
    witness.await_text("xa", SOON).await;
    until("only one is subscribed", RELEASE * 2, async || channels(&redis).await == 1).await;
    assert_eq!(redis.numsub(b"chat:a").await, 1);
}

/// How many channels anybody is subscribed to.
async fn channels(redis: &Redis) -> usize {
    match redis.command(&["PUBSUB", "CHANNELS", "chat:*"]).await {
        ::redis::Value::Array(channels) => channels.len(),
        other => panic!("PUBSUB CHANNELS: {other:?}"),
    }
}

async fn stack(workers: usize) -> (Redis, Webws) {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(workers).start().await;
    (redis, webws)
}

fn path(name: &str) -> String {
    format!("/webws?channel=%22{name}%22")
}
