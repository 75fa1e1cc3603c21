//! Promise: a client that is gone or does not read is found out in time and told; one that is merely
//! slow stays, and nobody else notices either of them.

use std::time::Duration;

use bytes::BytesMut;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::client::{Client, End, Socket, Target, upgrade_request};
use crate::support::frame::{CLOSE, PING, PONG, TEXT, client_frame, take_head};
use crate::support::redis::Redis;
use crate::support::webws::{Builder, Webws};
use crate::support::witness::{Answer, Witness, upgrades_within};
use crate::support::{SOON, until};

#[tokio::test]
async fn a_client_that_never_answers_is_closed_and_one_that_answers_stays() {
    let webws = memory("ping_interval = \"200ms\"\nidle_timeout = \"1s\"").await;
    let silent = async {
        let start = Instant::now();
        let mut silent = Client::connect(&webws.target(), &lua("a")).await;
        let mut pings = 0;
        let last = loop {
            let frame = silent.next_frame(SOON).await.expect("neither a ping nor a close frame");
            if frame.opcode != PING {
                break frame;
            }
            pings += 1;
            assert!(start.elapsed() < SOON, "{pings} pings and no end");
        };
        assert_eq!(last.close_code(), Some(1001), "{last:?}");
        assert!((2..=5).contains(&pings), "{pings} pings in a second");
        assert!(start.elapsed() >= Duration::from_secs(1), "closed after {:?}", start.elapsed());
        assert_eq!(silent.ends_within(SOON).await, Some(End::Fin));
    };
    let answering = async {
        let end = Instant::now() + Duration::from_secs(3);
        let mut answering = Client::connect(&webws.target(), &lua("a")).await;
        while Instant::now() < end {
            let frame = answering.next_frame(SOON).await.expect("no ping");
            assert_eq!(frame.opcode, PING, "{frame:?}");
            answering.send_raw(&client_frame(0x80 | PONG, &frame.payload)).await;
        }
        answering.expect_pong(b"still here", SOON).await;
    };
    tokio::join!(silent, answering);
}

#[tokio::test]
async fn a_ping_interval_of_zero_never_pings() {
    let webws = memory("ping_interval = \"0s\"\nidle_timeout = \"0s\"").await;
    let mut client = Client::connect(&webws.target(), &lua("a")).await;
    client.expect_silence(Duration::from_secs(6)).await;
    client.send_text("x").await;
    client.expect_text("xa").await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_by_bytes_after_the_begun_frame() {
    let redis = Redis::start().await;
    let linger = "[redis]\nsubscription_linger = \"0s\"";
    let webws = Webws::builder().broker(&redis.url()).workers(1).extra_toml(linger);
    let webws = webws.endpoint_toml("max_queue_bytes = 300000").start().await;
    for target in [webws.target(), webws.tcp_target()] {
        let mut deaf = slow_reader(&target).await;
        let mut sent = 0;
        // Once it is being closed nobody is subscribed any more.
        while redis.publish(b"chat:slow", &message(sent, 10_000)).await == 1 {
            sent += 1;
            assert!(sent < 3_000, "30 MB wait for one client");
        }
        let mut seen = 0;
        let close = loop {
            let frame = deaf.next_but_pings(SOON).await;
            let frame = frame.unwrap_or_else(|| panic!("no close frame after {seen} texts; end {:?}", deaf.end()));
            if frame.opcode == CLOSE {
                break frame;
            }
            assert_eq!(frame.payload, [&message(seen, 10_000)[..], b"slow"].concat(), "text {seen}");
            seen += 1;
        };
        assert_eq!(close.close_code(), Some(1013), "{close:?}");
        // What waited was dropped: some 300 kB.
        assert!(sent - seen >= 20, "{sent} sent, {seen} seen");
        deaf.send_close(1013).await;
        assert_eq!(deaf.ends_within(SOON).await, Some(End::Fin));
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_by_time_and_the_others_get_everything() {
    const COUNT: usize = 200;
    let redis = Redis::start().await;
    let settings = "stall_timeout = \"1s\"\nmax_queue_bytes = 100000000";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(settings).start().await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(Witness::join(&webws.target(), &lua("slow")).await);
    }
    let descriptors = webws.fd_count();
    let mut deaf = [slow_reader(&webws.target()).await, slow_reader(&webws.tcp_target()).await];
    for n in 0..COUNT {
        redis.publish(b"chat:slow", &message(n, 50_000)).await;
        for other in &mut others {
            other.await_texts(n + 1, SOON).await;
        }
    }
    until("the deaf are closed", SOON, async || webws.fd_count() == descriptors).await;
    for other in &others {
        let expected = (0..COUNT).map(|n| [&message(n, 50_000)[..], b"slow"].concat());
        assert!(other.texts.iter().map(|text| text.as_bytes()).eq(expected), "{} texts", other.texts.len());
    }
    // What they got in the meantime is in order.
    for deaf in &mut deaf {
        let mut seen = 0;
        while let Some(frame) = deaf.next_but_pings(SOON).await.filter(|frame| frame.opcode == TEXT) {
            assert_eq!(frame.payload, [&message(seen, 50_000)[..], b"slow"].concat(), "text {seen}");
            seen += 1;
        }
        assert!(seen < COUNT && deaf.end().is_some(), "{seen} texts, end {:?}", deaf.end());
    }
}

#[tokio::test]
async fn a_slow_but_steady_reader_is_never_dropped() {
    const COUNT: usize = 60;
    let redis = Redis::start().await;
    let settings = "stall_timeout = \"1s\"\nmax_queue_bytes = 100000000";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(settings).start().await;
    let readers = [slow_reader(&webws.target()).await, slow_reader(&webws.tcp_target()).await];
    for n in 0..COUNT {
        redis.publish(b"chat:slow", &message(n, 50_000)).await;
    }
    let read = async |mut slow: Client| {
        // Some 80 kB in a second, for several times the time that would end a client that stands still.
        let start = Instant::now();
        let mut pace = tokio::time::interval(Duration::from_millis(50));
        while start.elapsed() < Duration::from_secs(5) {
            pace.tick().await;
            assert!(slow.read_slowly(4_000).await, "dropped after {:?}", start.elapsed());
        }
        let mut seen = 0;
        while seen < COUNT {
            let frame = slow.next_but_pings(SOON).await.unwrap_or_else(|| panic!("{seen} texts, end {:?}", slow.end()));
            assert_eq!(frame.payload, [&message(seen, 50_000)[..], b"slow"].concat(), "text {seen}");
            seen += 1;
        }
        slow.expect_pong(b"still here", SOON).await;
    };
    let [unix, tcp] = readers.map(read);
    tokio::join!(unix, tcp);
}

#[tokio::test]
async fn a_connection_that_sends_no_whole_head_is_closed_in_time() {
    let webws = Webws::builder().broker("memory").workers(1).extra_toml("[limits]\nhandshake_timeout = \"1s\"");
    let webws = webws.start().await;
    let half = upgrade_request(&lua("a"));
    // Whose session shows that all that webws keeps open is open.
    let _open = Client::connect(&webws.target(), &lua("a")).await;
    let descriptors = webws.fd_count();
    let mut all = JoinSet::new();
    for target in [webws.target(), webws.tcp_target()] {
        for sent in [0, 1, half.len() / 2, half.len() - 1] {
            let (target, half) = (target.clone(), half.clone());
            all.spawn(async move {
                let start = Instant::now();
                let socket = Socket::connect(&target).await.unwrap();
                socket.write(&half[..sent]).await.unwrap();
                let mut bytes = BytesMut::new();
                let ended = timeout(SOON, async { while socket.read(&mut bytes).await.is_ok() {} }).await;
                assert!(ended.is_ok(), "{sent} bytes of a head: still open after {SOON:?}");
                let answer = String::from_utf8_lossy(&bytes);
                assert!(
                    answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("not complete in time\n"),
                    "{sent}: {answer}"
                );
                let took = start.elapsed();
                assert!((900..2_500).contains(&took.as_millis()), "{sent} bytes of a head: closed after {took:?}");
            });
        }
    }
    all.join_all().await;
    until("no descriptor is left", SOON, async || webws.fd_count() <= descriptors).await;
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let webws = Webws::builder().broker("memory").workers(1).start().await;
    let head = upgrade_request(&lua("a"));
    for target in [webws.target(), webws.tcp_target()] {
        let mut silent = Vec::new();
        for n in 0..200 {
            let socket = Socket::connect(&target).await.unwrap();
            socket.write(&head[..if n % 2 == 0 { 0 } else { head.len() / 2 }]).await.unwrap();
            silent.push(socket);
        }
        let start = Instant::now();
        let joined = timeout(SOON, Client::connect(&target, &lua("a"))).await;
        assert!(joined.is_ok(), "no handshake within {:?} beside 200 silent connections", start.elapsed());
        // The silent may still speak, in as many pieces as they like.
        for (n, socket) in silent.iter().enumerate() {
            socket.write(&head[if n % 2 == 0 { 0 } else { head.len() / 2 }..]).await.unwrap();
        }
        for socket in &silent {
            let mut bytes = BytesMut::new();
            let head = timeout(SOON, async {
                loop {
                    if let Some(head) = take_head(&mut bytes) {
                        return head;
                    }
                    socket.read(&mut bytes).await.expect("it ended");
                }
            });
            assert_eq!(head.await.expect("no answer").status, 101);
        }
    }
}

#[tokio::test]
async fn beyond_max_sessions_handshakes_get_503_until_one_has_left() {
    let webws =
        Webws::builder().broker("memory").workers(2).extra_toml("[limits]\nmax_sessions = 3\nretry_after = \"7s\"");
    let webws = webws.start().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Client::connect(&webws.target(), &lua("a")).await);
    }
    let answer = Answer::to_upgrade(&webws.target(), &lua("a"), SOON).await.unwrap();
    answer.expect_unavailable("has reached its limit of connections");
    assert_eq!(answer.head.header("retry-after"), Some("7"));
    open.pop().unwrap().close().await;
    let deadline = Instant::now() + SOON;
    while open.len() < 3 {
        assert!(Instant::now() < deadline, "no place {SOON:?} after one has left");
        let socket = Socket::connect(&webws.target()).await.unwrap();
        let client = Client::request(socket, &upgrade_request(&lua("a"))).await.expect("no answer");
        open.extend(Some(client).filter(|client| client.head().status == 101));
    }
    Answer::to_upgrade(&webws.target(), &lua("a"), SOON).await.unwrap().expect_unavailable("limit of connections");
}

#[tokio::test]
async fn beyond_max_handshakes_connections_get_503() {
    let limits = "[limits]\nmax_handshakes = 4\nretry_after = \"7s\"";
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).extra_toml(limits).start().await;
    redis.freeze();
    let mut asking = JoinSet::new();
    // 64 are worked on, 4 wait.
    for n in 0..100 {
        let target = webws.target();
        asking.spawn(
            async move { Answer::to_upgrade(&target, &lua(&format!("n{n}")), SOON * 2).await.expect("no answer") },
        );
    }
    let answers = asking.join_all().await;
    let overflow: Vec<_> = answers.iter().filter(|answer| answer.body.contains("too many handshakes wait")).collect();
    // 32 at least when all come at once. On a busy machine the first are refused after a second, because
    // Redis is away, and make room for the last.
    assert!((8..100).contains(&overflow.len()), "{} of 100 beyond the limit", overflow.len());
    for answer in &answers {
        answer.expect_unavailable("");
        assert_eq!(answer.head.header("retry-after"), Some("7"), "{answer:?}");
    }
    redis.thaw();
    assert!(upgrades_within(&webws.target(), &lua("a"), SOON).await);
}

async fn memory(endpoint: &str) -> Webws {
    Builder::default().broker("memory").workers(1).endpoint_toml(endpoint).start().await
}

fn lua(name: &str) -> String {
    format!("/webws?channel=%22{name}%22")
}

async fn slow_reader(target: &Target) -> Client {
    let socket = Socket::connect_with(target, Some(16_384)).await.unwrap();
    Client::upgrade(socket, &lua("slow")).await
}

fn message(n: usize, bytes: usize) -> Vec<u8> {
    format!("{:.<bytes$}", format!("{n}.")).into_bytes()
}

#[tokio::test]
async fn one_large_publication_closes_nobody_who_reads() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    for target in [webws.target(), webws.tcp_target()] {
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(Witness::join(&target, &lua("large")).await);
        }
        // Three times what may wait for a client.
        let large = vec![b'x'; 3 << 20];
        for last in [&large[..], b"after it"] {
            redis.publish(b"chat:large", last).await;
        }
        for reader in &mut readers {
            reader.await_texts(2, SOON).await;
            assert_eq!(reader.texts[0].len(), large.len() + "large".len());
            assert_eq!(reader.texts[1], "after itlarge");
            reader.assert_open();
        }
    }
}

#[tokio::test]
async fn what_waits_for_a_slow_reader_costs_what_is_counted() {
    const ROUNDS: usize = 2_000;
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    let mut fast = Witness::join(&webws.target(), &lua("large")).await;
    let _slow = Client::connect(&webws.target(), &lua("small")).await;
    let before = webws.rss_kb();
    // Large and small in turn: a small one must not keep the buffer of a large one.
    let large = vec![b'x'; 60_000];
    for round in 0..ROUNDS {
        redis.publish(b"chat:large", &large).await;
        redis.publish(b"chat:small", b"x").await;
        fast.await_texts(1, SOON).await;
        fast.texts.clear();
        assert!(webws.rss_kb() < before + 30_000, "{} kB after {round} rounds, {before} before", webws.rss_kb());
    }
}

#[tokio::test]
async fn what_is_no_proper_request_is_refused_with_a_sentence() {
    let mut webws = memory("").await;
    let fields = "X-A: b\r\n".repeat(300);
    let long = "x".repeat(60_000);
    for (request, status, why) in [
        ("garbage\r\n\r\n".to_owned(), "400 ", "not well-formed HTTP/1.1\n"),
        ("GET /webws HTTP/2.0\r\n\r\n".to_owned(), "400 ", "not well-formed HTTP/1.1\n"),
        ("GET /webws HTTP/1.1\r\nHost: a\0b\r\n\r\n".to_owned(), "400 ", "not well-formed HTTP/1.1\n"),
        (format!("GET /webws HTTP/1.1\r\n{fields}\r\n"), "431 ", "too large\n"),
        (format!("GET /webws HTTP/1.1\r\nX-Long: {long}\r\n\r\n"), "431 ", "too large\n"),
    ] {
        for target in [webws.target(), webws.tcp_target()] {
            let socket = Socket::connect(&target).await.unwrap();
            socket.write(request.as_bytes()).await.ok();
            let mut bytes = BytesMut::new();
            timeout(SOON, async { while socket.read(&mut bytes).await.is_ok() {} }).await.expect("it stays open");
            let answer = String::from_utf8_lossy(&bytes);
            let start = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&start) && answer.ends_with(why), "{answer:?} to {}", &request[..20]);
        }
    }
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!(webws.counter("handshakes_refused"), 10);
}
