//! Promise: both brokers keep the same promises, seen from clients and from the library.
//!
//! Each promise is a function, and runs against the embedded broker, Redis, and a Redis that speaks RESP2
//! only, with one worker and two.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use webws::{Config, EndpointConfig, NotPublished, Publisher, Server, ServerError};

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::frame::{BINARY, TEXT, client_frame};
use crate::support::redis::Redis;
use crate::support::witness::Witness;
use crate::support::{SOON, until};

/// One test per promise, each against every broker.
macro_rules! promises {
    ($($name:ident => $promise:path,)*) => {$(
        #[tokio::test]
        async fn $name() {
            for workers in [1, 2] {
                $promise(Stage::memory(workers).await).await;
                $promise(Stage::redis(workers).await).await;
                $promise(Stage::resp2(workers).await).await;
            }
        }
    )*};
}

promises! {
    a_publication_reaches_all_on_all_workers_once_and_in_order => reaches_all,
    a_text_sent_with_the_request_comes_back => own_text_comes_back,
    what_is_published_elsewhere_does_not_arrive => other_channels,
    payloads_are_any_bytes_and_arrive_unchanged => any_bytes,
    a_publisher_is_told_when_its_server_has_stopped => unavailable,
}

async fn reaches_all(mut stage: Stage) {
    const COUNT: usize = 300;
    let mut witnesses = stage.join("all", 6).await;
    let publisher = stage.publisher.clone();
    let publishing = async {
        for n in 0..COUNT {
            publisher.publish("chat:all", format!("p{n:04}")).await.unwrap();
        }
    };
    let sending = async {
        let frames: Vec<_> =
            (0..COUNT).flat_map(|n| client_frame(0x80 | TEXT, format!("s{n:04}").as_bytes())).collect();
        witnesses[0].client.send_raw(&frames).await;
    };
    tokio::join!(publishing, sending);
    for witness in &mut witnesses {
        witness.await_texts(2 * COUNT, SOON).await;
    }
    for witness in &mut witnesses {
        witness.collect(Duration::from_millis(100)).await;
        for source in ["p", "s"] {
            let texts = witness.texts.iter().filter(|text| text.starts_with(source));
            let expected = (0..COUNT).map(|n| format!("{source}{n:04}"));
            assert!(texts.cloned().eq(expected), "{source} at {}: {:?}", stage.name, witness.texts);
        }
    }
    // One order for all on one worker; Redis has one for everybody.
    if stage.redis.is_some() || stage.workers == 1 {
        for witness in &witnesses[1..] {
            assert_eq!(witness.texts, witnesses[0].texts, "{}", stage.name);
        }
    }
    drop(witnesses);
    stage.stop().await.unwrap();
}

async fn own_text_comes_back(mut stage: Stage) {
    for n in 0..20 {
        let request = [upgrade_request(&format!("/plain?channel=own{n}")), client_frame(0x80 | TEXT, b"mine")].concat();
        let socket = Socket::connect(&stage.target()).await.unwrap();
        let mut client = Client::request(socket, &request).await.expect("no reply");
        client.expect_text("mine").await;
        client.expect_silence(Duration::from_millis(5)).await;
    }
    stage.stop().await.unwrap();
}

async fn other_channels(mut stage: Stage) {
    let mut witnesses = stage.join("a", 2).await;
    for channel in ["chat:", "chat:A", "chat:a ", "chat:aa", "a", "chat:b", "xchat:a"] {
        stage.publisher.publish(channel, "elsewhere").await.unwrap();
    }
    stage.publisher.publish("chat:a", "here").await.unwrap();
    for witness in &mut witnesses {
        witness.await_texts(1, SOON).await;
        witness.collect(Duration::from_millis(50)).await;
        assert_eq!(witness.texts, ["here"], "{}", stage.name);
    }
    drop(witnesses);
    stage.stop().await.unwrap();
}

async fn any_bytes(mut stage: Stage) {
    let mut witnesses = stage.join("bin", 2).await;
    let payloads: [&[u8]; 7] =
        [b"", b"a\0b\0", b"\r\n$5\r\n", "zh\u{4e2d}\u{10ffff}".as_bytes(), b"\xff", b"a\xe4\xb8z", b"\xed\xa0\x80"];
    for payload in payloads {
        stage.publisher.publish("chat:bin", payload.to_vec()).await.unwrap();
    }
    // A client's text may have a NUL, too.
    witnesses[0].client.send_text("c\0d").await;
    for witness in &mut witnesses {
        for payload in payloads.into_iter().chain([&b"c\0d"[..]]) {
            let frame = witness.client.next_but_pings(SOON).await.expect("a message");
            let opcode = if std::str::from_utf8(payload).is_ok() { TEXT } else { BINARY };
            assert_eq!((frame.opcode, &frame.payload[..]), (opcode, payload), "{}", stage.name);
        }
    }
    drop(witnesses);
    stage.stop().await.unwrap();
}

async fn unavailable(mut stage: Stage) {
    stage.publisher.publish("chat:x", "1").await.unwrap();
    stage.stop().await.unwrap();
    assert_eq!(stage.publisher.publish("chat:x", "2").await, Err(NotPublished::Unavailable), "{}", stage.name);
}

#[tokio::test]
async fn a_publisher_is_told_when_redis_is_away_for_too_long() {
    let mut stage = Stage::redis(1).await;
    stage.publisher.publish("chat:x", "1").await.unwrap();
    stage.redis.as_mut().unwrap().kill();
    // In flight when the link breaks: nobody knows. Before the next, the link is known to be gone.
    let mut outcome = stage.publisher.publish("chat:x", "2").await;
    if outcome == Err(NotPublished::Unknown) {
        outcome = stage.publisher.publish("chat:x", "3").await;
    }
    assert_eq!(outcome, Err(NotPublished::TimedOut));
    // When it is back, all is well, and calls that wait together leave in their order.
    stage.redis.as_mut().unwrap().start_again().await;
    let spy = stage.redis.as_ref().unwrap().spy(b"chat:x").await;
    let publishing = (0..10).map(|n| {
        let publisher = stage.publisher.clone();
        tokio::spawn(async move { publisher.publish("chat:x", format!("{n}")).await })
    });
    for one in publishing.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    until("the spy has heard of them", SOON, async || spy.seen().len() >= 10).await;
    assert!(spy.seen().iter().map(|text| &text[..]).eq((0..10).map(|n| [b'0' + n])), "{:?}", spy.seen());
    stage.stop().await.unwrap();
}

#[tokio::test]
async fn a_publisher_is_told_when_redis_refuses() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "narrow", "on", ">pw", "resetchannels", "&chat:ok*", "+@all"]).await;
    let url = redis.url().replace("://", "://narrow:pw@");
    let mut stage = Stage::start("narrow", &url, 1, Some(redis)).await;
    match stage.publisher.publish("chat:no", "x").await {
        Err(NotPublished::Refused(refusal)) => assert_eq!(refusal.code(), "NOPERM", "{refusal}"),
        other => panic!("{other:?}"),
    }
    stage.publisher.publish("chat:ok", "x").await.unwrap();
    stage.stop().await.unwrap();
}

/// A server of the library's in this process.
struct Stage {
    name: String,
    workers: usize,
    redis: Option<Redis>,
    publisher: Publisher,
    socket: PathBuf,
    shutdown: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), ServerError>>>,
    _dir: TempDir,
}

impl Stage {
    async fn memory(workers: usize) -> Stage {
        Stage::start("memory", "memory", workers, None).await
    }

    async fn redis(workers: usize) -> Stage {
        let redis = Redis::start().await;
        let url = redis.url();
        Stage::start("Redis", &url, workers, Some(redis)).await
    }

    /// A Redis without HELLO, as before version 6.
    async fn resp2(workers: usize) -> Stage {
        let redis = Redis::start_with(&["--rename-command", "HELLO", ""]).await;
        let url = redis.url();
        Stage::start("Redis by RESP2", &url, workers, Some(redis)).await
    }

    async fn start(name: &str, broker: &str, workers: usize, redis: Option<Redis>) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("webws.sock");
        let mut config = Config::default();
        config.listen = vec![format!("unix:{}", socket.display()).parse().unwrap()];
        config.broker = broker.parse().unwrap();
        config.workers = workers;
        config.drain_time = Duration::from_millis(10);
        let mut endpoint = EndpointConfig::plain();
        endpoint.publish_timeout = Duration::from_secs(1);
        config.endpoints = vec![endpoint];
        let server = Server::bind(config).unwrap();
        let publisher = server.publisher();
        let (shutdown, told) = oneshot::channel();
        let running = tokio::spawn(server.run(async { told.await.unwrap_or(()) }));
        let name = format!("{name}, {workers} workers");
        Stage { name, workers, redis, publisher, socket, shutdown: Some(shutdown), running: Some(running), _dir: dir }
    }

    fn target(&self) -> Target {
        Target::Unix(self.socket.clone())
    }

    /// Clients on one channel, spread over the workers.
    async fn join(&self, name: &str, count: usize) -> Vec<Witness> {
        let mut witnesses = Vec::new();
        for _ in 0..count {
            witnesses.push(Witness::join(&self.target(), &format!("/plain?channel={name}")).await);
        }
        witnesses
    }

    fn stop(&mut self) -> impl Future<Output = Result<(), ServerError>> {
        drop(self.shutdown.take());
        let running = self.running.take().unwrap();
        async move { tokio::time::timeout(SOON * 2, running).await.expect("the server does not stop").unwrap() }
    }
}
