//! Promise: the binary and its configuration are exchanged while every WebSocket stays connected, and
//! nobody notices.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, until};

const PATH: &str = "/webws?channel=%22a%22";

/// Starting a process, its links, all of it, on a busy machine.
const UPGRADE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_websocket_goes_on_in_the_new_process() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    for n in 1..=3 {
        webws.signal(Signal::SIGUSR2);
        until("it is handed over", UPGRADE, async || webws.heirs().len() == n).await;
        witness.client.send_text(&format!("from the client {n} ")).await;
        witness.await_text(&format!("from the client {n} a"), SOON).await;
        redis.publish(b"chat:a", format!("from Redis {n} ").as_bytes()).await;
        witness.await_text(&format!("from Redis {n} a"), SOON).await;
        witness.assert_open();
    }
    assert_eq!(witness.texts.len(), 6, "{:?}", witness.texts);
}
