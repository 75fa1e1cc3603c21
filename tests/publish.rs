//! Promise: what a client sends is published once and in order, or the client is told that it is not.
//! Nobody else pays for it while Redis is slow.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::Client;
use crate::support::frame::{TEXT, client_frame};
use crate::support::redis::{Redis, Spy};
use crate::support::webws::Webws;
use crate::support::witness::{Answer, Witness, upgrades_within};
use crate::support::{SOON, holds_within, until};

/// Publishes only, so that nobody has to read echoes.
const WRITE_ONLY: &str = "path = \"/in\"\nwire = \"plain\"\nchannel = \"plain\"\nsubscribe = false";

#[tokio::test]
async fn five_thousand_messages_of_one_client_are_published_in_order() {
    const COUNT: usize = 5_000;
    let (redis, webws) = stack(WRITE_ONLY, 1).await;
    let spy = redis.spy(b"chat:order").await;
    let client = Client::connect(&webws.target(), "/in?channel=order").await;
    client.send_raw(&texts(0..COUNT, 0)).await;
    expect_numbers(&spy, COUNT).await;
}

#[tokio::test]
async fn messages_of_many_clients_are_published_once_and_in_each_clients_order() {
    const CLIENTS: usize = 50;
    const COUNT: usize = 100;
    let (redis, webws) = stack(WRITE_ONLY, 2).await;
    let spy = redis.spy(b"chat:many").await;
    let mut sending = JoinSet::new();
    for client in 0..CLIENTS {
        let target = webws.target();
        sending.spawn(async move {
            let connected = Client::connect(&target, "/in?channel=many").await;
            for n in 0..COUNT {
                connected.send_text(&format!("{client}:{n:04}")).await;
            }
            connected
        });
    }
    let _open = sending.join_all().await;
    until("all are published", SOON * 2, async || spy.seen().len() >= CLIENTS * COUNT).await;
    let seen = spy.seen();
    assert_eq!(seen.len(), CLIENTS * COUNT);
    for client in 0..CLIENTS {
        let own: Vec<_> = seen.iter().filter(|text| text.starts_with(format!("{client}:").as_bytes())).collect();
        assert!(own.len() == COUNT && own.is_sorted_by(|a, b| a < b), "client {client}: {own:?}");
    }
}

#[tokio::test]
async fn messages_followed_at_once_by_the_end_are_published() {
    const TRIES: usize = 30;
    const COUNT: usize = 20;
    // The echoes of the first texts meet a client that is gone while the last are still unread.
    // All echoes together stay under max_queue_bytes, or clients were closed for not reading.
    let (redis, webws) = stack("", 1).await;
    for (end, name) in [(End::CloseFrame, "close"), (End::Fin, "fin"), (End::Gone, "gone")] {
        let spy = redis.spy(format!("chat:{name}").as_bytes()).await;
        let mut running = JoinSet::new();
        for n in 0..TRIES {
            let target = webws.target();
            running.spawn(async move {
                let client = Client::connect(&target, &lua(name)).await;
                let numbers = n * COUNT..(n + 1) * COUNT;
                for one in numbers {
                    client.send_raw(&texts(one..one + 1, 500)).await;
                }
                match end {
                    End::CloseFrame => client.send_close(1000).await,
                    End::Fin => client.fin(),
                    End::Gone => drop(client),
                }
            });
        }
        running.join_all().await;
        holds_within(SOON, async || spy.seen().len() >= TRIES * COUNT).await;
        let mut seen = numbers(&spy);
        seen.sort_unstable();
        let missing: Vec<_> = (0..TRIES * COUNT).filter(|n| seen.binary_search(n).is_err()).collect();
        assert!(missing.is_empty() && seen.len() == TRIES * COUNT, "{name}: {} seen, missing {missing:?}", seen.len());
    }
}

#[derive(Debug, Clone, Copy)]
enum End {
    CloseFrame,
    Fin,
    Gone,
}

#[tokio::test]
async fn a_frozen_redis_holds_back_the_writer_and_no_other_client() {
    const COUNT: usize = 3_000;
    let (redis, webws) =
        stack(&format!("{WRITE_ONLY}\nmax_unpublished_bytes = 65536\npublish_timeout = \"60s\""), 1).await;
    let spy = redis.spy(b"chat:held").await;
    for target in [webws.target(), webws.tcp_target()] {
        let before = numbers(&spy).len();
        let client = Client::connect(&target, "/in?channel=held").await;
        let mut other = Witness::join(&target, "/in?channel=other").await;
        let rss = webws.rss_kb();
        redis.freeze();
        // Far more than the limit and the kernel's buffers together.
        let all = texts(before..before + COUNT, 8_000);
        let mut writing = pin!(client.send_raw(&all));
        for round in 0..4 {
            let written = timeout(Duration::from_millis(250), &mut writing).await;
            assert!(written.is_err(), "a frozen Redis does not hold the writer back");
            other.ping(format!("{round}").as_bytes(), Duration::from_secs(1)).await;
        }
        let grown = webws.rss_kb().saturating_sub(rss);
        assert!(grown < 8_000, "{grown} kB more for one client's 64 KiB of texts");
        redis.thaw();
        timeout(SOON * 3, writing).await.expect("the writer is still held back");
        expect_numbers(&spy, before + COUNT).await;
    }
}

#[tokio::test]
async fn empty_messages_are_bounded_too() {
    let (redis, webws) =
        stack(&format!("{WRITE_ONLY}\nmax_unpublished_bytes = 65536\npublish_timeout = \"60s\""), 1).await;
    let client = Client::connect(&webws.target(), "/in?channel=empty").await;
    let mut other = Witness::join(&webws.target(), "/in?channel=other").await;
    redis.freeze();
    let all = client_frame(0x80 | TEXT, b"").repeat(500_000);
    let written = timeout(Duration::from_secs(4), client.send_raw(&all)).await;
    assert!(written.is_err(), "500,000 texts wait for a frozen Redis");
    other.ping(b"x", Duration::from_secs(1)).await;
    redis.thaw();
}

#[tokio::test]
async fn after_publish_timeout_a_client_is_told_and_nothing_of_it_is_published_later() {
    let settings = format!("{WRITE_ONLY}\nmax_unpublished_bytes = 65536\npublish_timeout = \"2s\"");
    let (mut redis, mut webws) = stack(&settings, 1).await;
    for target in [webws.target(), webws.tcp_target()] {
        let mut few = Witness::join(&target, "/in?channel=few").await;
        let mut many = Client::connect(&target, "/in?channel=many").await;
        redis.kill();
        until("webws has noticed", SOON, async || !webws.is_ready().await).await;
        few.client.send_raw(&texts(0..20, 0)).await;
        few.ping(b"meanwhile", Duration::from_secs(1)).await;
        let all = texts(0..1_000, 8_000);
        assert!(timeout(Duration::from_millis(500), many.send_raw(&all)).await.is_err(), "it is not held back");
        few.expect_close(1013, SOON).await;
        // A client whose socket was full reads it as well.
        many.expect_close(1013, SOON).await;
        redis.start_again().await;
        assert!(upgrades_within(&target, "/in?channel=late", SOON * 2).await, "webws does not serve again");
        // A text that is published for certain comes behind all others.
        let spy = redis.spy(b"chat:late").await;
        let late = Client::connect(&target, "/in?channel=late").await;
        late.send_text("0").await;
        expect_numbers(&spy, 1).await;
    }
    webws.term();
    assert!(webws.wait_exit(SOON).await.success());
    assert_eq!(webws.counter("texts_published"), 2);
}

#[tokio::test]
async fn what_waits_behind_a_frozen_redis_is_not_published_after_its_client_was_told() {
    let (redis, webws) = stack(&format!("{WRITE_ONLY}\npublish_timeout = \"2s\""), 1).await;
    let spy = redis.spy(b"chat:frozen").await;
    let mut witness = Witness::join(&webws.target(), "/in?channel=frozen").await;
    redis.freeze();
    // The first is on its way to Redis when the others come.
    witness.client.send_raw(&texts(0..1, 0)).await;
    until("the first is in Redis' socket", SOON, async || has_unread(redis.port())).await;
    witness.client.send_raw(&texts(1..100, 0)).await;
    witness.expect_close(1013, SOON).await;
    redis.thaw();
    assert!(upgrades_within(&webws.target(), "/in?channel=frozen", SOON).await, "webws does not serve again");
    let marker = Client::connect(&webws.target(), "/in?channel=frozen").await;
    marker.send_raw(&texts(100..101, 0)).await;
    until("the marker is published", SOON, async || numbers(&spy).contains(&100)).await;
    // Bytes that Redis has cannot be taken back: nobody knows, and 1013 is right. The first may have
    // waited behind the link's own probe.
    assert!(matches!(numbers(&spy)[..], [0, 100] | [100]), "{:?}", numbers(&spy));
}

#[tokio::test]
async fn no_message_is_published_twice_however_often_the_link_breaks() {
    let (redis, webws) = stack(WRITE_ONLY, 1).await;
    let spy = redis.spy(b"chat:ledger").await;
    let mut witness = Witness::join(&webws.target(), "/in?channel=ledger").await;
    let mut next = 0;
    // The first number of each connection.
    let mut firsts = vec![0];
    for _ in 0..25 {
        for _ in 0..20 {
            // A client that was told to come back does.
            while witness.take(Duration::ZERO).await {}
            if witness.closed.is_some() || witness.client.end().is_some() {
                assert!(matches!(witness.closed, Some(1013) | None), "{:?}", witness.closed);
                witness = Witness::join(&webws.target(), "/in?channel=ledger").await;
                firsts.push(next);
            }
            witness.client.send_raw(&texts(next..next + 10, 100)).await;
            next += 10;
        }
        for client in redis.clients().await {
            if client.contains(" name=webws-publisher ") {
                let id = client.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
                redis.command(&["CLIENT", "KILL", "ID", id]).await;
            }
        }
    }
    let last = Client::connect(&webws.target(), "/in?channel=ledger").await;
    firsts.push(next);
    last.send_raw(&texts(next..next + 1, 0)).await;
    until("the last is published", SOON, async || numbers(&spy).contains(&next)).await;
    let seen = numbers(&spy);
    // Connections take turns, so a new one may be published before what an old one has left.
    for range in firsts.iter().zip(firsts.iter().skip(1).chain([&usize::MAX])) {
        let own: Vec<_> = seen.iter().filter(|number| (range.0..range.1).contains(number)).collect();
        assert!(own.is_sorted_by(|a, b| a < b), "twice or out of order: {own:?}");
    }
    assert!(seen.len() > 25, "nearly nothing was published: {seen:?}");
}

#[tokio::test]
async fn a_message_that_redis_refuses_closes_its_client_with_1013() {
    let redis = Redis::start().await;
    let least = ["-@all", "+subscribe", "+unsubscribe", "+ping", "+hello", "+auth", "+client|setname"];
    for (user, rights) in [("mute", "&chat:*"), ("narrow", "&chat:ok*")] {
        let mut command = vec!["ACL", "SETUSER", user, "on", ">pw", "resetkeys", "resetchannels", rights];
        command.extend(least);
        if user == "narrow" {
            command.push("+publish");
        }
        redis.command(&command).await;
    }
    for (user, names) in [("mute", &["ok"][..]), ("narrow", &["denied"])] {
        let url = redis.url().replace("redis://", &format!("redis://{user}:pw@"));
        let webws = Webws::builder().broker(&url).workers(1).endpoint_toml(WRITE_ONLY).start().await;
        for name in names {
            let path = format!("/in?channel={name}");
            let (mut sender, mut other) =
                (Witness::join(&webws.target(), &path).await, Witness::join(&webws.target(), &path).await);
            sender.client.send_text("x").await;
            sender.expect_close(1013, SOON).await;
            other.ping(b"still here", SOON).await;
        }
        if user == "narrow" {
            let spy = redis.spy(b"chat:ok").await;
            let sender = Client::connect(&webws.target(), "/in?channel=ok").await;
            sender.send_text("0").await;
            expect_numbers(&spy, 1).await;
        }
    }
}

#[tokio::test]
async fn a_channel_that_redis_refuses_is_a_503_and_the_others_are_served() {
    let redis = Redis::start().await;
    redis
        .command(&[
            "ACL",
            "SETUSER",
            "narrow",
            "on",
            ">pw",
            "resetkeys",
            "resetchannels",
            "&chat:ok*",
            "-@all",
            "+subscribe",
            "+unsubscribe",
            "+publish",
            "+ping",
            "+hello",
            "+auth",
            "+client|setname",
        ])
        .await;
    let webws = Webws::builder().broker(&redis.url().replace("://", "://narrow:pw@")).workers(1).start().await;
    let mut before = Witness::join(&webws.target(), &lua("ok")).await;
    let mut asking = JoinSet::new();
    for n in 0..60 {
        let target = webws.target();
        asking.spawn(async move {
            if n % 3 == 0 {
                let answer = Answer::to_upgrade(&target, &lua(&format!("no{}", n % 2)), SOON).await.expect("no answer");
                answer.expect_unavailable("does not allow this channel");
                return None;
            }
            Some((n, Witness::join(&target, &lua(&format!("ok{n}"))).await))
        });
    }
    let joined: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
    assert_eq!(joined.len(), 40);
    for (n, mut witness) in joined {
        assert_eq!(redis.publish(format!("chat:ok{n}").as_bytes(), b"x").await, 1);
        witness.await_text(&format!("xok{n}"), SOON).await;
    }
    before.client.send_text("y").await;
    before.await_text("yok", SOON).await;
    assert_eq!(webws.outages(), [0; 0]);
}

#[tokio::test]
async fn endpoints_without_a_right_do_not_have_it() {
    let redis = Redis::start().await;
    let reader = "path = \"/out\"\nchannel = \"plain\"\nwire = \"plain\"\npublish = false\nmax_message_bytes = 10";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(WRITE_ONLY).endpoint_toml(reader);
    let webws = webws.start().await;
    let spy = redis.spy(b"chat:x").await;
    let mut listener = Witness::join(&webws.target(), "/out?channel=x").await;
    assert_eq!(redis.numsub(b"chat:x").await, 1);
    let mut denied = Witness::join(&webws.target(), "/out?channel=x").await;
    denied.client.send_text("no").await;
    denied.expect_close(1008, SOON).await;
    let mut sender = Witness::join(&webws.target(), "/in?channel=x").await;
    sender.client.send_text("0").await;
    listener.await_text("0", SOON).await;
    sender.collect(Duration::from_millis(300)).await;
    assert_eq!((sender.texts.len(), numbers(&spy)), (0, vec![0]));
    listener.client.reset();
    until("nobody is subscribed", SOON, async || redis.numsub(b"chat:x").await == 0).await;
    sender.client.send_text("1").await;
    until("it is published all the same", SOON, async || numbers(&spy) == [0, 1]).await;
    assert_eq!(redis.numsub(b"chat:x").await, 0);
}

#[tokio::test]
async fn a_message_that_is_too_big_is_answered_with_1009_before_it_is_there() {
    let (redis, webws) = stack("max_message_bytes = 10", 1).await;
    let spy = redis.spy(b"chat:big").await;
    let mut witness = Witness::join(&webws.target(), &lua("big")).await;
    witness.client.send_text("0123456789").await;
    witness.await_text("0123456789big", SOON).await;
    // The header alone says enough.
    witness.client.send_raw(&[0x81, 0x80 | 11, 1, 2, 3, 4]).await;
    witness.expect_close(1009, SOON).await;
    let mut fragmented = Witness::join(&webws.target(), &lua("big")).await;
    fragmented.client.send_raw(&client_frame(TEXT, b"012345")).await;
    fragmented.client.send_raw(&client_frame(0x80, b"01234")).await;
    fragmented.expect_close(1009, SOON).await;
    assert_eq!(spy.seen(), ["0123456789"]);
}

async fn stack(endpoint: &str, workers: usize) -> (Redis, Webws) {
    let redis = Redis::start().await;
    let builder = Webws::builder().broker(&redis.url()).workers(workers);
    let builder = if endpoint.is_empty() { builder } else { builder.endpoint_toml(endpoint) };
    (redis, builder.start().await)
}

fn lua(name: &str) -> String {
    format!("/webws?channel=%22{name}%22")
}

/// Numbered texts as a client's frames, each filled up to `bytes`.
fn texts(numbers: std::ops::Range<usize>, bytes: usize) -> Vec<u8> {
    let text = |n: usize| client_frame(0x80 | TEXT, format!("{:.<bytes$}", format!("{n}.")).as_bytes());
    numbers.flat_map(text).collect()
}

fn number(text: &Bytes) -> usize {
    let text = std::str::from_utf8(text).unwrap();
    text.split('.').next().unwrap().parse().unwrap()
}

fn numbers(spy: &Spy) -> Vec<usize> {
    spy.seen().iter().map(number).collect()
}

/// The numbers from 0 must have been published, each once and in order, and nothing else.
async fn expect_numbers(spy: &Spy, count: usize) {
    holds_within(SOON * 2, async || spy.seen().len() >= count).await;
    let seen = numbers(spy);
    let wrong = seen.iter().enumerate().find(|(place, number)| place != *number);
    assert!(seen.len() == count && wrong.is_none(), "{} of {count} texts; {wrong:?}", seen.len());
}

/// Whether any connection accepted on `port` has bytes that were not read (proc_net_tcp(5)).
fn has_unread(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_its = fields.next().is_some_and(|address| address.ends_with(&local));
        let is_established = fields.nth(1) == Some("01");
        let unread = fields.next().and_then(|queues| queues.split(':').nth(1));
        is_its && is_established && unread != Some("00000000")
    })
}

#[tokio::test]
async fn stopping_waits_for_messages_that_redis_has_not_answered() {
    let (redis, mut webws) = stack(&format!("{WRITE_ONLY}\npublish_timeout = \"20s\""), 1).await;
    let spy = redis.spy(b"chat:a").await;
    let mut with_texts = Witness::join(&webws.target(), "/in?channel=a").await;
    let mut without = Witness::join(&webws.target(), "/in?channel=b").await;
    redis.freeze();
    for n in 0..2 {
        with_texts.client.send_raw(&texts(n..n + 1, 0)).await;
        with_texts.ping(b"it is read", SOON).await;
    }
    webws.term();
    without.expect_close(1001, SOON).await;
    redis.thaw();
    with_texts.expect_close(1001, SOON).await;
    assert!(webws.wait_exit(SOON).await.success());
    expect_numbers(&spy, 2).await;
}

#[tokio::test]
async fn stopping_tells_the_client_whose_message_could_not_be_published() {
    let (redis, mut webws) = stack(&format!("{WRITE_ONLY}\npublish_timeout = \"1s\""), 1).await;
    let mut client = Witness::join(&webws.target(), "/in?channel=a").await;
    redis.freeze();
    client.client.send_text("0").await;
    client.ping(b"it is read", SOON).await;
    webws.term();
    client.expect_close(1013, SOON * 2).await;
    assert!(webws.wait_exit(SOON * 2).await.success());
    assert_eq!(webws.counter("texts_lost"), 1);
}
