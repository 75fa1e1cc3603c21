//! Promise: a process that did not run for a while (SIGSTOP, a paused virtual machine) holds that against
//! neither its clients nor Redis.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::support::client::Client;
use crate::support::lasting;
use crate::support::redis::Redis;
use crate::support::webws::Webws;

/// Longer than any deadline of [`IMPATIENT`].
const STOPPED: Duration = Duration::from_secs(4);

const IMPATIENT: &str = "idle_timeout = \"1500ms\"\nping_interval = \"500ms\"\nstall_timeout = \"1s\"\n\
                         publish_timeout = \"1s\"\npath = \"/in\"\nwire = \"plain\"\nchannel = \"plain\"";

#[tokio::test]
async fn time_in_which_the_process_did_not_run_counts_against_no_client_and_no_link() {
    let redis = Redis::start().await;
    let webws = Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .extra_toml(
            "[redis]\nresponse_timeout = \"1s\"\nsubscribe_timeout = \"1s\"\n[limits]\nhandshake_timeout = \"1s\"",
        )
        .endpoint_toml(IMPATIENT)
        .start()
        .await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(Client::connect(&webws.target(), &format!("/in?channel=c{n}")).await);
    }
    let links = redis.links().await;
    webws.signal(Signal::SIGSTOP);
    // What comes meanwhile waits: from Redis, from clients, and a handshake that is half there.
    for (n, client) in clients.iter().enumerate() {
        redis.publish(format!("chat:c{n}").as_bytes(), b"meanwhile").await;
        client.send_text("said meanwhile").await;
    }
    lasting(STOPPED).await;
    webws.signal(Signal::SIGCONT);
    for client in &mut clients {
        client.expect_text("meanwhile").await;
        client.expect_text("said meanwhile").await;
    }
    // They stay, longer than a deadline that began before.
    let end = Instant::now() + STOPPED / 2;
    while Instant::now() < end {
        for client in &mut clients {
            client.send_text("still here").await;
            client.expect_text("still here").await;
        }
    }
    assert_eq!(redis.links().await, links, "a link was made again:\n{}", webws.log());
}
