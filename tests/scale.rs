//! Many connections in one process, through nginx with two workers (20,000 descriptors a process is
//! what machines here allow): many channels, one channel, few links, and nothing left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use redis::Value;
use tokio::sync::watch;

use crate::support::client::Client;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::until;
use crate::support::webws::Webws;
use crate::support::witness::Witness;

/// Chosen: two such fit under 20,000 descriptors in the test, in nginx' workers and in webws.
const CLIENTS: usize = 9_000;

/// Handshakes under way at a time.
const AT_A_TIME: usize = 100;

const WORKERS: usize = 2;

/// Clients that speak while the others listen.
const TALKERS: usize = 60;

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

/// One at a time: each takes half of the descriptors that a process may have.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nine_thousand_channels_and_nine_thousand_subscribers_of_one_channel() {
    let _turn = TURN.lock().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_upgrades_in_a_row_under_load_pass_unnoticed() {
    let _turn = TURN.lock().await;
    let redis = Arc::new(Redis::start().await);
    let builder = Webws::builder().broker(&redis.url()).workers(WORKERS).endpoint_toml("idle_timeout = \"0s\"");
    let webws = builder.exchangeable().start().await;
    let nginx = Nginx::start_with_workers(&webws.socket(), 2).await;
    let mut clients = connect_all(&nginx, |n| format!("c{n}")).await;

    // Some speak all the time, and are spoken to.
    let stop = watch::Sender::new(false);
    let every = CLIENTS / TALKERS;
    let rounds = Arc::new(AtomicUsize::new(0));
    let mut talks = Vec::new();
    for n in (0..CLIENTS).step_by(every).rev() {
        let witness = Witness::new(clients.swap_remove(n));
        let rounds = rounds.clone();
        talks.push(tokio::spawn(talk(witness, format!("c{n}"), redis.clone(), stop.subscribe(), rounds)));
    }
    let mut standstills = Vec::new();
    for n in 1..=10 {
        webws.signal(Signal::SIGUSR2);
        until("it is handed over", PATIENCE, async || webws.heirs().len() == n).await;
        standstills.push(webws.entries_with("standstill_ms").pop().unwrap()["standstill_ms"].clone());
        // As many rounds as there are talkers.
        let enough = rounds.load(Ordering::Relaxed) + TALKERS;
        until("they talk", PATIENCE, async || rounds.load(Ordering::Relaxed) >= enough).await;
    }
    stop.send_replace(true);
    let mut longest = Duration::ZERO;
    for talk in talks {
        longest = longest.max(talk.await.unwrap());
    }
    println!("nobody was served for {standstills:?} ms; the longest silence that a client saw: {longest:?}");
    // The others have heard nothing, and are all there.
    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.end(), None, "client {n}");
    }
    for client in &mut clients {
        client.expect_pong(b"there?", PATIENCE).await;
    }
    assert!(webws.gaps().is_empty() && webws.outages().is_empty(), "{}", webws.log());
    assert_eq!(webws.heirs().len(), 10);
    let descriptors = webws.fd_count();
    let open = clients.len();
    assert!((open..open + TALKERS + 100).contains(&descriptors), "{descriptors} descriptors for {open} sessions");
}

/// Sends numbers, and has others sent to it, until it is told to stop; all must come, each once and in
/// order. Returns the longest time in which nothing came.
/// `rounds` counts them for all.
async fn talk(
    mut witness: Witness,
    name: String,
    redis: Arc<Redis>,
    stop: watch::Receiver<bool>,
    rounds: Arc<AtomicUsize>,
) -> Duration {
    let (mut said, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
    while !*stop.borrow() {
        witness.client.send_text(&format!("up {said} ")).await;
        redis.publish(format!("chat:{name}").as_bytes(), format!("down {said} ").as_bytes()).await;
        said += 1;
        while witness.take(Duration::from_millis(30)).await {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        witness.assert_open();
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    witness.await_texts(2 * said, PATIENCE).await;
    for way in ["up", "down"] {
        let came: Vec<_> = witness.texts.iter().filter(|text| text.starts_with(way)).cloned().collect();
        let expected: Vec<_> = (0..said).map(|n| format!("{way} {n} {name}")).collect();
        assert_eq!(came, expected);
    }
    longest
}
