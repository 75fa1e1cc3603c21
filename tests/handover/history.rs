//! Promise: a client that comes back to the new process with a position of the old one gets what it missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::{PATH, Stage, upgrade};
use crate::support::events::{EventStream, events_request};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, lasting, until};

const KEPT: &str = "history = { messages = 100000, age = \"10m\", bytes = \"10MB\" }";

async fn open(stage: &Stage, path: &str) -> EventStream {
    EventStream::open(&stage.webws.target(), path).await
}

async fn come_back(stage: &Stage, path: &str, id: &str) -> EventStream {
    let request = events_request(path).replace("Accept:", &format!("Last-Event-ID: {id}\r\nAccept:"));
    EventStream::request(&stage.webws.target(), request.as_bytes()).await
}

/// Reads the numbers up to `last`; the first is `first`.
async fn expect_numbers(stream: &mut EventStream, first: usize, last: usize) {
    for n in first..=last {
        stream.expect(&n.to_string()).await;
    }
}

#[tokio::test]
async fn a_client_comes_back_to_the_new_process_and_has_missed_nothing() {
    let mut stage = Stage::start_with(|builder| builder.workers(2).endpoint_toml(KEPT)).await;
    // Several clients on each channel, so that both workers have both. The new process has one worker for all.
    let mut clients = Vec::new();
    for path in [PATH, "/webws?channel=%22quiet%22"].repeat(4) {
        clients.push(open(&stage, path).await);
    }
    stage.redis.publish(b"chat:quiet", b"once").await;
    stage.redis.publish(b"chat:a", b"0").await;
    let mut ids = Vec::new();
    for client in &mut clients {
        let kind = client.next(SOON).await.expect("the first publication");
        ids.push((kind.data, client.id.clone()));
    }
    let first = ids.iter().find(|(data, _)| data == "0").expect("one of a").1.clone();
    let quiet = ids.iter().find(|(data, _)| data == "once").expect("one of quiet").1.clone();
    assert!(ids.iter().all(|(data, id)| *id == if data == "0" { &first } else { &quiet }.as_str()), "{ids:?}");
    drop(clients);

    let (count, is_over) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicBool::new(false)));
    let producer = {
        let (redis, count, is_over) = (stage.redis.url(), count.clone(), is_over.clone());
        tokio::spawn(async move {
            let client = redis::Client::open(redis).unwrap();
            let mut link = client.get_multiplexed_async_connection().await.unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                let _: usize = redis::cmd("PUBLISH").arg("chat:a").arg(n).query_async(&mut link).await.unwrap();
                count.store(n + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    lasting(Duration::from_millis(1_500)).await;
    let file = stage.webws.dir().join("webws.toml");
    let fewer = std::fs::read_to_string(&file).unwrap().replace("workers = 2", "workers = 1");
    std::fs::write(&file, fewer).unwrap();
    for n in 0..3 {
        let (is_done, text) = upgrade(&stage.webws).await;
        assert!(is_done, "{n}: {text}\n{}", stage.webws.log());
        let mut back = come_back(&stage, PATH, &first).await;
        let so_far = count.load(Ordering::Relaxed);
        expect_numbers(&mut back, 1, so_far).await;
        // And from a position of the new process: of the last event that was read.
        let mut seen = so_far;
        while let Some(event) = back.next(Duration::ZERO).await {
            seen += 1;
            assert_eq!(event.data, seen.to_string());
        }
        let mut again = come_back(&stage, PATH, &back.id).await;
        expect_numbers(&mut again, seen + 1, seen + 50).await;
        let mut quiet = come_back(&stage, "/webws?channel=%22quiet%22", &quiet).await;
        stage.redis.publish(b"chat:quiet", format!("{n}").as_bytes()).await;
        expect_numbers(&mut quiet, 0, n).await;
    }
    is_over.store(true, Ordering::Relaxed);
    producer.await.unwrap();
    let last = count.load(Ordering::Relaxed) - 1;
    stage.witness.await_texts(last + 1, SOON).await;
    assert!(stage.witness.texts.iter().enumerate().all(|(n, text)| *text == format!("{n}a")));
    until("nothing is left", SOON, async || !stage.webws.is_handing_over()).await;
    assert_eq!(stage.webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn where_redis_allows_no_milestones_nothing_is_waited_for() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "web", "on", ">pw", "&chat:*", "&webws:probe:*", "+@all"]).await;
    let url = redis.url().replace("//", "//web:pw@");
    let webws = Webws::builder().broker(&url).workers(1).endpoint_toml(KEPT).exchangeable().start().await;
    let mut stream = EventStream::open(&webws.target(), PATH).await;
    for n in 0..2 {
        let (is_done, text) = upgrade(&webws).await;
        assert!(is_done, "{text}\n{}", webws.log());
        redis.publish(b"chat:a", format!("{n}").as_bytes()).await;
        stream.expect(&n.to_string()).await;
    }
}
