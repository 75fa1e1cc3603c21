//! Tests of what a session does, on a virtual clock and without a socket. May not enter: random interactions
//! (`random.rs`).

use std::time::Duration;

use super::stage::{BINARY, CLOSE, LUA, PING, PONG, SUBSCRIBER, Stage, TEXT, close_frame, encoded, frame, plain};
use super::state::Identity;
use super::{Action, Denial, Grant, Rejected, Session};
use crate::close::CloseReason;
use crate::config::{BinaryPolicy, EndpointConfig};
use crate::protocol::encoding::Encoding;

const PING_FRAME: &[u8] = &[0x89, 0];

fn text(payload: &str) -> (&'static str, Vec<u8>) {
    ("text", payload.as_bytes().to_vec())
}

/// The bar of DESIGN: 0.7 to 0.8 kB resident per session with all that belongs to it.
#[test]
fn an_idle_session_is_small_and_owns_no_memory_but_its_channel() {
    assert!(size_of::<Session>() <= 208, "{}", size_of::<Session>());
    let stage = Stage::lua();
    assert!(stage.session.outbound.is_none() && !stage.session.reader.has_unread());
    assert!(!stage.session.subscriptions.spilled());
}

#[test]
fn the_101_leaves_after_the_confirmation_and_publications_wait_for_it() {
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    assert_eq!(stage.session.on_subscribed(crate::id::SubscriberId(99)), Action::Stay, "another one's");
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Stay, "it is told once");
    assert_eq!((stage.deliver(b"1"), stage.deliver(b"2")), (Action::Stay, Action::Stay));
    assert!(!stage.session.has_unsent(), "there is no socket to wait for");
    assert_eq!(stage.sent(), b"", "nothing before the 101");
    assert_eq!(stage.session.next_due(), u64::MAX);
    assert_eq!(stage.session.open(b"101", &mut stage.socket, stage.now), Action::Stay);
    assert_eq!(stage.sent(), [b"101", &encoded(LUA, b"1")[..], &encoded(LUA, b"2")].concat());
}

#[test]
fn a_session_begins_when_its_channels_are_ready_and_gets_nothing_from_before() {
    let mut stage = Stage::subscribing(EndpointConfig::default(), Encoding::Plain);
    assert_eq!(stage.deliver(b"before"), Action::Stay);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    assert_eq!(stage.deliver(b"behind"), Action::Stay);
    assert_eq!(stage.session.open(b"101", &mut stage.socket, stage.now), Action::Stay);
    assert_eq!(stage.sent(), [b"101", &encoded(Encoding::Plain, b"behind")[..]].concat());
}

#[test]
fn time_in_which_the_session_had_no_socket_does_not_count_as_a_stall() {
    let config = EndpointConfig { stall_timeout: Duration::from_secs(2), ..EndpointConfig::default() };
    let mut stage = Stage::subscribing(config, LUA);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    assert_eq!(stage.deliver(b"1"), Action::Stay);
    assert_eq!(stage.pass(4_000), Action::Stay);
    stage.socket.room = 3;
    assert_eq!(stage.session.open(b"101", &mut stage.socket, stage.now), Action::Stay);
    assert_eq!(stage.session.next_due(), stage.now + 2_000);
    assert_eq!(stage.pass(1_999), Action::Stay);
    assert_eq!(stage.pass(1), Action::Close(CloseReason::Stalled));
}

#[test]
fn a_session_ends_when_its_claims_do_and_not_before() {
    let mut stage = Stage::lua();
    let expires_at = stage.now + 3_000;
    stage.session.rare.get_or_insert_default().identity = Some(Identity { user: "u".into(), expires_at });
    assert_eq!(stage.session.next_due(), expires_at);
    assert_eq!(stage.pass(2_999), Action::Stay);
    assert_eq!(stage.sent(), b"");
    assert_eq!(stage.pass(1), Action::Close(CloseReason::Expired));
    assert_eq!(stage.sent(), close_frame(CloseReason::Expired));
}

#[test]
fn a_101_that_the_socket_does_not_take_ends_the_session() {
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    stage.socket.room = 2;
    let opened = stage.session.open(b"101", &mut stage.socket, stage.now);
    assert_eq!(opened, Action::End(CloseReason::ClientGone));
}

#[test]
fn a_session_that_receives_nothing_waits_for_no_subscription() {
    let config = EndpointConfig { subscribe: false, ..EndpointConfig::default() };
    let endpoint = std::rc::Rc::new(crate::protocol::endpoint::Endpoint::new(config));
    let channel = crate::channel::Channel::from_static(super::stage::CHANNEL);
    let mut session = Session::new(Grant::of(endpoint, channel, LUA), 10, 0);
    assert_eq!((session.begin(), session.next_to_join().is_none()), (Action::Upgrade, true));
}

#[test]
fn a_subscription_that_is_confirmed_late_or_refused_refuses_the_handshake() {
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    assert_eq!(stage.pass(4_999), Action::Stay);
    assert_eq!(stage.pass(1), Action::Refuse(Denial::TimedOut));
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    let refused = stage.session.on_refused(&mut stage.socket, stage.now);
    assert_eq!((refused, stage.sent()), (Action::Refuse(Denial::NotAllowed), Vec::new()));
    // One that has its 101 is closed instead, and one that has not yet ends.
    let mut stage = Stage::lua();
    let refused = stage.session.on_refused(&mut stage.socket, stage.now);
    assert_eq!(refused, Action::Close(CloseReason::SubscriptionLost));
    assert_eq!(stage.sent(), close_frame(CloseReason::SubscriptionLost));
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    let refused = stage.session.on_refused(&mut stage.socket, stage.now);
    assert_eq!(refused, Action::End(CloseReason::SubscriptionLost));
}

#[test]
fn a_handshake_with_too_many_publications_ends() {
    let mut stage = Stage::subscribing(EndpointConfig { max_queue_bytes: 300, ..EndpointConfig::default() }, LUA);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Upgrade);
    // The first alone is never too much.
    assert_eq!((stage.deliver(&[b'x'; 500]), stage.deliver(&[b'x'; 100])), (Action::Stay, Action::Stay));
    assert_eq!(stage.deliver(&[b'x'; 100]), Action::End(CloseReason::SlowConsumer));
    assert_eq!(stage.sent(), b"");
}

#[test]
fn a_silent_client_is_pinged_and_closed_at_its_deadline() {
    let mut stage = Stage::lua();
    for _ in 0..5 {
        assert_eq!(stage.pass(5_000), Action::Stay);
        assert_eq!(stage.sent(), PING_FRAME);
    }
    assert_eq!(stage.pass(4_999), Action::Stay);
    assert_eq!(stage.pass(1), Action::Close(CloseReason::Silent));
    assert_eq!(stage.sent(), close_frame(CloseReason::Silent));
}

#[test]
fn any_byte_is_a_sign_of_life_and_puts_the_ping_off() {
    let mut stage = Stage::lua();
    for _ in 0..20 {
        assert_eq!(stage.pass(4_900), Action::Stay);
        assert_eq!(stage.read(&frame(PONG, b"")[..1]), Action::Stay);
        assert_eq!(stage.pass(4_900), Action::Stay);
        assert_eq!(stage.read(&frame(PONG, b"")[1..]), Action::Stay);
    }
    assert_eq!(stage.sent(), b"", "it was heard all the time");
}

#[test]
fn limits_of_zero_are_switched_off() {
    let zero = Duration::ZERO;
    let config = EndpointConfig { ping_interval: zero, idle_timeout: zero, ..EndpointConfig::default() };
    let mut stage = Stage::open(config, LUA);
    assert_eq!(stage.session.next_due(), u64::MAX);
    assert_eq!((stage.pass(100_000_000), stage.sent()), (Action::Stay, Vec::new()));
}

#[test]
fn a_ping_is_answered_with_its_payload() {
    let mut stage = Stage::lua();
    assert_eq!(stage.read(&[frame(PING, b"a"), frame(PING, b"bc")].concat()), Action::Stay);
    assert_eq!(stage.sent(), b"\x8a\x01a\x8a\x02bc");
}

#[test]
fn a_reader_that_takes_a_little_is_kept_and_one_that_takes_nothing_is_stalled() {
    let mut stage = Stage::lua();
    stage.socket.room = 0;
    assert_eq!(stage.deliver(&[b'x'; 1_000]), Action::Stay);
    assert!(stage.session.has_unsent());
    // epoll reports a Unix socket as writable late; the timer tries a send.
    for _ in 0..10 {
        assert_eq!(stage.pass(9_999), Action::Stay);
        stage.socket.room = 1;
    }
    stage.socket.room = 0;
    stage.sent();
    let queued = stage.session.outbound.as_ref().unwrap().parts();
    assert_eq!(stage.pass(20_000), Action::Close(CloseReason::Stalled));
    // The frame that is half sent is finished, and the close frame follows.
    assert_eq!(stage.writable(usize::MAX), Action::Stay);
    let (begun, rest) = (queued.0[..queued.1].to_vec(), close_frame(CloseReason::Stalled));
    assert_eq!(stage.sent(), [begun, rest].concat());
}

#[test]
fn a_slow_consumer_gets_the_frame_that_was_begun_and_1013() {
    let mut stage = Stage::open(EndpointConfig { max_queue_bytes: 5_000, ..EndpointConfig::default() }, LUA);
    stage.socket.room = 7;
    let (first, second) = (encoded(LUA, &[b'1'; 1_000]), encoded(LUA, &[b'2'; 4_000]));
    assert_eq!((stage.deliver(&[b'1'; 1_000]), stage.deliver(&[b'2'; 4_000])), (Action::Stay, Action::Stay));
    // There is room of which the reactor has not told: it is used before the client is given up.
    stage.socket.room = first.len() - 7;
    assert_eq!(stage.deliver(&[b'3'; 2_000]), Action::Stay);
    stage.socket.room = 10;
    assert_eq!(stage.writable(10), Action::Stay);
    assert_eq!(stage.deliver(&[b'4'; 4_000]), Action::Close(CloseReason::SlowConsumer));
    assert_eq!(stage.deliver(b"5"), Action::Stay, "it hears nothing any more");
    assert_eq!(stage.writable(usize::MAX), Action::Stay);
    assert_eq!(stage.sent(), [first, second, close_frame(CloseReason::SlowConsumer)].concat());
}

#[test]
fn a_close_of_ours_waits_for_the_reply_then_for_the_end() {
    let mut stage = Stage::lua();
    assert_eq!(stage.close(CloseReason::GoingAway), Action::Close(CloseReason::GoingAway));
    assert_eq!(stage.close(CloseReason::Gap), Action::Stay, "it closes once");
    assert_eq!((stage.sent(), stage.socket.is_finished), (close_frame(CloseReason::GoingAway), false));
    // What the client sent before it saw the close is published.
    assert_eq!(stage.read(&frame(TEXT, b"late")), Action::Stay);
    assert_eq!(stage.read(&frame(CLOSE, &1001_u16.to_be_bytes())), Action::Stay);
    assert!(stage.socket.is_finished, "FIN follows the reply");
    assert_eq!(stage.read(&frame(TEXT, b"ignored")), Action::Stay);
    assert_eq!(stage.outbox.messages, [text("late")]);
    assert_eq!(stage.pass(999), Action::Stay);
    assert_eq!(stage.hang_up(), Action::End(CloseReason::GoingAway));
}

#[test]
fn a_client_that_answers_no_close_gets_fin_after_a_second_and_ends_after_two() {
    let mut stage = Stage::lua();
    assert_eq!(stage.close(CloseReason::Gap), Action::Close(CloseReason::Gap));
    assert_eq!((stage.pass(999), stage.socket.is_finished), (Action::Stay, false));
    assert_eq!((stage.pass(1), stage.socket.is_finished), (Action::Stay, true));
    assert_eq!(stage.pass(999), Action::Stay);
    assert_eq!(stage.pass(1), Action::End(CloseReason::Gap));
    assert_eq!(stage.sent(), close_frame(CloseReason::Gap));
}

#[test]
fn a_close_frame_that_is_not_taken_ends_the_session_after_a_second() {
    let mut stage = Stage::lua();
    stage.socket.room = 3;
    assert_eq!(stage.close(CloseReason::Gap), Action::Close(CloseReason::Gap));
    assert_eq!((stage.pass(1_000), stage.socket.is_finished), (Action::End(CloseReason::Gap), false));
}

#[test]
fn a_close_of_the_client_is_answered_and_fin_follows() {
    for (encoding, config, reply) in
        [(LUA, EndpointConfig::default(), &b"\x88\x00"[..]), (Encoding::Plain, plain(), b"\x88\x02\x03\xe8")]
    {
        let mut stage = Stage::open(config, encoding);
        let sent = [frame(TEXT, b"1"), frame(CLOSE, &1000_u16.to_be_bytes()), frame(TEXT, b"behind")].concat();
        assert_eq!(stage.read(&sent), Action::Close(CloseReason::ClientClosed));
        assert_eq!((&stage.sent()[..], stage.socket.is_finished), (reply, true));
        assert_eq!(stage.outbox.messages, [text("1")]);
        assert_eq!(stage.hang_up(), Action::End(CloseReason::ClientClosed));
    }
}

#[test]
fn a_close_reply_waits_for_the_frame_that_was_begun() {
    let mut stage = Stage::lua();
    stage.socket.room = 5;
    let begun = encoded(LUA, b"a long one");
    assert_eq!((stage.deliver(b"a long one"), stage.deliver(b"dropped")), (Action::Stay, Action::Stay));
    assert_eq!(stage.read(&frame(CLOSE, b"")), Action::Close(CloseReason::ClientClosed));
    assert!(!stage.socket.is_finished);
    assert_eq!(stage.writable(usize::MAX), Action::Stay);
    assert_eq!((stage.sent(), stage.socket.is_finished), ([&begun[..], b"\x88\x00"].concat(), true));
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_and_not_read_any_more() {
    for (bytes, reason) in [
        (b"\x81\x01a".to_vec(), CloseReason::ProtocolError),
        (frame(TEXT, b"\xff"), CloseReason::InvalidText),
        (vec![0x81, 0x80 | 127, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], CloseReason::TooBig),
    ] {
        let mut stage = Stage::lua();
        assert_eq!(stage.read(&[frame(TEXT, b"1"), bytes].concat()), Action::Close(reason));
        assert_eq!((stage.sent(), stage.socket.is_finished), (close_frame(reason), true));
        assert_eq!(stage.read(&frame(TEXT, b"2")), Action::Stay);
        assert_eq!(stage.outbox.messages, [text("1")]);
        assert_eq!(stage.pass(1_000), Action::End(reason), "it is read off for a second");
    }
}

#[test]
fn a_fault_while_a_close_is_under_way_ends_the_session() {
    let mut stage = Stage::lua();
    assert_eq!(stage.close(CloseReason::Gap), Action::Close(CloseReason::Gap));
    assert_eq!(stage.read(b"\x81\x01a"), Action::End(CloseReason::Gap));
}

#[test]
fn binary_messages_follow_the_encoding_and_the_policy() {
    let binary = frame(BINARY, b"\xff");
    let mut stage = Stage::lua();
    assert_eq!(stage.read(&binary), Action::Stay, "the Lua handler reads and ignores them");
    assert_eq!((stage.outbox.messages.len(), &stage.outbox.rejected[..]), (0, &[Rejected::IgnoredBinary][..]));
    let mut stage = Stage::open(plain(), Encoding::Plain);
    assert_eq!(stage.read(&binary), Action::Stay);
    assert_eq!(stage.outbox.messages, [("binary", b"\xff".to_vec())]);
    for (config, reason) in [
        (EndpointConfig { binary: BinaryPolicy::Close, ..plain() }, CloseReason::BinaryRefused),
        (EndpointConfig { publish: false, ..plain() }, CloseReason::PublishDenied),
    ] {
        let mut stage = Stage::open(config, Encoding::Plain);
        assert_eq!(stage.read(&[&binary[..], &frame(TEXT, b"behind")].concat()), Action::Close(reason));
        assert_eq!((stage.outbox.messages.len(), stage.sent()), (0, close_frame(reason)));
        assert_eq!(stage.outbox.rejected, [Rejected::Closes(reason)]);
    }
}

#[test]
fn a_text_is_refused_where_clients_may_not_publish() {
    let mut stage = Stage::open(EndpointConfig { publish: false, ..EndpointConfig::default() }, LUA);
    assert_eq!(stage.read(&frame(PONG, b"")), Action::Stay);
    assert_eq!(stage.read(&frame(TEXT, b"1")), Action::Close(CloseReason::PublishDenied));
    assert!(stage.outbox.messages.is_empty());
}

#[test]
fn messages_without_an_answer_close_the_session_and_progress_puts_it_off() {
    let mut stage = Stage::lua();
    assert_eq!(stage.read(&[frame(TEXT, b"1"), frame(TEXT, b"2")].concat()), Action::Stay);
    assert!(stage.session.has_waiting_messages());
    assert_eq!(stage.pass(9_999), Action::Stay);
    assert_eq!(stage.session.on_published(10, usize::MAX, stage.now), Action::Stay);
    assert_eq!(stage.pass(9_999), Action::Stay);
    assert_eq!(stage.session.on_published(10, usize::MAX, stage.now), Action::Stay);
    assert!(!stage.session.has_waiting_messages());
    assert_eq!(stage.read(&frame(TEXT, b"3")), Action::Stay);
    assert_eq!(stage.pass(10_000), Action::Close(CloseReason::NotPublished));
    assert!(stage.sent().ends_with(&close_frame(CloseReason::NotPublished)));
}

#[test]
fn a_session_with_too_many_waiting_messages_is_paused_and_resumes_at_half() {
    let mut stage = Stage::lua();
    (stage.outbox.cost, stage.outbox.allowance) = (10, 40);
    let all: Vec<_> = (0..6).flat_map(|n| frame(TEXT, n.to_string().as_bytes())).collect();
    assert_eq!(stage.read(&all), Action::Stay);
    assert_eq!(stage.outbox.messages.len(), 4, "the rest is kept");
    assert_eq!(stage.read(b""), Action::Stay);
    // A client that is not read is not silent, and is pinged.
    assert_eq!((stage.pass(9_000), stage.sent()), (Action::Stay, PING_FRAME.to_vec()));
    assert_eq!(stage.session.on_published(10, 40, stage.now), Action::Stay);
    assert_eq!(stage.session.on_published(10, 40, stage.now), Action::ReadAgain);
    assert_eq!((stage.end_pause(), stage.outbox.messages.len()), (Action::Stay, 6));
    assert_eq!(stage.outbox.messages.last(), Some(&text("5")));
}

#[test]
fn the_endpoints_own_limit_pauses_as_well() {
    let mut stage = Stage::open(EndpointConfig { max_unpublished_bytes: 10, ..EndpointConfig::default() }, LUA);
    assert_eq!(stage.read(&[frame(TEXT, b"1"), frame(TEXT, b"2")].concat()), Action::Stay);
    assert_eq!(stage.outbox.messages, [text("1")]);
    assert_eq!(stage.session.on_published(10, usize::MAX, stage.now), Action::ReadAgain);
}

#[test]
fn an_owner_without_room_pauses_and_a_close_ends_the_pause() {
    let mut stage = Stage::lua();
    stage.session.pause();
    assert_eq!(stage.read(&frame(TEXT, b"1")), Action::Stay);
    assert!(stage.outbox.messages.is_empty() && stage.session.may_end_pause(usize::MAX, stage.now));
    assert_eq!(stage.close(CloseReason::GoingAway), Action::Close(CloseReason::GoingAway));
    assert_eq!(stage.read(b""), Action::Stay);
    assert_eq!(stage.outbox.messages, [text("1")]);
}

#[test]
fn time_in_which_the_owner_stands_still_counts_against_no_deadline() {
    let mut stage = Stage::lua();
    assert_eq!(stage.read(&frame(TEXT, b"1")), Action::Stay);
    stage.socket.room = 0;
    assert_eq!(stage.deliver(b"x"), Action::Stay);
    let before = [stage.session.silent_at(), stage.session.stalled_at(), stage.session.not_published_at()];
    stage.session.quiesced(3_000);
    let after = [stage.session.silent_at(), stage.session.stalled_at(), stage.session.not_published_at()];
    assert_eq!(after, before.map(|at| at + 3_000));
    let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
    let due = stage.session.next_due();
    stage.session.quiesced(3_000);
    assert_eq!(stage.session.next_due(), due + 3_000);
}

#[test]
fn a_client_that_left_is_read_to_its_end() {
    let mut stage = Stage::lua();
    stage.socket.is_broken = true;
    stage.socket.inbound.extend(frame(TEXT, b"last"));
    assert_eq!(stage.deliver(b"1"), Action::ReadAgain);
    assert_eq!(stage.hang_up(), Action::ReadAgain);
    assert_eq!(stage.outbox.messages, [text("last")]);
    assert_eq!(stage.hang_up(), Action::End(CloseReason::ClientGone));
    // One that is being closed has nothing more to say.
    let mut stage = Stage::lua();
    stage.socket.is_broken = true;
    assert_eq!(stage.close(CloseReason::Gap), Action::End(CloseReason::Gap));
}

#[test]
fn a_gap_is_told_behind_what_the_client_gets_first_and_to_no_session_that_gets_nothing_yet() {
    let mut stage = Stage::subscribing(EndpointConfig::default(), Encoding::Meta);
    let gap = |stage: &mut Stage| stage.session.on_gap("away", &mut stage.socket, 0);
    assert_eq!(gap(&mut stage), Action::Stay);
    assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Recover);
    assert!(!stage.session.may_miss(), "what the client gets first is to come");
    assert_eq!(stage.session.on_recovered(b"\x81\x01r", &mut stage.socket, 0), Action::Upgrade);
    assert!(stage.session.may_miss());
    assert_eq!(gap(&mut stage), Action::Stay);
    assert_eq!(stage.session.open(b"101", &mut stage.socket, 0), Action::Stay);
    assert_eq!(stage.sent(), b"101\x81\x01r\x81\x10event: gap\n\naway");
}

#[test]
fn a_flood_of_small_frames_has_its_turns() {
    let mut stage = Stage::lua();
    let flood: Vec<_> = (0..2_500).flat_map(|_| frame(TEXT, b"")).collect();
    assert_eq!(stage.read(&flood), Action::ReadAgain);
    assert_eq!(stage.outbox.messages.len(), 1_024);
    assert_eq!((stage.read(b""), stage.outbox.messages.len()), (Action::ReadAgain, 2_048));
    assert_eq!((stage.read(b""), stage.outbox.messages.len()), (Action::ReadAgain, 2_500), "and more may be there");
    assert_eq!(stage.read(b""), Action::Stay);
}
