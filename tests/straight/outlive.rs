//! Promise: sessions that were handed off outlive every nginx worker, and nginx' end, with every message; and webws'
//! upgrades meanwhile. Proxied and straight clients of several nodes share channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use super::{PATH, is_straight, nginx_for};
use crate::handover::{UPGRADE, upgrade};
use crate::support::client::Client;
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{START, until};

/// Clients that see nginx' end.
const CLIENTS: usize = 20;

async fn join(nginx: &Nginx) -> Witness {
    let witness = Witness::join(&nginx.target(), PATH).await;
    assert!(is_straight(witness.client.head()), "{:?}", witness.client.head());
    witness
}

/// Reloads; the old workers end although their clients stay.
async fn reload(nginx: &Nginx) {
    let before = nginx.workers();
    nginx.reload();
    let is_done = || {
        let now = nginx.workers();
        !now.is_empty() && now.iter().all(|pid| !before.contains(pid))
    };
    until("the old worker has ended", START, async || is_done()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_by_reloads_kills_and_restarts_of_nginx_and_upgrades_of_webws() {
    let redis = Arc::new(Redis::start().await);
    let builder = Webws::builder().broker(&redis.url()).workers(2).straight();
    let webws = builder.exchangeable().start().await;
    let mut nginx = nginx_for(&webws, Site::default()).await;
    let mut witnesses = Vec::new();
    for _ in 0..CLIENTS {
        witnesses.push(join(&nginx).await);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (redis, is_over) = (redis.clone(), is_over.clone());
        async move {
            let mut published = 0;
            while !is_over.load(Ordering::Relaxed) {
                redis.publish(b"chat:zhang", format!("{published} ").as_bytes()).await;
                published += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            published
        }
    });
    for turn in 0..10 {
        reload(&nginx).await;
        let (is_done, text) = upgrade(&webws).await;
        assert!(is_done, "turn {turn}: {text}\n{}", webws.log());
        drop(join(&nginx).await);
    }
    let killed = nginx.workers();
    kill(killed[0], Signal::SIGKILL).unwrap();
    until("there is another worker", START, async || {
        let now = nginx.workers();
        !now.is_empty() && !now.contains(&killed[0])
    })
    .await;
    witnesses.push(join(&nginx).await);
    nginx = nginx.restart().await;
    let late = join(&nginx).await;
    is_over.store(true, Ordering::Relaxed);
    let published = publishing.await.unwrap();
    for witness in &mut witnesses[..CLIENTS] {
        witness.await_texts(published, UPGRADE).await;
        let expected: Vec<_> = (0..published).map(|n| format!("{n} zhang")).collect();
        assert_eq!(witness.texts, expected);
    }
    late.client.send_text("last, ").await;
    for witness in witnesses.iter_mut().chain([&mut { late }]) {
        witness.await_text("last, zhang", START).await;
        witness.assert_open();
    }
}

#[tokio::test]
async fn proxied_and_straight_clients_of_several_nodes_share_a_channel() {
    let redis = Redis::start().await;
    // As a node of the Lua handler subscribes and publishes.
    let lua = redis.spy(b"chat:zhang").await;
    let straight = Webws::builder().broker(&redis.url()).straight().start().await;
    let plain = Webws::on(&redis.url()).await;
    let (first, second) = (nginx_for(&straight, Site::default()).await, Nginx::start(&plain.socket()).await);
    // Of the same webws as the straight ones.
    let beside = Nginx::start(&straight.socket()).await;
    let mut all = Vec::new();
    for (nginx, is_handed_off) in [(&first, true), (&second, false), (&first, true), (&second, false), (&beside, false)]
    {
        let client = Client::connect(&nginx.target(), PATH).await;
        assert_eq!(is_straight(client.head()), is_handed_off);
        all.push(Witness::new(client));
    }
    let mut expected = Vec::new();
    for turn in 0..20 {
        let sender = &all[turn % all.len()];
        sender.client.send_text(&format!("{turn}, ")).await;
        expected.push(format!("{turn}, zhang"));
        for witness in &mut all {
            witness.await_texts(expected.len(), START).await;
        }
        redis.publish(b"chat:zhang", format!("from Lua {turn}, ").as_bytes()).await;
        expected.push(format!("from Lua {turn}, zhang"));
        for witness in &mut all {
            witness.await_texts(expected.len(), START).await;
        }
    }
    for witness in &all {
        assert_eq!(witness.texts, expected);
    }
    until("the node in Lua has all", START, async || lua.seen().len() == expected.len()).await;
}
