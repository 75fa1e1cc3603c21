//! Promise: a client that came straight and reads slowly, or never, is treated as any other: its own socket says what
//! it has not taken. Clients that keep up are not held back.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{PATH, final_count, is_straight, nginx_for};
use crate::support::client::{Client, Socket};
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

const BYTES: usize = 50_000;

/// A client whose socket takes little.
async fn slow_reader(nginx: &Nginx) -> Client {
    let socket = Socket::connect_with(&nginx.target(), Some(16_384)).await.unwrap();
    let client = Client::upgrade(socket, PATH).await;
    assert!(is_straight(client.head()), "{:?}", client.head());
    client
}

fn message(n: usize) -> String {
    format!("{:.<BYTES$}", format!("{n}."))
}

#[tokio::test]
async fn a_straight_client_that_never_reads_is_closed_and_a_steady_one_is_not() {
    const COUNT: usize = 100;
    let redis = Redis::start().await;
    let settings = "stall_timeout = \"1s\"\nmax_queue_bytes = 100000000";
    let mut webws = Webws::builder().broker(&redis.url()).workers(1).straight().endpoint_toml(settings).start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let mut quick = Client::connect(&nginx.target(), PATH).await;
    let mut steady = slow_reader(&nginx).await;
    let before = webws.fd_count();
    let mut deaf = slow_reader(&nginx).await;
    for n in 0..COUNT {
        redis.publish(b"chat:zhang", message(n).as_bytes()).await;
        quick.expect_text(&(message(n) + "zhang")).await;
    }
    // Some 80 kB in a second, for several times the time that ends a client that takes nothing.
    let start = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    while start.elapsed() < Duration::from_secs(4) {
        interval.tick().await;
        assert!(steady.read_slowly(4_000).await, "ended after {:?}", start.elapsed());
    }
    until("the deaf one is closed", SOON, async || webws.fd_count() == before).await;
    let mut seen = 0;
    while deaf.next_but_pings(SOON).await.is_some_and(|frame| frame.payload == (message(seen) + "zhang").as_bytes()) {
        seen += 1;
    }
    assert!(seen < COUNT, "all of {COUNT} texts");
    for n in 0..COUNT {
        steady.expect_text(&(message(n) + "zhang")).await;
    }
    assert_eq!(final_count(&mut webws, "closed_stalled").await, 1, "{}", webws.log());
}

#[tokio::test]
async fn a_straight_audience_that_keeps_up_is_not_held_back() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).setting("pace = \"1s\"").straight().start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(Client::connect(&nginx.target(), PATH).await);
    }
    // A second each, if clients counted as behind whose kernel has not acknowledged yet.
    let all = async {
        for n in 0..50 {
            redis.publish(b"chat:zhang", format!("{n}, ").as_bytes()).await;
            for client in &mut clients {
                client.expect_text(&format!("{n}, zhang")).await;
            }
        }
    };
    assert!(timeout(START, all).await.is_ok(), "messages are held back");
}
