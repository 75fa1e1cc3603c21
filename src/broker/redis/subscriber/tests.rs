//! Tests of the subscribing link: what it sends, and what it reads from its stream. May not enter: refused channels
//! (`refusals.rs`), lost links (`losses.rs`).

use proptest::prelude::*;

use super::stage::{SECOND, Stage, TIMEOUT, channel};
use crate::broker::redis::resp::Protocol;
use crate::broker::seal::Seal;

#[test]
fn a_link_subscribes_the_probe_then_all_channels_and_counts_them() {
    let mut stage = Stage::new(&["a"]);
    stage.connect();
    stage.expect_command("SUBSCRIBE PROBE");
    // What is wanted meanwhile is among them.
    stage.subscribe("b");
    stage.push("subscribe", "PROBE");
    let subscribe = stage.commands();
    assert!(subscribe == ["SUBSCRIBE a b"] || subscribe == ["SUBSCRIBE b a"], "{subscribe:?}");
    stage.push("subscribe", "a");
    assert!(stage.node.is_incomplete() && stage.commands().is_empty());
    stage.push("subscribe", "b");
    stage.expect_command("CLIENT INFO");
    assert!(stage.node.is_incomplete());
    let count = stage.count(3);
    stage.say(&count);
    assert!(!stage.node.is_incomplete() && stage.commands().is_empty());
    assert_eq!(stage.take_told(), ["subscribed a", "subscribed b"]);
    // One command at a time, and the next has all that came meanwhile.
    for name in ["c", "d", "e"] {
        stage.subscribe(name);
    }
    stage.expect_command("SUBSCRIBE c");
    stage.push("subscribe", "c");
    stage.expect_command("SUBSCRIBE d e");
    stage.subscriber.unsubscribe(&mut stage.node, channel("c"));
    stage.push("subscribe", "d");
    stage.push("subscribe", "e");
    stage.expect_command("UNSUBSCRIBE c");
    stage.push("unsubscribe", "c");
    assert_eq!(stage.take_told(), ["subscribed c", "subscribed d", "subscribed e"]);
    assert_eq!(stage.node.channels.confirmed(), 4);
}

#[test]
fn a_stream_reads_the_same_wherever_it_is_cut() {
    let script = |stage: &Stage| {
        let mut stream = stage.publication("a", "1");
        stream.extend(stage.pushed("subscribe", "c"));
        stream.extend(stage.publication("c", "\r\n$5\r\n"));
        stream.extend(b">2\r\n$10\r\ninvalidate\r\n*0\r\n");
        stream.extend(stage.publication("a", ""));
        stream.extend(stage.publication("b", &"x".repeat(70_000)));
        stream.extend(stage.publication("b", "2"));
        stream
    };
    let mut expected = None;
    for len in (1..40).chain([100, 1_000, 65_536, 100_000]) {
        let mut stage = Stage::hearing();
        stage.subscribe("c");
        let stream = script(&stage);
        stage.say_in_parts(&stream, len);
        let told = stage.take_told();
        assert_eq!(told.len(), 6, "{len}");
        assert_eq!(*expected.get_or_insert_with(|| told.clone()), told, "parts of {len} bytes");
    }
}

#[test]
fn at_the_marker_nothing_is_read_until_its_release_even_if_an_answer_waits_there() {
    let mut stage = Stage::hearing();
    let marker = stage.set_marker(Seal::random());
    let forged = stage.publication("m:a", "0000000000000000");
    stage.say(&forged);
    assert!(!stage.subscriber.is_at_marker(), "another client's message is no marker");
    stage.subscribe("c");
    stage.expect_command("SUBSCRIBE c");
    let stream =
        [stage.publication("a", "before"), marker, stage.publication("a", "behind"), stage.pushed("subscribe", "c")];
    stage.say(&stream.concat());
    assert!(stage.subscriber.is_at_marker() && !stage.subscriber.wants_bytes());
    assert_eq!(stage.take_told(), ["a=before"]);
    stage.pass(10 * TIMEOUT);
    assert!(stage.subscriber.is_at_marker(), "no deadline passes there");
    stage.subscriber.release(&mut stage.node, stage.now);
    stage.listen();
    assert_eq!(stage.take_told(), ["a=behind", "subscribed c"]);
    assert_eq!(stage.duties(4), ["UNSUBSCRIBE m:a"]);
    stage.push("unsubscribe", "m:a");
    assert!(stage.subscriber.is_up() && stage.node.marker.is_none());
}

#[test]
fn a_resp2_server_is_heard_and_not_asked_what_its_subscribers_may_not_ask() {
    let mut stage = Stage::new(&["a"]);
    stage.protocol = Protocol::Resp2;
    stage.connect();
    stage.all_confirmed();
    let stream = [stage.publication("a", "1"), stage.publication("a", "2")].concat();
    stage.say_in_parts(&stream, 3);
    assert_eq!(stage.take_told(), ["subscribed a", "a=1", "a=2"]);
    stage.pass(6 * SECOND);
    stage.expect_command("PING");
    stage.say(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert!(stage.subscriber.is_up() && stage.commands().is_empty());
}

proptest! {
    /// Whatever Redis sends, the machine neither panics nor asks for the same time twice.
    #[test]
    fn any_bytes_are_survived(parts in proptest::collection::vec((0_u8..9, proptest::collection::vec(any::<u8>(), 0..20)), 0..30)) {
        let mut stage = Stage::hearing();
        stage.subscribe("c");
        for (kind, noise) in parts {
            match kind {
                0 => stage.say(&noise),
                1 => stage.push("subscribe", "c"),
                2 => stage.push("unsubscribe", "a"),
                3 => stage.push("sunsubscribe", "b"),
                4 => stage.say(b"-NOPERM no\r\n"),
                5 => stage.say(b"+OK\r\n"),
                6 => {
                    let publication = stage.publication("a", "x");
                    stage.say(&publication);
                }
                7 => stage.pass(SECOND),
                _ => {
                    let name = noise.first().map_or("d".to_owned(), |byte| format!("d{}", byte % 4));
                    stage.subscribe(&name);
                }
            }
            if !stage.subscriber.is_up() {
                stage.connect();
            }
        }
        prop_assert!(stage.node.channels.confirmed() <= 7);
    }
}
