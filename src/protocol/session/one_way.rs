//! Tests of a session whose client only receives: server-sent events. May not enter: clients that send.

use std::rc::Rc;
use std::time::Duration;

use super::stage::{SSE, Stage, close_comment, encoded, frame, plain};
use super::{Action, Session};
use crate::close::CloseReason;
use crate::config::{EndpointConfig, NotUtf8Policy, SlowPolicy};
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::Batch;

fn stage() -> Stage {
    Stage::open(EndpointConfig::default(), SSE)
}

#[test]
fn whatever_the_client_sends_is_ignored_and_its_end_ends_the_session() {
    let mut stage = stage();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &frame(0x81, b"text"), &frame(0x88, b""), &[0xff; 50_000]] {
        assert_eq!(stage.read(bytes), Action::Stay);
    }
    let mut behind_the_request = b"GET /again".to_vec();
    let Stage { session, socket, outbox, now, .. } = &mut stage;
    assert_eq!(session.decode(&mut behind_the_request, socket, *now, outbox), Action::Stay);
    assert!(stage.outbox.messages.is_empty() && stage.outbox.rejected.is_empty());
    assert!(!stage.session.reader.has_unread(), "nothing is kept");
    assert_eq!(stage.deliver(b"on"), Action::Stay);
    assert_eq!(stage.sent(), b"data: on\n\n");
    assert_eq!(stage.hang_up(), Action::End(CloseReason::ClientGone));
}

#[test]
fn a_client_is_silent_as_long_as_it_takes_its_pings() {
    let mut stage = stage();
    assert_eq!(stage.pass(3_600_000), Action::Stay);
    assert_eq!(stage.sent(), b":\n\n".repeat(720));
    stage.socket.room = 1;
    let stalls = plain().ping_interval + plain().stall_timeout;
    let stalls = u64::try_from(stalls.as_millis()).unwrap();
    assert_eq!(stage.pass(stalls - 1), Action::Stay);
    assert_eq!(stage.pass(1), Action::Close(CloseReason::Stalled));
    stage.socket.room = 100;
    assert_eq!(stage.session.on_writable(&mut stage.socket, stage.now), Action::Stay);
    assert_eq!(stage.sent(), [&b":\n\n"[..], &close_comment(CloseReason::Stalled)].concat());
}

#[test]
fn a_close_is_a_comment_and_fin_follows_without_a_reply() {
    for reason in [CloseReason::GoingAway, CloseReason::Gap, CloseReason::Internal] {
        let mut stage = stage();
        assert_eq!(stage.close(reason), Action::Close(reason));
        assert_eq!(stage.sent(), close_comment(reason));
        assert!(stage.socket.is_finished);
        assert_eq!(stage.deliver(b"late"), Action::Stay);
        assert_eq!((stage.read(b"ignored"), stage.sent()), (Action::Stay, Vec::new()));
        assert_eq!(stage.hang_up(), Action::End(reason));
    }
    let mut stage = stage();
    assert_eq!(stage.close(CloseReason::GoingAway), Action::Close(CloseReason::GoingAway));
    assert_eq!(stage.pass(1_000), Action::End(CloseReason::GoingAway), "a client that does not leave");
}

#[test]
fn a_slow_consumer_gets_the_event_that_was_begun_and_1013() {
    let mut stage = Stage::open(EndpointConfig { max_queue_bytes: 500, ..plain() }, SSE);
    let begun = "one\r\ntwo ".repeat(20);
    stage.socket.room = 30;
    assert_eq!((stage.deliver(begun.as_bytes()), stage.deliver(&[b'x'; 300])), (Action::Stay, Action::Stay));
    assert_eq!(stage.deliver(&[b'x'; 300]), Action::Close(CloseReason::SlowConsumer));
    assert_eq!(stage.writable(10_000), Action::Stay);
    let expected = [encoded(SSE, begun.as_bytes()), close_comment(CloseReason::SlowConsumer)].concat();
    assert_eq!((stage.sent(), stage.socket.is_finished), (expected, true));
}

#[test]
fn an_endpoint_may_drop_the_oldest_for_a_slow_client_and_tells_it() {
    let config = EndpointConfig { max_queue_bytes: 1_000, on_slow: SlowPolicy::Drop, ..plain() };
    let mut stage = Stage::open(config, SSE);
    stage.socket.room = 5;
    let event = |number: u8| encoded(SSE, &[number; 200]);
    let mut dropped = 0;
    for number in b'a'..=b'j' {
        let frames = event(number);
        let mut batch = Batch::new(&frames);
        assert_eq!(stage.session.deliver(&mut batch, &mut stage.socket, stage.now), Action::Stay);
        dropped += batch.dropped;
    }
    assert_eq!(stage.writable(100_000), Action::Stay);
    let told = SSE.gap("messages were dropped: the client reads too slowly").unwrap();
    let kept = [event(b'a'), told.to_vec(), event(b'h'), event(b'i'), event(b'j')].concat();
    assert_eq!((String::from_utf8(stage.sent()).unwrap(), dropped), (String::from_utf8(kept).unwrap(), 6));
    assert!(!stage.session.has_unsent() && stage.session.is_open());
}

#[test]
fn an_endpoint_may_send_a_slow_client_the_newest_only() {
    let mut stage = Stage::open(EndpointConfig { on_slow: SlowPolicy::Latest, ..plain() }, SSE);
    stage.socket.room = 5;
    for number in b'a'..=b'j' {
        assert_eq!(stage.deliver(&[number; 200]), Action::Stay);
        assert!(stage.session.memory() < 1_000, "{}", stage.session.memory());
    }
    assert_eq!(stage.writable(100_000), Action::Stay);
    assert_eq!(stage.sent(), [encoded(SSE, &[b'a'; 200]), encoded(SSE, &[b'j'; 200])].concat());
    // A client that has caught up gets everything.
    assert_eq!((stage.deliver(b"k"), stage.deliver(b"l")), (Action::Stay, Action::Stay));
    assert_eq!(stage.sent(), [encoded(SSE, b"k"), encoded(SSE, b"l")].concat());
}

#[test]
fn an_event_is_finished_by_another_process_whose_endpoint_decides_about_binary_payloads() {
    let mut stage = Stage::open(EndpointConfig { ping_interval: Duration::from_secs(60), ..plain() }, SSE);
    stage.socket.room = 9;
    assert_eq!(stage.deliver(b"a\n\nb\xff"), Action::Stay);
    assert_eq!(stage.deliver("c\r".as_bytes()), Action::Stay);
    for not_utf8 in [NotUtf8Policy::Replace, NotUtf8Policy::Binary] {
        let bytes = rmp_serde::to_vec_named(&stage.session.snapshot(stage.now).unwrap()).unwrap();
        let endpoint = Rc::new(Endpoint::new(EndpointConfig { not_utf8, ..plain() }));
        stage.session = Session::adopt(rmp_serde::from_slice(&bytes).unwrap(), endpoint, stage.now).unwrap();
        let adopted = Encoding::Sse { not_utf8 };
        assert_eq!(stage.session.next_to_join().unwrap().encoding, adopted);
        assert_eq!(stage.writable(7), Action::Stay);
        assert!(stage.session.has_unsent());
        assert_eq!((stage.read(&frame(0x81, b"text")), stage.outbox.messages.len()), (Action::Stay, 0));
    }
    assert_eq!(stage.close(CloseReason::GoingAway), Action::Close(CloseReason::GoingAway));
    assert_eq!(stage.writable(10_000), Action::Stay);
    let expected =
        [encoded(SSE, b"a\n\nb\xff"), b"data: c\ndata: \n\n".to_vec(), close_comment(CloseReason::GoingAway)].concat();
    assert_eq!(stage.sent(), expected);
}
