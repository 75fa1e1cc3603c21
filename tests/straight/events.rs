//! Promise: server-sent events come straight as they come directly, also on a connection that the client has used
//! before; a client whose request is refused comes back. Long-polls keep their connection to nginx.

use super::{final_count, is_straight, nginx_for, unchanged};
use crate::handover::upgrade;
use crate::sse::PAYLOADS;
use crate::support::client::Socket;
use crate::support::events::{Event, EventStream, events_request};
use crate::support::http::request;
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

const PATH: &str = "/webws?channel=%22a%22";
const HISTORY: &str = "path = \"/webws\"\nhistory = { messages = 20 }";

/// The names of an answer's headers.
fn names(stream: &EventStream) -> Vec<&str> {
    stream.head.headers.iter().map(|(name, _)| name.as_str()).collect()
}

#[tokio::test]
async fn every_payload_arrives_straight_and_over_an_upgrade() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).straight().exchangeable().start().await;
    let page = "location = /page { default_type text/html; return 200 page; }";
    let nginx = nginx_for(&webws, Site { server: page, ..Site::default() }).await;
    // As a browser does, on the connection of its page.
    let used = Socket::connect(&nginx.target()).await.unwrap();
    let loaded = request(&used, b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(loaded.body, "page");
    let mut streams = vec![
        EventStream::open(&webws.target(), PATH).await,
        EventStream::open(&nginx.target(), PATH).await,
        EventStream::on(used, events_request(PATH).as_bytes()).await,
    ];
    let (direct, straight) = streams.split_first().unwrap();
    for stream in straight {
        assert_eq!((is_straight(&stream.head), names(stream)), (true, names(direct)));
    }
    for turn in 0..2 {
        for (payload, ..) in PAYLOADS {
            redis.publish(b"chat:a", payload).await;
        }
        for stream in &mut streams {
            for (_, kind, data) in PAYLOADS {
                stream.expect_kind(kind, data).await;
            }
        }
        if turn == 0 {
            let (is_done, text) = upgrade(&webws).await;
            assert!(is_done, "{text}\n{}", webws.log());
        }
    }
}

#[tokio::test]
async fn a_client_that_comes_back_straight_gets_what_it_missed() {
    let redis = Redis::start().await;
    let mut webws = Webws::builder().broker(&redis.url()).workers(2).straight().endpoint_toml(HISTORY).start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let mut stream = EventStream::open(&nginx.target(), PATH).await;
    redis.publish(b"chat:a", b"seen").await;
    stream.expect("seen").await;
    let id = stream.id.clone();
    drop(stream);
    redis.publish(b"chat:a", b"missed").await;
    let by_header = events_request(PATH).replace("Accept:", &format!("Last-Event-ID: {id}\r\nAccept:"));
    let by_argument = events_request(&format!("{PATH}&lastEventID={id}"));
    for request in [by_header, by_argument] {
        let mut stream = EventStream::request(&nginx.target(), request.as_bytes()).await;
        assert!(is_straight(&stream.head));
        stream.expect("missed").await;
    }
    let mut foreign = EventStream::open(&nginx.target(), &format!("{PATH}&lastEventID=17")).await;
    assert_eq!(foreign.next(SOON).await.map(|event: Event| event.kind).as_deref(), Some("gap"));
    webws.term();
    foreign.expect_close(1001, START).await;
    assert_eq!(final_count(&mut webws, "handoffs").await, 4);
}

/// What a client sees that is refused with 503: an EventSource gives up for good after any status but 200.
#[tokio::test]
async fn a_refused_event_source_gets_a_stream_that_ends_at_once() {
    let limit = "[limits]\nmax_sessions = 1\nretry_after = \"7s\"";
    let webws = Webws::builder().broker("memory").workers(1).straight().extra_toml(limit).start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let stream = EventStream::open(&nginx.target(), PATH).await;
    let mut refused = EventStream::open(&nginx.target(), PATH).await;
    assert!(is_straight(&refused.head), "{:?}", refused.head);
    assert_eq!(refused.next(SOON).await, None);
    let pause = refused.retry.expect("a time to come back");
    assert!(refused.has_ended() && (7_000..=14_000).contains(&pause), "{refused:?}");
    assert!(refused.comments[0].starts_with("503 "), "{refused:?}");
    // What no later attempt would change stays as it is.
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    let answer = request(&socket, events_request("/webws?channel=a").as_bytes()).await;
    assert_eq!((answer.head.status, is_straight(&answer.head)), (400, true), "{answer:?}");
    drop(stream);
    let is_whole = async || {
        let mut stream = EventStream::open(&nginx.target(), PATH).await;
        stream.next(std::time::Duration::from_millis(100)).await;
        !stream.has_ended()
    };
    until("there is room", SOON, is_whole).await;
}

#[tokio::test]
async fn a_poll_keeps_its_connection_to_nginx() {
    let redis = Redis::start().await;
    let mut webws = Webws::builder().broker(&redis.url()).workers(1).straight().endpoint_toml(HISTORY).start().await;
    let nginx = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), unchanged).await;
    let client = Socket::connect(&nginx.target()).await.unwrap();
    let poll = async |offset: &str| {
        let text = format!("GET {PATH}{offset} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
        let answer = request(&client, text.as_bytes()).await;
        let next = answer.head.header("Stream-Next-Offset").unwrap_or_else(|| panic!("no position: {answer:?}"));
        (next.to_owned(), answer)
    };
    let (mut offset, answer) = poll("").await;
    assert!(!is_straight(&answer.head), "{answer:?}");
    for message in ["one", "two"] {
        redis.publish(b"chat:a", message.as_bytes()).await;
        let (next, answer) = poll(&format!("&offset={offset}")).await;
        assert_eq!(answer.body, format!("[\"{message}\"]\n"), "{answer:?}");
        offset = next;
    }
    assert_eq!(final_count(&mut webws, "proxied").await, 3);
    assert!(webws.log().contains(" proxied_poll=3"), "{}", webws.log());
}
