//! Promise: at an endpoint with a history, a client that comes back with its last position gets every message that it
//! missed, once and in order, before anything that follows; or it is told that messages may be missing.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nix::sys::signal::Signal;

use crate::support::client::{Client, Socket, Target};
use crate::support::events::{EventStream, events_request};
use crate::support::frame::TEXT;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, lasting, until};

const HISTORY: &str = "path = \"/webws\"\nhistory = { messages = 5 }";
const PATH: &str = "/webws?channel=%22a%22";
const QUIET: &str = "/webws?channel=%22quiet%22";

async fn start(redis: &Redis, workers: usize) -> Webws {
    Webws::builder().broker(&redis.url()).workers(workers).endpoint_toml(HISTORY).start().await
}

/// A stream that comes back with the id of an event.
async fn come_back(target: &Target, id: &str) -> EventStream {
    come_back_to(target, PATH, id).await
}

async fn come_back_to(target: &Target, path: &str, id: &str) -> EventStream {
    let request = events_request(path).replace("\r\n\r\n", &format!("\r\nLast-Event-ID: {id}\r\n\r\n"));
    EventStream::request(target, request.as_bytes()).await
}

/// A WebSocket with nchan's subprotocol.
async fn connect_meta(target: &Target, path: &str) -> Client {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: ws+meta.nchan\r\n\r\n"
    );
    let socket = Socket::connect(target).await.unwrap();
    let client = Client::request(socket, request.as_bytes()).await.unwrap();
    let subprotocol = client.head().header("Sec-WebSocket-Protocol");
    assert_eq!((client.head().status, subprotocol), (101, Some("ws+meta.nchan")));
    client
}

/// The header and the payload of its next message.
async fn text(client: &mut Client) -> (String, String) {
    let frame = client.next_but_pings(SOON).await.unwrap();
    assert_eq!(frame.opcode, TEXT);
    let text = String::from_utf8(frame.payload.to_vec()).unwrap();
    let (header, payload) = text.split_once("\n\n").unwrap();
    (header.to_owned(), payload.to_owned())
}

async fn publish(redis: &Redis, numbers: std::ops::Range<usize>) {
    for number in numbers {
        redis.publish(b"chat:a", number.to_string().as_bytes()).await;
    }
}

async fn expect(stream: &mut EventStream, numbers: std::ops::Range<usize>) {
    for number in numbers {
        stream.expect(&number.to_string()).await;
    }
}

/// The position of a stream that has just begun.
async fn begin(target: &Target) -> EventStream {
    begin_at(target, PATH).await
}

async fn begin_at(target: &Target, path: &str) -> EventStream {
    let mut stream = EventStream::open(target, path).await;
    while stream.id.is_empty() {
        assert_eq!(stream.next(SOON / 50).await, None, "only the position comes by itself");
    }
    stream
}

#[tokio::test]
async fn an_event_stream_that_comes_back_gets_what_it_missed_in_order() {
    let redis = Redis::start().await;
    let webws = start(&redis, 1).await;
    let mut first = begin(&webws.target()).await;
    let start = first.id.clone();
    publish(&redis, 0..2).await;
    expect(&mut first, 0..2).await;
    let seen = first.id.clone();
    assert_ne!(seen, start);
    drop(first);
    publish(&redis, 2..4).await;
    let mut stream = come_back(&webws.target(), &seen).await;
    expect(&mut stream, 2..4).await;
    publish(&redis, 4..5).await;
    expect(&mut stream, 4..5).await;
    let mut from_start = come_back(&webws.target(), &start).await;
    expect(&mut from_start, 0..5).await;
    let mut seen_all = come_back(&webws.target(), &stream.id).await;
    publish(&redis, 5..6).await;
    expect(&mut seen_all, 5..6).await;
}

#[tokio::test]
async fn what_is_not_kept_is_told_as_a_gap_and_never_given_in_part() {
    let redis = Redis::start().await;
    let webws = start(&redis, 1).await;
    let mut first = begin(&webws.target()).await;
    let start = first.id.clone();
    publish(&redis, 0..7).await;
    expect(&mut first, 0..7).await;
    for id in [start.as_str(), "17", "AQEjRWeJq83vAw"] {
        let mut stream = come_back(&webws.target(), id).await;
        let event = stream.next(SOON).await.expect("it is told");
        assert!(event.kind == "gap" && event.data.contains("may be missing"), "{event:?}");
        publish(&redis, 7..8).await;
        expect(&mut stream, 7..8).await;
    }
}

#[tokio::test]
async fn a_client_that_comes_in_the_middle_gets_all_that_is_kept_or_is_told_that_there_was_more() {
    let redis = Redis::start().await;
    let webws = start(&redis, 1).await;
    let mut first = come_back(&webws.target(), "-1").await;
    publish(&redis, 0..4).await;
    expect(&mut first, 0..4).await;
    let mut streams = vec![first];
    for _ in 0..2 {
        let mut stream = come_back(&webws.target(), "-1").await;
        expect(&mut stream, 0..4).await;
        streams.push(stream);
    }
    publish(&redis, 4..7).await;
    for stream in &mut streams {
        expect(stream, 4..7).await;
        let mut late = EventStream::open(&webws.target(), &format!("{PATH}&last_event_id=-1")).await;
        assert_eq!(late.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"), "5 are kept");
        expect(&mut late, 2..7).await;
    }
}

#[tokio::test]
async fn a_websocket_with_nchans_subprotocol_has_positions_and_comes_back_with_one() {
    let redis = Redis::start().await;
    let webws = start(&redis, 1).await;
    let mut client = connect_meta(&webws.target(), PATH).await;
    publish(&redis, 0..1).await;
    let (header, payload) = text(&mut client).await;
    let id = header.strip_prefix("id: ").unwrap().to_owned();
    assert_eq!(payload, "0");
    drop(client);
    publish(&redis, 1..3).await;
    let mut client = connect_meta(&webws.target(), &format!("{PATH}&last_event_id={id}")).await;
    assert_eq!((text(&mut client).await.1, text(&mut client).await.1), ("1".to_owned(), "2".to_owned()));
    let mut lost = connect_meta(&webws.target(), &format!("{PATH}&last_event_id=none")).await;
    assert_eq!(text(&mut lost).await.0, "event: gap");
    let mut lost = connect_meta(&webws.target(), &format!("{PATH}&last_event_id=AQEjRWeJq83vAw")).await;
    assert_eq!(text(&mut lost).await.0, "event: gap");
    let (header, payload) = text(&mut lost).await;
    assert!(header.ends_with("\nevent: position") && payload.is_empty(), "{header:?}");
}

#[tokio::test]
async fn a_gap_that_a_client_was_told_of_is_not_told_again_when_it_comes_back() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(HISTORY);
    let webws = webws.extra_toml("[redis]\nreplay = \"off\"").start().await;
    let target = webws.target();
    let mut events = begin(&target).await;
    let mut socket = connect_meta(&target, PATH).await;
    let before = events.id.clone();
    for gaps in 1..=2 {
        let last = events.id.clone();
        redis.kill_links().await;
        assert_eq!(events.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"));
        assert_eq!(text(&mut socket).await.0, "event: gap");
        until("the gap is counted", SOON, async || webws.gaps().len() == gaps).await;
        // Nothing is published, and both have a position from behind the gap.
        let told = text(&mut socket).await.0;
        let id = told.strip_prefix("id: ").and_then(|told| told.strip_suffix("\nevent: position")).unwrap();
        while events.id == last {
            assert_eq!(events.next(SOON / 50).await, None, "only the position comes by itself");
        }
        events = come_back(&target, &events.id).await;
        socket = connect_meta(&target, &format!("{PATH}&last_event_id={id}")).await;
        publish(&redis, 0..1).await;
        expect(&mut events, 0..1).await;
        assert_eq!(text(&mut socket).await.1, "0");
    }
    let mut late = come_back(&target, &before).await;
    assert_eq!(late.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"), "it was not told");
}

#[tokio::test]
async fn without_the_right_to_milestones_everything_works_but_positions() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "default", "resetchannels", "&chat:*", "&webws:probe:*"]).await;
    let webws = start(&redis, 1).await;
    let mut stream = EventStream::open(&webws.target(), PATH).await;
    publish(&redis, 0..1).await;
    expect(&mut stream, 0..1).await;
    assert_eq!(stream.id, "");
    let mut again = come_back(&webws.target(), "AQEjRWeJq83vAw").await;
    assert_eq!(again.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"));
    let told = || webws.log().matches("does not allow the channel webws:milestone").count();
    until("it is told", SOON, async || told() == 1).await;
}

#[tokio::test]
async fn a_worker_that_has_not_heard_a_channel_answers_from_what_another_keeps() {
    let redis = Redis::start().await;
    let webws = start(&redis, 3).await;
    let mut first = begin(&webws.target()).await;
    let start = first.id.clone();
    publish(&redis, 0..4).await;
    expect(&mut first, 0..4).await;
    // Each goes to a worker with the fewest sessions.
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut stream = come_back(&webws.target(), &start).await;
        expect(&mut stream, 0..4).await;
        streams.push(stream);
    }
    publish(&redis, 4..5).await;
    for stream in &mut streams {
        expect(stream, 4..5).await;
        assert_eq!(stream.id, streams_id(&mut first).await, "positions are those of the server, not of a worker");
    }
}

/// The last position of a stream that has read everything.
async fn streams_id(stream: &mut EventStream) -> String {
    while stream.next(SOON / 50).await.is_some() {}
    stream.id.clone()
}

#[tokio::test]
async fn a_process_that_is_killed_costs_no_message_where_redis_has_a_log() {
    let redis = Redis::start().await;
    let builder = || {
        let builder = Webws::builder().broker(&redis.url()).workers(2).endpoint_toml(HISTORY);
        builder.extra_toml("[redis]\nreplay = \"on\"")
    };
    let mut killed = builder().start().await;
    let has_log = async || {
        let info = redis.command(&["INFO", "replication"]).await;
        redis::from_redis_value::<String>(info).unwrap().contains("repl_backlog_active:1")
    };
    until("there is a log", SOON, has_log).await;
    // The next milestone knows the log, and the one behind it surely.
    lasting(Duration::from_millis(2_500)).await;
    let mut stream = begin(&killed.target()).await;
    let quiet_id = begin_at(&killed.target(), QUIET).await.id;
    publish(&redis, 0..2).await;
    expect(&mut stream, 0..2).await;
    killed.signal(Signal::SIGKILL);
    killed.wait_exit(SOON).await;
    publish(&redis, 2..4).await;
    let fresh = builder().start().await;
    publish(&redis, 4..5).await;
    let mut back = come_back(&fresh.target(), &stream.id).await;
    expect(&mut back, 2..5).await;
    publish(&redis, 5..6).await;
    expect(&mut back, 5..6).await;
    // Nothing was published here.
    let mut quiet = come_back_to(&fresh.target(), QUIET, &quiet_id).await;
    redis.publish(b"chat:quiet", b"7").await;
    quiet.expect("7").await;
    // What the log does not have, because it was never told of a log.
    let mut unknown = come_back(&fresh.target(), "AQEjRWeJq83vAw").await;
    assert_eq!(unknown.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"));
    let info: String = redis::from_redis_value(redis.command(&["INFO", "stats"]).await).unwrap();
    assert!(info.contains("sync_full:1\r\n"), "the log was made once, and no data was ever copied: {info}");
}

#[tokio::test]
async fn a_made_up_position_costs_redis_one_reading_at_most_and_is_answered_with_a_gap() {
    let redis = Redis::start_with(&["--repl-backlog-size", "16kb"]).await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(HISTORY);
    let webws = webws.extra_toml("[redis]\nreplay = \"on\"").start().await;
    until("there is a log", SOON, async || redis.info("repl_backlog_active").await == "1").await;
    // More than the log keeps.
    for _ in 0..4 {
        redis.publish(b"elsewhere", &[b'x'; 16_384]).await;
    }
    let milestones = redis.spy(b"webws:milestone").await;
    until("two milestones know the log", SOON, async || milestones.seen().len() >= 2).await;
    let mut first = begin(&webws.target()).await;
    publish(&redis, 0..1).await;
    expect(&mut first, 0..1).await;
    let token = URL_SAFE_NO_PAD.decode(&first.id).unwrap();
    // A form, eight bytes of a milestone, a count, eight bytes of a replication id, and an offset (`src/position.rs`).
    assert_eq!((token[0], token[9]), (2, 1), "{token:?}");
    let changed = |range: std::ops::Range<usize>| {
        let mut token = token.clone();
        token[range].iter_mut().for_each(|byte| *byte ^= 0x55);
        token
    };
    let with_offset = |offset: &[u8]| [&changed(1..9)[..18], offset].concat();
    let far = [&[0xff; 8][..], &[0x7f]].concat();
    for (token, most) in [
        (changed(1..9), 1),
        (changed(1..18), 0),
        (with_offset(&[0]), 0),
        (with_offset(&[100]), 0),
        (with_offset(&far), 0),
    ] {
        let before = redis.calls("psync").await;
        let id = URL_SAFE_NO_PAD.encode(&token);
        let mut stream = come_back(&webws.target(), &id).await;
        let event = stream.next(SOON).await.map(|event| event.kind);
        assert_eq!(event.as_deref(), Some("gap"), "{token:?}");
        publish(&redis, 1..2).await;
        expect(&mut stream, 1..2).await;
        assert_eq!(redis.calls("psync").await - before, most, "{token:?}");
    }
    assert_eq!((redis.info("sync_full").await.as_str(), redis.info("sync_partial_err").await.as_str()), ("1", "0"));
}

#[tokio::test]
async fn a_client_that_was_away_too_long_is_told_and_costs_others_nothing() {
    let redis = Redis::start_with(&["--repl-backlog-size", "16kb"]).await;
    let builder = || {
        let builder = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(HISTORY);
        builder.extra_toml("[redis]\nreplay = \"on\"")
    };
    let mut killed = builder().start().await;
    until("there is a log", SOON, async || redis.info("repl_backlog_active").await == "1").await;
    let milestones = redis.spy(b"webws:milestone").await;
    let knows_log = async || {
        let before = milestones.seen().len();
        until("two milestones know the log", SOON, async || milestones.seen().len() >= before + 2).await;
    };
    knows_log().await;
    let mut stream = begin(&killed.target()).await;
    publish(&redis, 0..1).await;
    expect(&mut stream, 0..1).await;
    let old = stream.id.clone();
    // More than the log keeps.
    for _ in 0..4 {
        redis.publish(b"elsewhere", &[b'x'; 16_384]).await;
    }
    knows_log().await;
    publish(&redis, 1..2).await;
    expect(&mut stream, 1..2).await;
    killed.signal(Signal::SIGKILL);
    killed.wait_exit(SOON).await;
    publish(&redis, 2..3).await;
    let fresh = builder().start().await;
    let _live = begin(&fresh.target()).await;
    // The readings of the log queue up.
    redis.freeze();
    let target = fresh.target();
    let thaw = async {
        lasting(Duration::from_millis(300)).await;
        redis.thaw();
    };
    let (mut first, mut late, mut last, ()) =
        tokio::join!(come_back(&target, &stream.id), come_back(&target, &old), come_back(&target, &stream.id), thaw);
    assert_eq!(late.next(SOON).await.map(|event| event.kind).as_deref(), Some("gap"));
    expect(&mut first, 2..3).await;
    expect(&mut last, 2..3).await;
}
