//! Many connections in one process, through nginx with two workers (20,000 descriptors a process is
//! what machines here allow): many channels, one channel, few links, and nothing left behind.

use std::time::Duration;

use redis::Value;

use crate::support::client::Client;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::until;
use crate::support::webws::Webws;

/// Chosen: two such fit under 20,000 descriptors in the test, in nginx' workers and in webws.
const CLIENTS: usize = 9_000;

/// Handshakes under way at a time.
const AT_A_TIME: usize = 100;

const WORKERS: usize = 2;

/// A debug build on two noisy cores needs some of it.
const PATIENCE: Duration = Duration::from_secs(60);

async fn connect_all(nginx: &Nginx, channel_of: impl Fn(usize) -> String) -> Vec<Client> {
    let mut clients = Vec::with_capacity(CLIENTS);
    while clients.len() < CLIENTS {
        let batch: Vec<_> = (clients.len()..CLIENTS.min(clients.len() + AT_A_TIME))
            .map(|n| (nginx.target(), format!("/webws?channel=%22{}%22", channel_of(n))))
            .map(|(target, path)| tokio::spawn(async move { Client::connect(&target, &path).await }))
            .collect();
        for client in batch {
            clients.push(client.await.unwrap());
        }
    }
    clients
}

async fn subscribed_channels(redis: &Redis) -> usize {
    let Value::Array(channels) = redis.command(&["PUBSUB", "CHANNELS", "chat:*"]).await else { return usize::MAX };
    channels.len()
}

/// The next frame that is no ping has this payload.
async fn expect(client: &mut Client, payload: &str) {
    let frame = client.next_but_pings(PATIENCE).await.unwrap_or_else(|| panic!("no frame, expected {payload}"));
    assert_eq!(frame.payload, payload.as_bytes());
}

// One test, because each half takes half of the descriptors a process may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_thousand_channels_and_nine_thousand_subscribers_of_one_channel() {
    let redis = Redis::start().await;
    // These clients answer no pings.
    let webws =
        Webws::builder().broker(&redis.url()).workers(WORKERS).endpoint_toml("idle_timeout = \"0s\"").start().await;
    let nginx = Nginx::start_with_workers(&webws.socket(), 2).await;

    let mut clients = connect_all(&nginx, |n| format!("c{n}")).await;
    assert_eq!(subscribed_channels(&redis).await, CLIENTS);
    for n in 0..CLIENTS {
        assert_eq!(redis.publish(format!("chat:c{n}").as_bytes(), b"own").await, 1, "channel {n}");
    }
    for (n, client) in clients.iter_mut().enumerate() {
        expect(client, &format!("ownc{n}")).await;
    }
    let links = redis.clients().await.iter().filter(|line| line.contains("name=webws-")).count();
    assert_eq!(links, 2 * WORKERS, "a link to subscribe and one to publish per worker");
    drop(clients);
    until("no subscription is left", PATIENCE, async || subscribed_channels(&redis).await == 0).await;

    let mut clients = connect_all(&nginx, |_| "all".to_owned()).await;
    assert_eq!(redis.numsub(b"chat:all").await, WORKERS, "a channel is subscribed once per worker");
    for n in 0..20 {
        redis.publish(b"chat:all", format!("{n} ").as_bytes()).await;
    }
    for client in &mut clients {
        for n in 0..20 {
            expect(client, &format!("{n} all")).await;
        }
    }
    clients[0].send_text("from the first ").await;
    for client in &mut clients {
        expect(client, "from the first all").await;
    }
    drop(clients);
    until("no subscription is left", PATIENCE, async || subscribed_channels(&redis).await == 0).await;
}
