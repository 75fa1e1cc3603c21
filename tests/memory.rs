//! Promise: the process uses no more memory than `limits.memory` says, whatever clients do. The sessions that use most
//! are closed with 1013, the others notice nothing, and the memory comes back.

use crate::support::client::{Client, Socket, upgrade_request};
use crate::support::frame::{TEXT, client_frame};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, until};

const BUDGET_KB: u64 = 16_000;

/// What an allocator may use beyond what it is asked for, and keep for a second: a quarter, and pages of each thread.
const ALLOWED_KB: u64 = BUDGET_KB + BUDGET_KB / 4 + 6_000;

/// A webws with so little memory, whose endpoint would let a client's bytes wait for ever.
async fn start(redis: &Redis) -> Webws {
    let endpoint = "path = \"/webws\"\nchannel = \"plain\"\nwire = \"plain\"\nmax_queue_bytes = \"1GiB\"";
    let memory = format!("[limits]\nmemory = \"{BUDGET_KB}kB\"");
    Webws::builder().broker(&redis.url()).workers(2).endpoint_toml(endpoint).extra_toml(&memory).start().await
}

async fn connect(webws: &Webws, channel: &str) -> Client {
    Client::connect(&webws.target(), &format!("/webws?channel={channel}")).await
}

#[tokio::test]
async fn clients_that_never_read_are_given_up_before_the_memory_is_spent() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let mut healthy = connect(&webws, "healthy").await;
    let before = webws.rss_kb();
    let mut silent = Vec::new();
    for number in 0..40 {
        silent.push(connect(&webws, &format!("silent{number}")).await);
    }
    let mut peak = 0;
    let payload = vec![b'x'; 100_000];
    // 80 MB in all.
    for round in 0..20 {
        for number in 0..40 {
            redis.publish(format!("chat:silent{number}").as_bytes(), &payload).await;
        }
        redis.publish(b"chat:healthy", round.to_string().as_bytes()).await;
        healthy.expect_text(&round.to_string()).await;
        peak = peak.max(webws.rss_kb());
    }
    assert!(peak < before + ALLOWED_KB, "{before} kB grew to {peak} kB");
    until("it is logged", SOON, async || !webws.entries_with("memory").is_empty()).await;
    drop(silent);
    until("the memory is back", 2 * SOON, async || webws.rss_kb() < before + 6_000).await;
    connect(&webws, "another").await.send_text("x").await;
    redis.publish(b"chat:healthy", b"end").await;
    healthy.expect_text("end").await;
    let mut webws = webws;
    webws.term();
    webws.wait_exit(4 * SOON).await;
    assert!(webws.counter("closed_memory") >= 10, "{}", webws.log());
    assert_eq!(webws.counter("closed_slow_consumer"), 0, "{}", webws.log());
}

#[tokio::test]
async fn messages_that_are_never_finished_are_given_up_and_the_client_is_told() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let mut healthy = connect(&webws, "healthy").await;
    let before = webws.rss_kb();
    let begun = client_frame(TEXT, &[b'x'; 60_000]);
    let mut attackers = Vec::new();
    let mut refused = 0;
    for number in 0..600 {
        // While memory is short, a handshake gets 503.
        let request = upgrade_request(&format!("/webws?channel=attacker{number}"));
        let socket = Socket::connect(&webws.target()).await.unwrap();
        match Client::request(socket, &request).await.filter(|client| client.head().status == 101) {
            Some(attacker) => {
                attacker.send_raw(&begun).await;
                attackers.push(attacker);
            }
            None => refused += 1,
        }
    }
    healthy.send_text("through").await;
    healthy.expect_text("through").await;
    let after = webws.rss_kb();
    assert!(after < before + ALLOWED_KB, "{before} kB grew to {after} kB; {refused} refused");
    let mut webws = webws;
    webws.term();
    webws.wait_exit(4 * SOON).await;
    let (mut given_up, mut drained) = (0, 0);
    for attacker in &mut attackers {
        match attacker.next_but_pings(SOON).await.and_then(|frame| frame.close_code()) {
            Some(1013) => given_up += 1,
            Some(1001) => drained += 1,
            other => panic!("an attacker got {other:?}"),
        }
    }
    assert_eq!(given_up, webws.counter("closed_memory"), "{}", webws.log());
    assert!(given_up >= 50 && drained >= 50, "{given_up} were given up, {drained} were not, {refused} refused");
}
