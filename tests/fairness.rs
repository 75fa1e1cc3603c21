//! Promise: whatever some clients send, as fast as they can, the others notice nothing: their messages
//! arrive, new handshakes are answered, and nobody but the flood waits for it.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::frame::{BINARY, CONTINUATION, PING, PONG, TEXT, client_frame};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::upgrades_within;
use crate::support::{SOON, until};

const FIN: u8 = 0x80;

/// Clients that flood, each as fast as its socket takes it.
const FLOODS: usize = 20;

/// How long each kind of flood lasts.
const TIME: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_frames_that_mean_nothing_keeps_nobody_waiting() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    let empty = |first| client_frame(first, b"");
    let begun = client_frame(TEXT, b"");
    for (kind, first, rest) in [
        ("pongs", empty(FIN | PONG), empty(FIN | PONG)),
        ("continuations", begun, empty(CONTINUATION)),
        ("binary messages", empty(FIN | BINARY), empty(FIN | BINARY)),
        ("pings", empty(FIN | PING), empty(FIN | PING)),
    ] {
        assert_others_are_served(kind, &webws.target(), &first, &rest).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_messages_keeps_nobody_waiting() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    let message = client_frame(FIN | TEXT, b"");
    assert_others_are_served("messages", &webws.target(), &message, &message).await;
}

/// A message of no byte on a channel with a long name is the name to Redis, and the name back to each worker.
#[tokio::test]
async fn what_long_names_amplify_is_counted() {
    const NAME_BYTES: usize = 15_000;
    // Far under what a batch of 2,000 messages is with such names, and over what one of 256 kB is.
    let redis = Redis::start_with(&["--client-output-buffer-limit", "pubsub 4mb 2mb 1"]).await;
    let endpoint = "path = \"/in\"\nwire = \"plain\"\nchannel = \"plain\"\nmax_channel_bytes = 16000";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(endpoint).start().await;
    let mut healthy = Client::connect(&webws.target(), "/in?channel=healthy").await;
    let (links, resident) = (redis.links().await, webws.rss_kb());
    let mut floods = JoinSet::new();
    for n in 0..10 {
        let target = webws.target();
        floods.spawn(async move {
            let path = format!("/in?channel={:n<NAME_BYTES$}", n / 2);
            let mut client = Client::connect(&target, &path).await;
            let burst = client_frame(FIN | TEXT, b"").repeat(300);
            let end = Instant::now() + TIME;
            while Instant::now() < end {
                client.send_raw(&burst).await;
                while client.next_frame(Duration::from_millis(20)).await.is_some() {}
                assert_eq!(client.end(), None);
            }
        });
    }
    while !floods.is_empty() {
        healthy.send_text("hello").await;
        assert!(timeout(SOON, healthy.expect_text("hello")).await.is_ok(), "its message did not come back in {SOON:?}");
        floods.try_join_next().transpose().expect("a flood is not closed");
    }
    assert_eq!(redis.links().await, links, "Redis ended a link:\n{}", webws.log());
    until("its memory is back", SOON * 4, async || webws.rss_kb() < resident + (16 << 10)).await;
}

/// Joins a healthy client, then floods with `first` and `rest` over and over, and lets it speak meanwhile.
async fn assert_others_are_served(kind: &str, target: &Target, first: &[u8], rest: &[u8]) {
    let mut healthy = Client::connect(target, "/webws?channel=%22healthy%22").await;
    let mut floods = JoinSet::new();
    for n in 0..FLOODS {
        let (target, first, rest) = (target.clone(), first.to_vec(), rest.repeat(60_000 / rest.len()));
        floods.spawn(async move {
            let socket = Socket::connect(&target).await.unwrap();
            socket.write(&upgrade_request(&format!("/webws?channel=%22flood{n}%22"))).await.unwrap();
            socket.write(&first).await.unwrap();
            let mut unread = bytes::BytesMut::new();
            loop {
                // What comes back is read, so that the flood is not a slow consumer.
                tokio::select! {
                    written = socket.write(&rest) => if written.is_err() { return },
                    read = socket.read(&mut unread) => {
                        if read.is_err() { return }
                        unread.clear();
                    }
                }
            }
        });
    }
    let (end, mut turns) = (Instant::now() + TIME, 0);
    while Instant::now() < end || turns < 3 {
        healthy.send_text("hello, ").await;
        let heard = timeout(SOON, healthy.expect_text("hello, healthy")).await;
        assert!(heard.is_ok(), "{kind}: its own message did not come back within {SOON:?}, after {turns} that did");
        assert!(upgrades_within(target, "/webws?channel=%22new%22", SOON).await, "{kind}: no handshake in {SOON:?}");
        turns += 1;
    }
    assert_eq!(healthy.end(), None, "{kind}");
    floods.shutdown().await;
}
