//! Promise: whoever connects and says nothing may take all descriptors that there are for connections, and none of
//! those that links to Redis need.

use crate::support::client::Socket;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::upgrades_within;
use crate::support::{SOON, until};

const PATH: &str = "/webws?channel=%22a%22";

#[tokio::test]
async fn links_come_back_while_silent_connections_hold_all_descriptors_they_get() {
    let mut redis = Redis::start().await;
    let settings = "[limits]\nhandshake_timeout = \"60s\"\nmax_handshakes = 4096";
    let builder = Webws::builder().broker(&redis.url()).workers(2).extra_toml(settings);
    let webws = builder.descriptors(200).start().await;
    assert!(upgrades_within(&webws.target(), PATH, SOON).await);
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(Socket::connect(&webws.target()).await.unwrap());
    }
    until("it is full", SOON, async || webws.warnings().iter().any(|entry| entry["level"] == "ERROR")).await;
    redis.kill();
    until("it is noticed", SOON, async || !webws.outages().is_empty()).await;
    redis.start_again().await;
    let has_links = async || {
        let clients = redis.clients().await;
        clients.iter().filter(|client| client.contains("name=webws-")).count() == 4
    };
    until("all links are back", 2 * SOON, has_links).await;
    assert!(webws.fd_count() < 200, "{}", webws.fd_count());
    // The others have their turn when those are gone.
    drop(silent);
    assert!(upgrades_within(&webws.target(), PATH, 2 * SOON).await, "{}", webws.log());
    until("it is ready", SOON, async || webws.is_ready().await).await;
}

#[tokio::test]
async fn a_link_without_a_descriptor_says_what_is_missing() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    assert!(upgrades_within(&webws.target(), PATH, SOON).await);
    // As if something else in the process had taken them all.
    let set_limit = |limit: &str| {
        let pid = webws.pid().to_string();
        let output = std::process::Command::new("prlimit").args(["--pid", &pid, limit]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    set_limit("--nofile=3:");
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until("it is said", SOON, async || webws.warns_of("no descriptor is free: raise LimitNOFILE")).await;
    set_limit("--nofile=1000:");
    until("it is ready", 2 * SOON, async || webws.is_ready().await).await;
}
