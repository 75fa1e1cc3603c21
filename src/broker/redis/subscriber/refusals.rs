//! Tests of the subscribing link: channels that Redis refuses, for now or for good, and channels that are left and
//! joined meanwhile. May not enter: lost links (`losses.rs`).

use super::stage::{SECOND, Stage, channel};

#[test]
fn channels_that_are_refused_together_are_tried_one_by_one() {
    let mut stage = Stage::new(&["a", "b", "c"]);
    stage.connect();
    stage.commands();
    stage.push("subscribe", "PROBE");
    stage.commands();
    stage.say(b"-NOPERM No permissions to access a channel\r\n");
    let mut tried = Vec::new();
    while let [one] = &stage.commands()[..]
        && one != "CLIENT INFO"
    {
        let name = one.strip_prefix("SUBSCRIBE ").unwrap().to_owned();
        if name == "b" {
            stage.say(b"-NOPERM No permissions to access a channel\r\n");
        } else {
            stage.push("subscribe", &name);
        }
        tried.push(name);
        if tried.len() > 4 {
            panic!("{tried:?}");
        }
    }
    // The fourth is one that was taken, to tell whether all are refused now.
    assert_eq!(tried.len(), 4);
    tried.truncate(3);
    tried.sort();
    assert_eq!(tried, ["a", "b", "c"]);
    let count = stage.count(3);
    stage.say(&count);
    let mut told = stage.take_told();
    told.sort();
    told.dedup();
    assert_eq!(told, ["refused b", "subscribed a", "subscribed c"]);
    assert!(!stage.node.is_incomplete() && stage.node.health.refusal().is_none());
    // It is tried again when it is wanted again.
    stage.subscribe("b");
    stage.expect_command("SUBSCRIBE b");
}

#[test]
fn a_channel_subscribed_as_a_trial_is_given_back_before_redis_counts_as_accepting() {
    let mut stage = Stage::new(&[]);
    stage.connect();
    stage.commands();
    stage.push("subscribe", "PROBE");
    assert!(stage.duties(1).is_empty() && !stage.node.is_incomplete());
    for name in ["x", "y"] {
        stage.subscribe(name);
        stage.commands();
        stage.say(b"-NOPERM no\r\n");
        assert_eq!(stage.duties(1), [format!("SUBSCRIBE {name}")]);
        stage.say(b"-NOPERM no\r\n");
    }
    assert_eq!(stage.take_told(), ["refused x", "refused y"]);
    assert!(stage.node.health.refusal().is_some());
    let mut looked = Vec::new();
    while looked.is_empty() {
        stage.pass(SECOND);
        looked = stage.duties(1);
    }
    assert_eq!(looked, ["SUBSCRIBE y"]);
    stage.push("subscribe", "y");
    assert!(stage.node.health.refusal().is_some());
    stage.expect_command("UNSUBSCRIBE y");
    stage.push("unsubscribe", "y");
    assert!(stage.node.health.refusal().is_none() && stage.take_told().is_empty());
    assert!(stage.duties(1).is_empty());
}

#[test]
fn what_is_refused_for_now_is_tried_again() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.commands();
    stage.say(b"-LOADING Redis is loading\r\n");
    assert!(stage.node.refused_since.is_some() && stage.commands().is_empty());
    stage.pass(SECOND / 5);
    stage.expect_command("SUBSCRIBE c");
    stage.push("subscribe", "c");
    assert_eq!(stage.take_told(), ["subscribed c"]);
    assert!(stage.node.refused_since.is_none());
}

#[test]
fn a_channel_that_is_about_to_be_left_does_not_hide_that_another_is_missing() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.commands();
    stage.say(b"-NOPERM no\r\n");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    stage.subscriber.unsubscribe(&mut stage.node, channel("a"));
    stage.say(b"-NOPERM no\r\n");
    // Redis has forgotten `b`, and still has `a`.
    stage.expect_command("CLIENT INFO");
    let count = stage.count(2);
    stage.say(&count);
    assert_eq!(stage.take_told(), ["refused c", "lost"]);
}

#[test]
fn a_channel_is_not_subscribed_once_more_before_an_audit_has_missed_it() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.commands();
    stage.say(b"-NOPERM no\r\n");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    stage.say(b"-NOPERM no\r\n");
    // Whether all are refused: the last that was taken would be subscribed again, and it is one that Redis has
    // forgotten.
    stage.expect_command("CLIENT INFO");
    let count = stage.count(2);
    stage.say(&count);
    let told = stage.take_told();
    assert_eq!(told, ["refused c", "lost"]);
    let again = stage.commands();
    assert!(again.len() == 1 && again[0].contains(" a") && again[0].contains(" b"), "{again:?}");
}

#[test]
fn a_channel_that_is_tried_again_is_not_confirmed_before_its_own_turn() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.commands();
    stage.say(b"-NOPERM no\r\n");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    // The last that Redis took is tried again, though it is to be left; and then it is joined once more.
    stage.subscriber.unsubscribe(&mut stage.node, channel("b"));
    stage.say(b"-NOPERM no\r\n");
    assert_eq!(stage.commands(), ["SUBSCRIBE b"]);
    stage.subscribe("b");
    stage.push("subscribe", "b");
    assert_eq!(stage.take_told(), ["refused c"], "b is about to be unsubscribed");
    assert_eq!(stage.commands(), ["UNSUBSCRIBE b"]);
    stage.push("unsubscribe", "b");
    assert_eq!(stage.commands(), ["SUBSCRIBE b"]);
    stage.push("subscribe", "b");
    assert_eq!(stage.take_told(), ["subscribed b"]);
}

#[test]
fn a_confirmation_before_the_unsubscribe_that_waits_confirms_nothing() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    stage.subscriber.unsubscribe(&mut stage.node, channel("c"));
    stage.subscribe("c");
    stage.push("subscribe", "c");
    assert_eq!(stage.take_told(), [""; 0], "c is about to be unsubscribed");
    assert_eq!(stage.commands(), ["UNSUBSCRIBE c"]);
    stage.push("unsubscribe", "c");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    stage.push("subscribe", "c");
    assert_eq!(stage.take_told(), ["subscribed c"]);
}

#[test]
fn a_sharded_channel_that_moves_away_is_dropped_and_tried_again() {
    let mut stage = Stage::sharded(&["live:a"]);
    stage.connect();
    stage.expect_command("SSUBSCRIBE PROBE");
    stage.push("ssubscribe", "PROBE");
    stage.expect_command("SSUBSCRIBE live:a");
    stage.push("ssubscribe", "live:a");
    stage.commands();
    stage.say(b"-NOPERM no CLIENT INFO\r\n");
    assert!(!stage.node.is_incomplete());
    stage.subscribe("live:b");
    stage.subscribe("chat:c");
    stage.expect_command("SSUBSCRIBE live:b");
    // Unasked, while another answer is awaited.
    stage.push("sunsubscribe", "live:a");
    stage.push("ssubscribe", "live:b");
    stage.expect_command("SUBSCRIBE chat:c");
    stage.push("subscribe", "chat:c");
    let told = stage.take_told();
    assert_eq!(told, ["subscribed live:a", "dropped live:a", "subscribed live:b", "subscribed chat:c"]);
    assert!(std::mem::take(&mut stage.node.doubts_topology));
    stage.pass(SECOND / 2);
    stage.expect_command("SSUBSCRIBE live:a");
    stage.say(b"-MOVED 1 b:1\r\n");
    assert!(stage.subscriber.is_up() && stage.node.refused_since.is_some());
    stage.pass(SECOND / 5);
    stage.expect_command("SSUBSCRIBE live:a");
    stage.push("ssubscribe", "live:a");
    let told = stage.take_told();
    assert!(told[0] == "subscribed live:a" && told[1].starts_with("gap "), "{told:?}");
    // An end that was asked for is an answer; one that comes twice, because the slot moved, is none.
    stage.subscriber.unsubscribe(&mut stage.node, channel("live:a"));
    stage.step();
    stage.expect_command("SUNSUBSCRIBE live:a");
    stage.push("sunsubscribe", "live:a");
    stage.subscribe("live:a");
    stage.expect_command("SSUBSCRIBE live:a");
    stage.push("sunsubscribe", "live:a");
    stage.push("ssubscribe", "live:a");
    assert_eq!(stage.take_told(), ["subscribed live:a"]);
}
