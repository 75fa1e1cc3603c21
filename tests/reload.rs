//! Promise: a reload judges the new Redis by its links, needs nothing of the old one when that is another, says
//! what to do where it cannot be, and nobody who may publish on its channels can bend it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::Value;

use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, free_port, until};

const PATH: &str = "/webws?channel=%22a%22";

/// A new process, its links, and the longest that it waits for those.
const UPGRADE: Duration = Duration::from_secs(60);

async fn upgrade(webws: &Webws) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webws"));
    let output = command.args(["upgrade", "--config", "webws.toml"]).current_dir(webws.dir()).output();
    let output = tokio::time::timeout(UPGRADE, output).await.expect("an answer").unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

async fn start(broker: &str) -> Webws {
    let keep = "path = \"/webws\"\npublish_timeout = \"60s\"\nidle_timeout = \"0s\"";
    let told = "path = \"/told\"\non_gap = \"close\"\nidle_timeout = \"0s\"";
    Webws::builder().broker(broker).workers(2).endpoint_toml(keep).endpoint_toml(told).exchangeable().start().await
}

fn use_broker(webws: &Webws, before: &str, now: &str) {
    let file = webws.dir().join("webws.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace(before, now);
    std::fs::write(&file, text).unwrap();
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_refused_without_any_channel() {
    let redis = Redis::start().await;
    let webws = start(&redis.url()).await;
    assert!(upgrades_within(&webws.target(), PATH, SOON).await);
    let dead = format!("redis://127.0.0.1:{}", free_port());
    use_broker(&webws, &redis.url(), &dead);
    let (is_done, text) = upgrade(&webws).await;
    assert!(
        !is_done && text.contains("links to redis://") && text.contains("the old process continues to serve"),
        "{text}"
    );
    assert!(!text.contains("restart"), "that is not the way: {text}");
    assert!(upgrades_within(&webws.target(), PATH, SOON).await);
    assert!(webws.heirs().is_empty());
}

#[tokio::test]
async fn a_redis_that_is_gone_is_left_for_another_and_what_was_missed_is_reported() {
    let (mut old, new) = (Redis::start().await, Redis::start().await);
    let webws = start(&old.url()).await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    let mut told = Witness::join(&webws.target(), "/told?channel=%22a%22").await;
    old.kill();
    until("it is noticed", SOON, async || !webws.is_ready().await).await;
    witness.client.send_text("waits ").await;
    use_broker(&webws, &old.url(), &new.url());
    let (is_done, text) = upgrade(&webws).await;
    assert!(is_done, "{text}\n{}", webws.log());
    witness.await_text("waits a", SOON).await;
    new.publish(b"chat:a", b"from the new one ").await;
    witness.await_text("from the new one a", SOON).await;
    witness.assert_open();
    told.expect_close(1012, SOON).await;
    until("the gap is reported", SOON, async || !webws.gaps().is_empty()).await;
    // No restart's gap, of which an operator knows.
    let gaps = webws.entries_with("length_ms");
    assert!(gaps.iter().all(|gap| gap["level"] == "WARN"), "{gaps:?}");
}

#[tokio::test]
async fn a_reload_that_needs_a_restart_instead_says_so() {
    let mut redis = Redis::start().await;
    let webws = start(&redis.url()).await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    redis.kill();
    until("it is noticed", SOON, async || !webws.is_ready().await).await;
    let (is_done, text) = upgrade(&webws).await;
    assert!(!is_done && text.contains("`systemctl restart` also keeps the WebSockets"), "{text}");
    redis.start_again().await;
    witness.client.send_text("still ").await;
    witness.await_text("still a", 2 * SOON).await;
    let (is_done, text) = upgrade(&webws).await;
    assert!(is_done, "{text}");
    witness.ping(b"there", SOON).await;
}

#[tokio::test]
async fn forged_markers_do_not_decide_where_the_streams_stop() {
    let redis = Arc::new(Redis::start().await);
    let webws = start(&redis.url()).await;
    let mut witnesses = Vec::new();
    for _ in 0..4 {
        witnesses.push(Witness::join(&webws.target(), PATH).await);
    }
    let (is_over, forged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    // Publishes whatever it can think of on all service channels, as soon as they are there.
    let forger = tokio::spawn({
        let (redis, is_over, forged) = (redis.clone(), is_over.clone(), forged.clone());
        async move {
            while !is_over.load(Ordering::Relaxed) {
                let channels = redis.command(&["PUBSUB", "CHANNELS", "webws:probe:*"]).await;
                let Value::Array(channels) = channels else { panic!("{channels:?}") };
                for channel in channels {
                    let Value::BulkString(channel) = channel else { panic!("{channel:?}") };
                    let is_mark = String::from_utf8_lossy(&channel).contains("://");
                    forged.fetch_or(is_mark, Ordering::Relaxed);
                    for payload in ["x", "", "1", "18446744073709551615"] {
                        redis.publish(&channel, payload.as_bytes()).await;
                    }
                }
            }
        }
    });
    let producer = tokio::spawn({
        let (redis, is_over) = (redis.clone(), is_over.clone());
        async move {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                redis.publish(b"chat:a", format!("{count} ").as_bytes()).await;
                count += 1;
            }
            count
        }
    });
    for n in 0..3 {
        let (is_done, text) = upgrade(&webws).await;
        assert!(is_done, "{n}: {text}\n{}", webws.log());
    }
    is_over.store(true, Ordering::Relaxed);
    forger.await.unwrap();
    let count: usize = producer.await.unwrap();
    assert!(forged.load(Ordering::Relaxed) && count > 0, "no mark was forged");
    for witness in &mut witnesses {
        witness.await_text(&format!("{} a", count - 1), SOON).await;
        let first: usize = witness.texts[0].split(' ').next().unwrap().parse().unwrap();
        let expected: Vec<_> = (first..count).map(|n| format!("{n} a")).collect();
        assert_eq!(witness.texts, expected, "lost, twice or out of order");
    }
}
