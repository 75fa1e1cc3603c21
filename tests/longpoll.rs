//! Promise: the path of a WebSocket answers long-polls as well. A client that repeats its request with the position of
//! the last answer gets every message, once and in order, or is told that messages may be missing.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::handover::Stage;
use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::http::{Answer, request};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, lasting, until};

const HISTORY: &str = "path = \"/webws\"\nhistory = { messages = 20 }";
const PATH: &str = "/webws?channel=%22a%22";

async fn start(redis: &Redis, settings: &str) -> Webws {
    Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(&format!("{HISTORY}\n{settings}")).start().await
}

fn poll_request(path: &str, offset: &str) -> String {
    let offset = if offset.is_empty() { String::new() } else { format!("&offset={offset}") };
    format!("GET {path}{offset} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
}

async fn poll(target: &Target, path: &str, offset: &str) -> Answer {
    request(&Socket::connect(target).await.unwrap(), poll_request(path, offset).as_bytes()).await
}

/// A poll that is under way.
fn begin(target: &Target, path: &str, offset: &str) -> JoinHandle<Answer> {
    let (target, request) = (target.clone(), poll_request(path, offset));
    tokio::spawn(async move {
        crate::support::http::request(&Socket::connect(&target).await.unwrap(), request.as_bytes()).await
    })
}

fn next(answer: &Answer) -> String {
    answer.head.header("Stream-Next-Offset").unwrap_or_else(|| panic!("no position: {answer:?}")).to_owned()
}

/// The messages of a 200.
fn messages(answer: &Answer) -> Vec<String> {
    assert_eq!((answer.head.status, answer.head.header("Content-Type")), (200, Some("application/json")), "{answer:?}");
    serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

fn is_up_to_date(answer: &Answer) -> bool {
    answer.head.header("Stream-Up-To-Date") == Some("true")
}

/// The number of sockets that webws' event loops watch for reading only: sessions without a backlog are, from their
/// opening on; a connection in its handshake is watched for writing, too. An epoll set may have several descriptors.
fn watched(webws: &Webws) -> usize {
    let infos = std::fs::read_dir(format!("/proc/{}/fdinfo", webws.pid())).unwrap();
    // A descriptor may be closed meanwhile.
    let infos: String = infos.filter_map(|info| std::fs::read_to_string(info.unwrap().path()).ok()).collect();
    infos.lines().filter_map(read_only).collect::<HashSet<_>>().len()
}

/// The socket in a line that describes an entry of an epoll set without `EPOLLOUT` (proc_pid_fdinfo(5)).
fn read_only(line: &str) -> Option<&str> {
    const EPOLLOUT: u32 = 4;
    let fields: Vec<_> = line.strip_prefix("tfd:")?.split_whitespace().collect();
    let events = u32::from_str_radix(fields[2], 16).unwrap();
    (events & EPOLLOUT == 0).then_some(fields[0])
}

/// The same when there is no session: no connection on its sockets.
async fn watched_at_rest(webws: &Webws) -> usize {
    let path = webws.socket().display().to_string();
    let Target::Tcp(address) = webws.tcp_target() else { unreachable!("it is a TCP address") };
    let port = format!(":{:04X}", address.port());
    // proc_net(5); a socket that listens is 0A, one that was closed on both sides 06.
    let is_connection = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&port) && !["0A", "06"].contains(&fields[3])
    };
    until("all connections have ended", SOON, async || {
        let (unix, tcp) = ["unix", "tcp"].map(|of| std::fs::read_to_string(format!("/proc/net/{of}")).unwrap()).into();
        unix.lines().filter(|line| line.ends_with(&path)).count() == 1 && !tcp.lines().any(is_connection)
    })
    .await;
    watched(webws)
}

/// A poll that waits.
async fn wait(webws: &Webws, target: &Target, path: &str, offset: &str) -> JoinHandle<Answer> {
    let at_rest = watched_at_rest(webws).await;
    let waiting = begin(target, path, offset);
    until("it waits", SOON, async || watched(webws) > at_rest).await;
    assert!(!waiting.is_finished());
    waiting
}

/// The position of a client that has none yet.
async fn position(target: &Target) -> String {
    let answer = poll(target, PATH, "").await;
    assert!(messages(&answer).is_empty() && is_up_to_date(&answer), "{answer:?}");
    next(&answer)
}

async fn publish(redis: &Redis, numbers: std::ops::Range<usize>) {
    for number in numbers {
        redis.publish(b"chat:a", number.to_string().as_bytes()).await;
    }
}

fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn a_poll_is_answered_at_once_with_what_was_missed_or_when_a_message_comes() {
    let redis = Redis::start().await;
    let webws = start(&redis, "").await;
    let nginx = Nginx::start(&webws.socket()).await;
    for target in [webws.target(), webws.tcp_target(), nginx.target()] {
        let start = position(&target).await;
        publish(&redis, 0..3).await;
        let answer = poll(&target, PATH, &start).await;
        assert_eq!(messages(&answer), numbers(0..3));
        assert!(is_up_to_date(&answer) && answer.head.header("Stream-Gap").is_none(), "{answer:?}");
        assert_eq!(answer.head.header("Cache-Control"), Some("no-store"));
        let waiting = begin(&target, PATH, &next(&answer));
        publish(&redis, 3..4).await;
        let answer = tokio::time::timeout(SOON, waiting).await.expect("it is answered").unwrap();
        assert_eq!((messages(&answer), is_up_to_date(&answer)), (numbers(3..4), true));
        let again = poll(&target, PATH, &start).await;
        assert_eq!((messages(&again), next(&again)), (numbers(0..4), next(&answer)), "one position for all");
        let by_header = poll_request(PATH, "").replace("Accept", &format!("Last-Event-ID: {start}\r\nAccept"));
        let answer = request(&Socket::connect(&target).await.unwrap(), by_header.as_bytes()).await;
        assert_eq!(messages(&answer), numbers(0..4));
    }
    for target in [webws.target(), nginx.target()] {
        for is_now in [true, false] {
            let offset = if is_now { "now".to_owned() } else { position(&target).await };
            let waiting = wait(&webws, &target, PATH, &offset).await;
            publish(&redis, 4..5).await;
            let answer = tokio::time::timeout(SOON, waiting).await.expect("it is answered").unwrap();
            assert_eq!((messages(&answer), is_up_to_date(&answer)), (numbers(4..5), true));
        }
    }
    assert_eq!(webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn a_poll_without_a_message_is_a_204_with_a_position_that_holds() {
    let redis = Redis::start().await;
    let webws = start(&redis, "poll_timeout = \"300ms\"").await;
    let nginx = Nginx::start(&webws.socket()).await;
    // On one connection to nginx: the sidecar's end of its own does not end it.
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    let mut offset = position(&webws.target()).await;
    for _ in 0..10 {
        let answer = request(&socket, poll_request(PATH, &offset).as_bytes()).await;
        assert_eq!((answer.head.status, answer.body.as_str(), is_up_to_date(&answer)), (204, "", true), "{answer:?}");
        assert_eq!(answer.head.header("Content-Length"), None);
        offset = next(&answer);
    }
    publish(&redis, 0..1).await;
    let answer = request(&socket, poll_request(PATH, &offset).as_bytes()).await;
    assert_eq!(messages(&answer), numbers(0..1));
    let direct = poll(&webws.target(), PATH, &next(&answer)).await;
    assert_eq!((direct.head.status, direct.head.header("Connection")), (204, Some("close")));
}

#[tokio::test]
async fn every_payload_arrives_and_a_client_that_sends_more_or_leaves_disturbs_nothing() {
    let redis = Redis::start().await;
    let replace = "path = \"/text\"\nwire = \"plain\"\nhistory = {}\nchannel = \"path\"\nnot_utf8 = \"replace\"";
    let webws =
        Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(HISTORY).endpoint_toml(replace).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let start = position(&nginx.target()).await;
    let text = next(&poll(&webws.target(), "/text/a?", "").await);
    let payloads: [&[u8]; 6] =
        [b"", b"\"quoted\" \\ \n\r\t\0\x1f", "\u{1f600}\u{2028}".as_bytes(), b"a\xff\x00z", b"[1]", &[b'x'; 30_000]];
    for payload in payloads {
        redis.publish(b"chat:a", payload).await;
    }
    let body = poll(&nginx.target(), PATH, &start).await.body;
    let elements: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
    assert_eq!(elements.len(), payloads.len());
    for (element, payload) in elements.iter().zip(payloads) {
        match std::str::from_utf8(payload) {
            Ok(text) => assert_eq!(element, text),
            Err(_) => assert_eq!(element["binary"], "Yf8Aeg==", "{element}"),
        }
    }
    assert!(poll(&webws.target(), "/text/a?", &text).await.body.contains("\"a\u{fffd}\\u0000z\""));
    // One that sends more, one that leaves while it waits.
    let at_rest = watched_at_rest(&webws).await;
    let [noisy, left] =
        [Socket::connect(&webws.target()).await.unwrap(), Socket::connect(&webws.target()).await.unwrap()];
    noisy.write(poll_request(PATH, "now").repeat(2).as_bytes()).await.unwrap();
    left.write(poll_request(PATH, "now").as_bytes()).await.unwrap();
    until("both wait", SOON, async || watched(&webws) == at_rest + 2).await;
    drop(left);
    until("one has left", SOON, async || watched(&webws) == at_rest + 1).await;
    redis.publish(b"chat:a", b"live").await;
    let mut read = bytes::BytesMut::new();
    while noisy.read(&mut read).await.is_ok() {}
    let answer = String::from_utf8(read.to_vec()).unwrap();
    assert!(answer.ends_with("[\"live\"]\n") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    assert_eq!(webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn a_long_answer_comes_in_parts_that_say_so() {
    let redis = Redis::start().await;
    let bounds = "path = \"/webws\"\nhistory = { messages = 100, bytes = \"1MB\" }\nmax_queue_bytes = 50000";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(bounds).start().await;
    let mut offset = position(&webws.target()).await;
    let payload = |n: usize| format!("{n} {}", "x".repeat(20_000));
    for n in 0..10 {
        redis.publish(b"chat:a", payload(n).as_bytes()).await;
    }
    let (mut got, mut parts) = (Vec::new(), 0);
    while got.len() < 10 {
        let answer = poll(&webws.target(), PATH, &offset).await;
        let part = messages(&answer);
        assert!((1..=3).contains(&part.len()), "{}", part.len());
        got.extend(part);
        assert_eq!(is_up_to_date(&answer), got.len() == 10);
        (offset, parts) = (next(&answer), parts + 1);
    }
    assert_eq!((parts, got), (4, (0..10).map(payload).collect()));
    // A client that reads slowly gets a long answer whole.
    let single = "x".repeat(900_000);
    let slow = Socket::connect_with(&webws.tcp_target(), Some(4_096)).await.unwrap();
    slow.write(poll_request(PATH, &offset).as_bytes()).await.unwrap();
    redis.publish(b"chat:a", single.as_bytes()).await;
    let mut read = bytes::BytesMut::new();
    lasting(Duration::from_millis(1_500)).await;
    while slow.read_at_most(&mut read, 40_000).await.is_ok() {
        if read.len() < 600_000 {
            lasting(Duration::from_millis(50)).await;
        }
    }
    assert!(read.ends_with(format!("[\"{single}\"]\n").as_bytes()), "{}", read.len());
}

#[tokio::test]
async fn what_is_not_kept_is_told_as_a_gap_and_the_client_goes_on_from_there() {
    let redis = Redis::start().await;
    let webws = start(&redis, "").await;
    let nginx = Nginx::start(&webws.socket()).await;
    for target in [webws.target(), nginx.target()] {
        let start = position(&target).await;
        publish(&redis, 0..25).await;
        for offset in [start.as_str(), "17", "AQEjRWeJq83vAw"] {
            let answer = poll(&target, PATH, offset).await;
            let told = answer.head.header("Stream-Gap").unwrap_or_else(|| panic!("{offset}: {answer:?}"));
            assert!(messages(&answer).is_empty() && told.contains("may be missing"), "{offset}: {answer:?}");
            publish(&redis, 25..26).await;
            assert_eq!(messages(&poll(&target, PATH, &next(&answer)).await), numbers(25..26), "{offset}");
        }
        let all = poll(&target, PATH, "-1").await;
        assert!(messages(&all).len() == 20 && all.head.header("Stream-Gap").is_some(), "{all:?}");
    }
}

#[tokio::test]
async fn a_poll_that_waits_while_its_link_is_lost_learns_of_the_gap() {
    let mut redis = Redis::start().await;
    let webws = start(&redis, "").await;
    let offset = position(&webws.target()).await;
    let waiting = wait(&webws, &webws.target(), PATH, &offset).await;
    redis.kill();
    redis.start_again().await;
    let answer = tokio::time::timeout(START, waiting).await.expect("it is answered").unwrap();
    assert_eq!((answer.head.status, is_up_to_date(&answer)), (204, false), "{answer:?}");
    let answer = poll(&webws.target(), PATH, &next(&answer)).await;
    assert!(messages(&answer).is_empty() && answer.head.header("Stream-Gap").is_some(), "{answer:?}");
}

#[tokio::test]
async fn a_request_for_no_poll_is_refused_with_the_reason() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "default", "resetchannels", "&chat:*", "&webws:probe:*"]).await;
    let webws = Webws::builder()
        .broker(&redis.url())
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/silent\"\nsubscribe = false\nhistory = {}")
        .endpoint_toml("path = \"/kept\"\nhistory = {}")
        .start()
        .await;
    let accept = "Host: x\r\nAccept: application/json\r\n";
    for (line, fields, status, why) in [
        ("POST /kept?channel=1 HTTP/1.1", format!("{accept}Content-Length: 1\r\n"), 405, "GET"),
        ("HEAD /kept?channel=1 HTTP/1.1", accept.to_owned(), 405, ""),
        ("GET /webws?channel=1 HTTP/1.1", accept.to_owned(), 400, "history"),
        ("GET /silent?channel=1 HTTP/1.1", accept.to_owned(), 400, "nothing"),
        ("GET /kept?channel=1 HTTP/1.1", format!("{accept}Content-Length: 1\r\n"), 400, "body"),
        ("GET /kept?channel=1 HTTP/1.1", "Accept: application/json\r\n".to_owned(), 400, "Host"),
        ("GET /kept?channel=1 HTTP/1.1", "Host: x\r\nAccept: application/json;q=0\r\n".to_owned(), 400, "neither"),
        ("GET /kept HTTP/1.1", accept.to_owned(), 400, "channel"),
        // No milestones: no positions.
        ("GET /kept?channel=1 HTTP/1.1", accept.to_owned(), 503, "positions"),
    ] {
        let socket = Socket::connect(&webws.target()).await.unwrap();
        let answer = request(&socket, format!("{line}\r\n{fields}\r\n").as_bytes()).await;
        assert!(answer.head.status == status && answer.body.contains(why), "{line} {fields}: {answer:?}");
    }
}

/// Two producers that publish numbers until they are stopped, or have published so many each; returns how many.
fn produce(redis: &Redis, channel: &'static str, most: usize, mut stopped: oneshot::Receiver<()>) -> JoinHandle<usize> {
    let url = redis.url();
    tokio::spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let mut one = client.get_multiplexed_async_connection().await.unwrap();
        let mut other = client.get_multiplexed_async_connection().await.unwrap();
        let mut count = 0;
        while count < most && stopped.try_recv().is_err() {
            for (connection, name) in [(&mut one, "one"), (&mut other, "other")] {
                redis::cmd("PUBLISH").arg(channel).arg(format!("{name} {count}")).exec_async(connection).await.unwrap();
            }
            count += 1;
            if count % 10 == 0 {
                lasting(Duration::from_millis(1)).await;
            }
        }
        count
    })
}

/// What a client gets in a loop of polls, until it has both producers' messages whose number `last` tells.
async fn follow(target: &Target, path: &str, mut offset: String, last: impl Fn() -> Option<usize>) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        if last().is_some_and(|count| got.len() >= 2 * count) {
            return got;
        }
        let answer = poll(target, path, &offset).await;
        assert_eq!(answer.head.header("Stream-Gap"), None, "{answer:?}");
        offset = next(&answer);
        match answer.head.status {
            200 => got.extend(messages(&answer)),
            204 => {}
            status => panic!("{status}: {answer:?}"),
        }
    }
}

/// Each producer's numbers came once and in order.
fn assert_all(got: &[String], count: usize) {
    for name in ["one", "other"] {
        let of = got.iter().filter_map(|text| text.strip_prefix(name)?.strip_prefix(' '));
        let of: Vec<usize> = of.map(|number| number.parse().unwrap()).collect();
        assert!(of == (0..count).collect::<Vec<_>>(), "{name}: {} of {count}", of.len());
    }
    assert_eq!(got.len(), 2 * count);
}

#[tokio::test]
async fn clients_that_repeat_their_polls_miss_and_duplicate_nothing() {
    let redis = Redis::start().await;
    let kept = "path = \"/webws\"\nhistory = { messages = 2000, bytes = \"1MB\" }";
    let webws = Webws::builder().broker(&redis.url()).workers(2).endpoint_toml(kept).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let mut followers = Vec::new();
    for target in [webws.target(), nginx.target(), nginx.target()] {
        let offset = position(&target).await;
        followers.push(tokio::spawn(async move { follow(&target, PATH, offset, || Some(1_000)).await }));
    }
    let (_stop, stopped) = oneshot::channel();
    let count = produce(&redis, "chat:a", 1_000, stopped).await.unwrap();
    for follower in followers {
        let got = tokio::time::timeout(2 * START, follower).await.expect("all arrive").unwrap();
        assert_all(&got, count);
    }
    assert_eq!(webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn a_live_upgrade_costs_no_message_and_polls_that_wait_go_on() {
    let kept = "path = \"/webws\"\nhistory = { messages = 2000, bytes = \"1MB\" }\norigins = [\"https://a.example\"]";
    let mut stage = Stage::start_with(|builder| builder.workers(2).endpoint_toml(kept)).await;
    let nginx = Nginx::start(&stage.webws.socket()).await;
    let target = nginx.target();
    // One waits through the upgrade on a channel without messages.
    let quiet = "/webws?channel=%22quiet%22";
    let offset = next(&poll(&target, quiet, "").await);
    let request = poll_request(quiet, &offset).replace("Accept", "Origin: https://a.example\r\nAccept");
    let waiting = Socket::connect(&target).await.unwrap();
    let waiting = tokio::spawn(async move { crate::support::http::request(&waiting, request.as_bytes()).await });
    let (stop, stopped) = oneshot::channel();
    let (tell, told) = tokio::sync::watch::channel(None);
    let path = "/webws?channel=%22b%22";
    let offset = next(&poll(&target, path, "").await);
    let follower = {
        let target = target.clone();
        tokio::spawn(async move { follow(&target, path, offset, || *told.borrow()).await })
    };
    let producer = produce(&stage.redis, "chat:b", usize::MAX, stopped);
    for _ in 0..2 {
        stage.succeeds().await;
    }
    stop.send(()).unwrap();
    let count = producer.await.unwrap();
    tell.send(Some(count)).unwrap();
    stage.redis.publish(b"chat:b", b"one end").await;
    let mut got = tokio::time::timeout(START, follower).await.expect("all arrive").unwrap();
    got.retain(|text| text != "one end");
    assert_all(&got, count);
    stage.redis.publish(b"chat:quiet", b"at last").await;
    let answer = tokio::time::timeout(SOON, waiting).await.expect("it waited, and is answered").unwrap();
    assert_eq!(messages(&answer), ["at last"]);
    assert_eq!(answer.head.header("Access-Control-Allow-Origin"), Some("https://a.example"));
}

#[tokio::test]
async fn a_poll_that_waits_when_the_sidecar_stops_is_told_to_repeat() {
    let redis = Redis::start().await;
    let mut webws = start(&redis, "").await;
    let nginx = Nginx::start(&webws.socket()).await;
    let offset = position(&nginx.target()).await;
    let waiting = wait(&webws, &nginx.target(), PATH, &offset).await;
    webws.term();
    let answer = tokio::time::timeout(2 * SOON, waiting).await.expect("it is answered").unwrap();
    assert_eq!((answer.head.status, next(&answer), is_up_to_date(&answer)), (204, offset, false), "{answer:?}");
    assert!(webws.wait_exit(2 * SOON).await.success());
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_may_poll() {
    let redis = Redis::start().await;
    let webws = start(&redis, "origins = [\"https://a.example\"]").await;
    let nginx = Nginx::start(&webws.socket()).await;
    for target in [webws.target(), nginx.target()] {
        let with = |origin: &str| poll_request(PATH, "").replace("Accept", &format!("Origin: {origin}\r\nAccept"));
        let ask = async |bytes: String| request(&Socket::connect(&target).await.unwrap(), bytes.as_bytes()).await;
        let answer = ask(with("https://a.example")).await;
        assert_eq!(answer.head.header("Access-Control-Allow-Origin"), Some("https://a.example"), "{answer:?}");
        assert_eq!(answer.head.header("Access-Control-Allow-Credentials"), Some("true"));
        assert_eq!(answer.head.header("Vary"), Some("Origin"));
        let exposed = answer.head.header("Access-Control-Expose-Headers").unwrap();
        for name in ["Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Gap"] {
            assert!(exposed.split(", ").any(|exposed| exposed == name), "{exposed}");
        }
        assert_eq!(ask(with("http://a.example")).await.head.status, 403);
        assert_eq!(ask(poll_request(PATH, "")).await.head.header("Access-Control-Allow-Origin"), None);
    }
}

/// Whatever a site sets that plain HTTP would suffer from; and below the endpoint's path.
#[tokio::test]
async fn a_hostile_site_bends_no_poll() {
    let redis = Redis::start().await;
    let webws = start(&redis, "poll_timeout = \"300ms\"").await;
    let nginx = Nginx::start_in(crate::nginx::site::HOSTILE, &webws.socket(), |_, text| text).await;
    let path = "/webws/below?channel=%22a%22";
    let offset = next(&poll(&nginx.target(), path, "").await);
    let answer = poll(&nginx.target(), path, &offset).await;
    assert_eq!((answer.head.status, answer.head.header("X-Site")), (204, None), "{answer:?}");
    let waiting = begin(&nginx.target(), path, &next(&answer));
    publish(&redis, 0..1).await;
    let answer = waiting.await.unwrap();
    assert_eq!(messages(&answer), numbers(0..1));
    publish(&redis, 1..3).await;
    assert_eq!(messages(&poll(&nginx.target(), path, &next(&answer)).await), numbers(1..3));
}

/// The memory that `open` costs, in kilobytes a connection.
async fn cost<T>(webws: &Webws, sessions: usize, open: &impl AsyncFn() -> T) -> (f64, Vec<T>) {
    let (before, at_rest) = (webws.rss_kb(), watched(webws));
    let mut all = Vec::new();
    for _ in 0..sessions {
        all.push(open().await);
    }
    until("all are open", SOON, async || watched(webws) >= at_rest + sessions).await;
    let grown = webws.rss_kb().saturating_sub(before);
    (f64::from(u32::try_from(grown).unwrap()) / f64::from(u32::try_from(sessions).unwrap()), all)
}

#[tokio::test]
async fn a_poll_that_waits_costs_what_a_websocket_costs() {
    const SESSIONS: usize = 100;
    let redis = Redis::start().await;
    let webws = start(&redis, "").await;
    let target = webws.target();
    let websocket = async || {
        let socket = Socket::connect(&target).await.unwrap();
        Client::request(socket, &upgrade_request(PATH)).await.unwrap()
    };
    let poll = async || {
        let socket = Socket::connect(&target).await.unwrap();
        socket.write(poll_request(PATH, "now").as_bytes()).await.unwrap();
        socket
    };
    // Both once before: what the first of each costs the process is not counted.
    drop((cost(&webws, SESSIONS, &websocket).await, cost(&webws, SESSIONS, &poll).await));
    watched_at_rest(&webws).await;
    let (of_websockets, websockets) = cost(&webws, SESSIONS, &websocket).await;
    let (of_polls, polls) = cost(&webws, SESSIONS, &poll).await;
    assert!(of_polls <= of_websockets + 4.0, "{of_polls} kB a poll, {of_websockets} kB a WebSocket");
    // They all wait.
    redis.publish(b"chat:a", b"all").await;
    for socket in polls {
        let mut read = bytes::BytesMut::new();
        while socket.read(&mut read).await.is_ok() {}
        assert!(read.ends_with(b"[\"all\"]\n"), "{read:?}");
    }
    drop(websockets);
}
