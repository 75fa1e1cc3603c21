//! Promise: the path of a WebSocket serves server-sent events as well, to an `EventSource`, curl or anything that
//! speaks HTTP, with everything that a WebSocket has: the same channels, backpressure, drain and live upgrade.
//!
//! `page` is about a real browser, `tokens` about the example in examples/tokens.

mod page;
mod tokens;

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::handover::Stage;
use crate::support::client::{Client, Socket, Target};
use crate::support::events::{Event, EventStream, events_request};
use crate::support::http::{Answer, handshake, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, free_port, lasting, until};

const PATH: &str = "/webws?channel=%22a%22";

/// What is published, and the event that arrives.
pub(crate) const PAYLOADS: [(&[u8], &str, &str); 8] = [
    (b"text", "message", "text"),
    (b"", "message", ""),
    (b" two\nlines \n", "message", " two\nlines \n"),
    (b"data: a\r\n\r\nid: b\rretry: 1", "message", "data: a\n\nid: b\nretry: 1"),
    (b"NUL \0, :colon", "message", "NUL \0, :colon"),
    ("\u{feff}\u{1f600}".as_bytes(), "message", "\u{feff}\u{1f600}"),
    (b"a\xff\x00\xe4\xb8z\n", "binary", "Yf8A5Lh6Cg=="),
    (b"last", "message", "last"),
];

#[tokio::test]
async fn every_payload_arrives_as_an_event_directly_and_through_nginx() {
    let redis = Redis::start().await;
    let webws = Webws::builder()
        .broker(&redis.url())
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/text\"\nwire = \"sse\"\nchannel = \"path\"\nnot_utf8 = \"replace\"")
        .start()
        .await;
    let nginx = Nginx::start(&webws.socket()).await;
    let mut websocket = Client::connect(&webws.target(), PATH).await;
    let mut streams = Vec::new();
    for target in [webws.target(), webws.tcp_target(), nginx.target()] {
        streams.push(EventStream::open(&target, PATH).await);
    }
    for (payload, ..) in PAYLOADS {
        redis.publish(b"chat:a", payload).await;
    }
    for stream in &mut streams {
        for (_, kind, data) in PAYLOADS {
            stream.expect_kind(kind, data).await;
        }
        let retry = stream.retry.expect("a pause before a client comes back");
        assert!((2_000..=4_000).contains(&retry), "{retry}");
        assert_eq!(stream.head.header("Cache-Control"), Some("no-store"));
    }
    let names: Vec<_> = streams[0].head.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["Content-Type", "Cache-Control", "X-Accel-Buffering", "Connection"]);
    websocket.expect_text("texta").await;

    // Without the header at an endpoint with that wire, and over HTTP/1.0.
    for request in ["GET /text/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /text/a HTTP/1.0\r\n\r\n"] {
        let mut stream = EventStream::request(&webws.target(), request.as_bytes()).await;
        redis.publish(b"chat:a", b"a\xe4\xb8\nz").await;
        stream.expect("a\u{fffd}\u{fffd}\nz").await;
    }
}

#[tokio::test]
async fn a_request_for_no_event_stream_is_refused_with_the_reason() {
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/silent\"\nsubscribe = false")
        .endpoint_toml("path = \"/only\"\nwire = \"sse\"")
        .start()
        .await;
    let accept = "Host: x\r\nAccept: text/event-stream\r\n";
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (line, fields, status, why) in [
        ("HEAD /webws?channel=1 HTTP/1.1", accept.to_owned(), 405, ""),
        ("POST /webws?channel=1 HTTP/1.1", format!("{accept}Content-Length: 1\r\n"), 405, "GET"),
        ("GET /webws?channel=1 HTTP/1.1", "Host: x\r\nAccept: */*\r\n".to_owned(), 400, "neither"),
        ("GET /webws?channel=1 HTTP/1.1", "Host: x\r\nAccept: text/event-stream;q=0\r\n".to_owned(), 400, "neither"),
        ("GET /webws?channel=1 HTTP/1.1", "Accept: text/event-stream\r\n".to_owned(), 400, "Host"),
        ("GET /webws?channel=1 HTTP/1.1", format!("{accept}Content-Length: 1\r\n"), 400, "body"),
        ("GET /webws?channel=1 HTTP/1.1", format!("{accept}X-Webws-Endpoint: /only\r\n"), 400, "different endpoint"),
        ("GET /webws?channel=a HTTP/1.1", accept.to_owned(), 400, "channel"),
        ("GET /webws?channel=1&Channel=2 HTTP/1.1", accept.to_owned(), 400, "twice"),
        ("GET /webws/../webws?channel=1 HTTP/1.1", accept.to_owned(), 400, "'..'"),
        ("GET /nothing?channel=1 HTTP/1.1", accept.to_owned(), 404, "nothing"),
        ("GET /silent?channel=1 HTTP/1.1", accept.to_owned(), 400, "nothing"),
        ("GET /only?channel=1 HTTP/1.1", format!("{accept}{upgrade}"), 400, "no WebSockets"),
        ("GET /webws?channel=1 HTTP/1.1", format!("{accept}{upgrade}"), 101, ""),
    ] {
        let socket = Socket::connect(&webws.target()).await.unwrap();
        let answer = request(&socket, format!("{line}\r\n{fields}\r\n").as_bytes()).await;
        assert!(answer.head.status == status && answer.body.contains(why), "{line} {fields}: {answer:?}");
    }
    // Another upgrade is none (curl --http2).
    let h2c = events_request("/webws?channel=1").replace("keep-alive", "Upgrade, HTTP2-Settings\r\nUpgrade: h2c");
    EventStream::request(&webws.target(), h2c.as_bytes()).await;
}

async fn request_answer(target: &Target, bytes: &str) -> Answer {
    request(&Socket::connect(target).await.unwrap(), bytes.as_bytes()).await
}

#[tokio::test]
async fn a_stream_begins_when_its_channel_is_subscribed() {
    let mut redis = Redis::start().await;
    let url = redis.url().replace("//", "//web:pw@");
    redis.command(&["ACL", "SETUSER", "web", "on", ">pw", "&chat:a", "&webws:probe:*", "+@all"]).await;
    let webws = Webws::builder().broker(&url).workers(1).extra_toml("[limits]\nretry_after = \"7s\"").start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let ask = async |target: &Target, path: &str| request_answer(target, &events_request(path)).await;
    for target in [webws.target(), nginx.target()] {
        let mut stream = EventStream::open(&target, PATH).await;
        assert!(redis.publish(b"chat:a", b"at once").await > 0);
        stream.expect("at once").await;
    }
    let other = "/webws?channel=%22b%22";
    ask(&webws.target(), other).await.assert_unavailable("7");
    // An EventSource would never come back after a 503, so nginx makes a stream of it that ends at once.
    let refused = ask(&nginx.target(), other).await;
    assert_ends_at_once(&refused, 503, 7);
    redis.kill();
    until("it refuses", START, async || ask(&webws.target(), PATH).await.head.status == 503).await;
    assert_ends_at_once(&ask(&nginx.target(), PATH).await, 503, 7);
}

/// A stream without an event, which says with what status it was refused, and after how many seconds, and up to one
/// more, its client comes back.
fn assert_ends_at_once(answer: &Answer, status: u16, seconds: u64) {
    let kind = answer.head.header("Content-Type");
    assert_eq!((answer.head.status, kind), (200, Some("text/event-stream")), "{answer:?}");
    let (comment, retry) = answer.body.split_once("\nretry: ").unwrap_or_else(|| panic!("no pause: {answer:?}"));
    assert!(comment.starts_with(&format!(": {status} ")) && !comment.contains('\n'), "{answer:?}");
    let pause: u64 = retry.strip_suffix("\n\n").unwrap().parse().unwrap();
    assert!((1_000 * seconds..1_000 * (seconds + 1)).contains(&pause), "{answer:?}");
}

#[tokio::test]
async fn a_refusal_that_an_event_source_would_not_survive_is_a_stream_that_ends_at_once() {
    let mut webws = Webws::on("memory").await;
    let guard = Site { server: "auth_request /_auth; location = /_auth { return 401; }", ..Site::default() };
    let guarded = Nginx::start_in(guard, &webws.socket(), |_, text| text).await;
    let hostile = Nginx::start_in(crate::nginx::site::HOSTILE, &webws.socket(), |_, text| text).await;
    let ask = async |nginx: &Nginx, request: &str| {
        request_answer(&nginx.target(), &request.replace("keep-alive", "close")).await
    };
    let (events, below) = (events_request(PATH), events_request("/webws/x.html?channel=%22a%22"));
    // What no later attempt would change stays as it is.
    assert_eq!(ask(&guarded, &events).await.head.status, 401);
    assert_eq!(ask(&hostile, &events_request("/webws?channel=a")).await.head.status, 400);
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!(ask(&guarded, &events).await.head.status, 401);
    for request in [&events, &below] {
        let answer = ask(&hostile, request).await;
        assert_ends_at_once(&answer, 502, 5);
        assert_eq!((answer.head.header("X-Site"), answer.all("Cache-Control")), (None, vec!["no-store"]), "{answer:?}");
    }
    // Others understand a status.
    assert_eq!(handshake(&hostile.target(), PATH).await.head.status, 502);
}

#[tokio::test]
async fn what_a_client_sends_behind_its_request_is_ignored_and_its_silence_as_well() {
    let redis = Redis::start().await;
    let times = "ping_interval = \"200ms\"\nidle_timeout = \"500ms\"";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(times).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let mut direct = EventStream::open(&webws.target(), PATH).await;
    let mut through = EventStream::open(&nginx.target(), PATH).await;
    direct.send(events_request(PATH).as_bytes()).await;
    direct.send(&[0x81; 100_000]).await;
    lasting(Duration::from_secs(2)).await;
    redis.publish(b"chat:a", b"still here").await;
    for stream in [&mut direct, &mut through] {
        stream.expect("still here").await;
        assert!(stream.pings >= 5, "{stream:?}");
    }
    // The end of either is noticed.
    direct.fin();
    drop(through);
    until("nobody is subscribed", SOON, async || redis.numsub(b"chat:a").await == 0).await;
    assert_eq!(webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed_and_others_keep_receiving() {
    let redis = Redis::start().await;
    let limits = "max_queue_bytes = 1000000";
    let mut webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(limits).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let mut slow = EventStream::open(&webws.target(), PATH).await;
    let mut slow_behind_nginx = EventStream::open(&nginx.target(), PATH).await;
    let mut quick = EventStream::open(&nginx.target(), PATH).await;
    let payload = format!("{}\nend", "x".repeat(60_000));
    for _ in 0..300 {
        redis.publish(b"chat:a", payload.as_bytes()).await;
        quick.expect(&payload).await;
    }
    for stream in [&mut slow, &mut slow_behind_nginx] {
        let mut whole = 0;
        while let Some(event) = stream.next(SOON).await {
            assert_eq!(event, Event { kind: "message".to_owned(), data: payload.clone() });
            whole += 1;
        }
        // A client that takes nothing for a second more loses the comment as well, and the event that was begun.
        assert!(whole < 300 && stream.has_ended(), "{whole}");
    }
    webws.term();
    quick.expect_close(1001, SOON).await;
    webws.wait_exit(SOON).await;
    assert_eq!(webws.counter("closed_slow_consumer"), 2, "{}", webws.log());
}

#[tokio::test]
async fn a_live_upgrade_keeps_every_stream_and_loses_no_event() {
    let mut stage = Stage::start().await;
    let nginx = Nginx::start(&stage.webws.socket()).await;
    let path = "/webws?channel=%22b%22";
    let mut streams =
        [EventStream::open(&stage.webws.target(), path).await, EventStream::open(&nginx.target(), path).await];
    let url = stage.redis.url();
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let producer = tokio::spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut count = 0;
        while stopped.try_recv().is_err() {
            let payload = format!("{count}\n{}", "x".repeat(2_000));
            redis::cmd("PUBLISH").arg("chat:b").arg(payload).exec_async(&mut connection).await.unwrap();
            count += 1;
            lasting(Duration::from_millis(1)).await;
        }
        count
    });
    for _ in 0..2 {
        stage.succeeds().await;
    }
    stop.send(()).unwrap();
    let count: usize = producer.await.unwrap();
    assert!(count > 30, "{count}");
    for stream in &mut streams {
        for n in 0..count {
            stream.expect(&format!("{n}\n{}", "x".repeat(2_000))).await;
        }
        assert!(!stream.has_ended());
    }
    stage.webws.term();
    for stream in &mut streams {
        stream.expect_close(1001, 2 * SOON).await;
    }
    assert_eq!(stage.webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_or_is_told_of_a_gap() {
    let redis = Redis::start().await;
    let kept = "history = { messages = 10, age = \"1m\", bytes = \"10kB\" }";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(kept).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    for target in [webws.target(), nginx.target()] {
        let mut stream = EventStream::open(&target, PATH).await;
        redis.publish(b"chat:a", b"seen").await;
        stream.expect("seen").await;
        let id = stream.id.clone();
        assert!(!id.is_empty(), "{stream:?}");
        drop(stream);
        for n in 0..3 {
            redis.publish(b"chat:a", format!("missed {n}").as_bytes()).await;
        }
        let by_header = events_request(PATH).replace("Accept:", &format!("Last-Event-ID: {id}\r\nAccept:"));
        let by_argument = events_request(&format!("{PATH}&lastEventID={id}"));
        let mut back = [
            EventStream::request(&target, by_header.as_bytes()).await,
            EventStream::request(&target, by_argument.as_bytes()).await,
        ];
        redis.publish(b"chat:a", b"live").await;
        for stream in &mut back {
            for data in ["missed 0", "missed 1", "missed 2", "live"] {
                stream.expect(data).await;
            }
        }
        let mut foreign = EventStream::open(&target, &format!("{PATH}&lastEventID=17")).await;
        let gap = foreign.next(SOON).await.expect("a gap");
        assert_eq!(gap.kind, "gap", "{gap:?}");
    }
}

/// Whatever a site sets that plain HTTP would suffer from.
#[tokio::test]
async fn a_hostile_site_and_http_2_bend_no_stream() {
    let redis = Redis::start().await;
    let webws = Webws::on(&redis.url()).await;
    let port = free_port();
    let hostile = crate::nginx::site::HOSTILE;
    let server = format!("{}\nlisten 127.0.0.1:{port} http2;", hostile.server);
    let site = Site { server: &server, ..hostile };
    let nginx = Nginx::start_in(site, &webws.socket(), |_, text| text).await;
    let mut stream = EventStream::open(&nginx.target(), "/webws/below?channel=%22a%22").await;
    assert_eq!(stream.head.header("X-Site"), None, "{:?}", stream.head);
    let url = format!("http://127.0.0.1:{port}{PATH}");
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sN", "--compressed", "--http2-prior-knowledge", "-H", "Accept: text/event-stream", &url])
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut curl = curl.spawn().unwrap_or_else(|e| panic!("cannot start curl: {e}; get it with: apt-get install curl"));
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let mut line = async || loop {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("a line").unwrap();
        // Positions have a test of their own.
        if !line.as_ref().is_some_and(|line| line.is_empty() || line.starts_with("id: ")) {
            return line;
        }
    };
    assert!(line().await.unwrap().starts_with("retry: "));
    for n in 0..50 {
        redis.publish(b"chat:a", format!("{n}").as_bytes()).await;
        stream.expect(&n.to_string()).await;
        assert_eq!(line().await, Some(format!("data: {n}")));
    }
    webws.term();
    stream.expect_close(1001, SOON).await;
    assert!(line().await.unwrap().starts_with(": 1001 "));
    let ended = tokio::time::timeout(SOON, curl.wait()).await.expect("curl ends").unwrap();
    assert!(ended.success(), "{ended}");
}
