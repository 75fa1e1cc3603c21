//! Tests of the subscribing link: how a link ends, and the gap that its end leaves. May not enter: refused channels
//! (`refusals.rs`).

use super::stage::{SECOND, Stage, TIMEOUT};
use super::*;
use crate::broker::redis::marker::Progress;
use crate::broker::seal::Seal;

#[test]
fn an_answer_that_does_not_come_ends_the_link_but_not_while_the_process_is_stopped() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.pass(TIMEOUT - SECOND);
    assert!(stage.subscriber.is_up() && !stage.node.is_reachable(stage.subscriber.unanswered_since(), stage.now));
    stage.now += 60 * SECOND;
    stage.step();
    assert!(stage.subscriber.is_up(), "the answer may have come meanwhile");
    stage.push("subscribe", "c");
    assert_eq!(stage.take_told(), ["subscribed c"]);
    stage.commands();
    stage.subscribe("d");
    stage.pass(2 * TIMEOUT);
    assert_eq!(stage.take_told(), ["lost"]);
    assert!(!stage.subscriber.is_up() && stage.node.is_incomplete());
    stage.connect();
    stage.all_confirmed();
    assert_eq!(stage.told.pop().map(|told| told.starts_with("gap ")), Some(true));
    assert_eq!(stage.told.len(), 4, "a, b, c, d: {:?}", stage.told);
}

#[test]
fn a_link_that_is_cut_in_any_state_is_made_again_with_all_channels_and_tells_one_gap() {
    for state in 0..6 {
        let mut stage = Stage::new(&["a", "b"]);
        stage.connect();
        stage.all_confirmed();
        stage.take_told();
        match state {
            // While it is complete, in a publication, in an answer, and at the marker.
            0 => {}
            1 => {
                let publication = stage.publication("a", "cut");
                stage.say(&publication[..publication.len() - 1]);
            }
            2 => stage.subscribe("c"),
            3 => {
                let marker = stage.set_marker(Seal::random());
                stage.say(&marker);
                assert!(stage.subscriber.is_at_marker());
            }
            // While it subscribes again: before the probe is confirmed, and in the middle.
            _ => {
                stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
                stage.connect();
                if state == 5 {
                    stage.commands();
                    stage.push("subscribe", "PROBE");
                    stage.push("subscribe", "a");
                }
            }
        }
        stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
        stage.listen();
        assert_eq!(stage.told.last().map(String::as_str), Some("lost"), "{state}");
        assert!(stage.node.marker.as_ref().is_none_or(|marker| marker.progress == Progress::Lost));
        stage.take_told();
        stage.connect();
        stage.all_confirmed();
        let told = stage.take_told();
        let count = |what: &str| told.iter().filter(|told| told.starts_with(what)).count();
        assert_eq!((count("subscribed"), count("gap")), (2 + usize::from(state == 2), 1), "{state}: {told:?}");
    }
}

#[test]
fn a_subscription_that_redis_forgot_is_found_by_the_audit() {
    let mut stage = Stage::hearing();
    for _ in 0..30 {
        stage.pass(SECOND);
        assert!(stage.duties(3).is_empty());
    }
    assert!(stage.take_told().is_empty());
    let mut subscribe = Vec::new();
    while stage.told.is_empty() {
        stage.pass(SECOND);
        subscribe = stage.duties(2);
    }
    assert_eq!(stage.take_told(), ["lost"]);
    assert_eq!(subscribe.len(), 1);
    subscribe[0].split(' ').skip(1).for_each(|name| stage.push("subscribe", name));
    stage.expect_command("CLIENT INFO");
    let count = stage.count(3);
    stage.say(&count);
    let told = stage.take_told();
    assert!(told.len() == 3 && told[2].starts_with("gap "), "{told:?}");
}

#[test]
fn a_gap_ends_when_all_lost_channels_are_back_however_many_are_new() {
    let mut stage = Stage::hearing();
    stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
    stage.listen();
    assert_eq!(stage.take_told(), ["lost"]);
    stage.connect();
    stage.commands();
    stage.push("subscribe", "PROBE");
    stage.subscribe("new0");
    let again = stage.commands();
    assert_eq!(again.len(), 1);
    // From now on there is always one more that waits.
    for name in ["a", "b"] {
        stage.push("subscribe", name);
    }
    stage.subscribe("new1");
    let count = stage.count(3);
    stage.say(&count);
    let told = stage.take_told();
    assert!(told.iter().any(|told| told.starts_with("gap ")), "{told:?}");
    assert!(!stage.node.channels.is_complete());
}

#[test]
fn a_gap_begins_when_the_last_probe_that_came_back_was_sent() {
    let mut stage = Stage::hearing();
    let sent = stage.now;
    let number = stage.node.probe.next(None, sent);
    let payload = stage.node.probe.payload(number);
    let channel = String::from_utf8_lossy(stage.node.probe.channel()).into_owned();
    // The process was stopped, and reads all of that late.
    stage.now += 60 * SECOND;
    let (probe, other) = (stage.publication(&channel, &payload), stage.publication("a", "1"));
    stage.say(&probe);
    stage.say(&other);
    stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
    assert_eq!(stage.node.lost_since, Some(sent));
}

#[test]
fn a_node_that_is_no_longer_a_master_is_left() {
    let mut stage = Stage::hearing();
    stage.pass(2 * SECOND);
    stage.expect_command("HELLO 3");
    stage.say(b"%1\r\n+role\r\n+replica\r\n");
    assert_eq!(stage.take_told(), ["lost"]);
    assert!(stage.node.health.fault().is_some_and(|fault| fault.contains("replica")));
}

#[test]
fn bytes_that_are_no_resp_and_answers_without_a_command_end_the_link() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"+PONG\r\n", b"-ERR unasked\r\n"] {
        let mut stage = Stage::hearing();
        stage.say(bytes);
        assert_eq!(stage.take_told(), ["lost"], "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_probe_that_does_not_come_back_ends_the_link() {
    let mut stage = Stage::hearing();
    let number = stage.node.probe.next(None, stage.now);
    stage.node.probe.on_published(number, 1, stage.now);
    stage.pass(SECOND);
    stage.commands();
    stage.say(b"%1\r\n+role\r\n+master\r\n");
    assert!(stage.subscriber.is_up());
    stage.pass(2 * SECOND);
    assert_eq!(stage.take_told(), ["lost"]);
}

#[test]
fn a_link_is_due_after_a_pause_and_never_once_the_node_has_left() {
    let mut stage = Stage::new(&["a"]);
    assert!(stage.subscriber.wants_link(stage.now), "the first at once");
    stage.subscriber.on_not_connected(&stage.node, &LinkError::Closed, stage.now);
    assert!(!stage.subscriber.wants_link(stage.now));
    let next = stage.subscriber.next_timeout(&stage.node).unwrap();
    assert!(next > stage.now && next <= stage.now + SECOND && stage.subscriber.wants_link(next));
    stage.subscriber.close();
    assert!(!stage.subscriber.wants_link(next + 60 * SECOND));
    assert_eq!(stage.subscriber.next_timeout(&stage.node), None);
}
