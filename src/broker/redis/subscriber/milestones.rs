//! Tests of the subscribing link: a link that is proved by milestones, and where they are refused. May not enter: links
//! with a probe of their own.

use super::stage::{SECOND, Stage};
use super::*;
use crate::broker::redis::milestone::{self, MilestoneClock, MilestoneUse};
use crate::position::MilestoneId;

impl Stage {
    /// A link that is proved by milestones.
    fn with_milestones(channels: &[&str]) -> Self {
        let mut stage = Self::new(channels);
        stage.node.milestones = MilestoneClock::new(MilestoneUse::Gaps, false, stage.now);
        stage.node.terms.may_replay = true;
        stage
    }

    /// The same, connected and complete.
    fn hearing_milestones() -> Self {
        let mut stage = Self::with_milestones(&["a"]);
        stage.connect();
        stage.expect_command("SUBSCRIBE webws:milestone");
        stage.push("subscribe", milestone::CHANNEL);
        stage.expect_command("SUBSCRIBE a");
        stage.push("subscribe", "a");
        assert!(stage.duties(2).is_empty() && !stage.node.is_incomplete());
        stage.take_told();
        stage
    }
}

#[test]
fn milestones_prove_a_link_and_the_probe_does_where_they_are_refused() {
    let mut stage = Stage::hearing_milestones();
    assert!(stage.node.proof_due_at().is_some() && stage.node.milestones.are_on());
    stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
    stage.connect();
    stage.commands();
    stage.say(b"-NOPERM no\r\n");
    stage.expect_command("SUBSCRIBE PROBE");
    stage.push("subscribe", "PROBE");
    stage.expect_command("SUBSCRIBE a");
    stage.push("subscribe", "a");
    assert!(stage.duties(2).is_empty() && !stage.node.is_incomplete());
    let told = stage.take_told();
    assert!(told.iter().any(|told| told.starts_with("NoMilestones")), "{told:?}");
    assert!(stage.node.proof_due_at().is_some() && !stage.node.milestones.are_on());
    // Rights may have been given meanwhile.
    stage.subscriber.fail(&mut stage.node, &LinkError::Closed, stage.now);
    stage.connect();
    stage.expect_command("SUBSCRIBE webws:milestone");
}

#[test]
fn a_milestone_of_another_worker_proves_what_was_read_before_it_and_an_own_one_when_it_was_sent() {
    let mut stage = Stage::hearing_milestones();
    stage.pass(3 * SECOND / 2);
    let asked = stage.now;
    stage.expect_command("HELLO 3");
    stage.now += SECOND / 10;
    stage.say(b"%1\r\n+role\r\n+master\r\n");
    // The process was stopped, and reads the rest late.
    stage.now += 60 * SECOND;
    let other = stage.publication(milestone::CHANNEL, "0000000000000001");
    stage.say(&other);
    let complete_until = stage.node.probe.complete_until();
    assert!(complete_until <= asked && asked - complete_until < SECOND);
    assert!(stage.node.probe.returned_until() < complete_until, "nothing of ours came back");
    stage.step();
    assert!(stage.take_told().iter().all(|told| told.starts_with("Milestone")));
}

#[test]
fn a_link_that_hears_only_the_milestones_of_others_is_deaf_for_the_node_where_its_worker_publishes() {
    let mut stage = Stage::hearing_milestones();
    let own = MilestoneId(7);
    let number = stage.node.probe.next(Some(own), stage.now);
    let sent = stage.now;
    stage.node.probe.on_published(number, 2, stage.now);
    for count in 0.. {
        stage.pass(SECOND / 4);
        let other = stage.publication(milestone::CHANNEL, &format!("{count:016x}"));
        if !stage.subscriber.is_up() {
            break;
        }
        assert!(count < 12, "the link stays");
        stage.say(&other);
        assert!(stage.duties(2).is_empty());
    }
    assert_eq!(stage.told.pop().as_deref(), Some("lost"));
    assert!(stage.node.lost_since.is_some_and(|since| since <= sent));
}

#[test]
fn redis_is_asked_what_it_has_before_a_link_that_misses_its_milestone_is_given_up() {
    for there in [2, 1] {
        let mut stage = Stage::hearing_milestones();
        let first = stage.publication(milestone::CHANNEL, "0000000000000001 0000000000000002 10");
        stage.say(&first);
        stage.take_told();
        let number = stage.node.probe.next(Some(MilestoneId(7)), stage.now);
        // Others hear it.
        stage.node.probe.on_published(number, 5, stage.now);
        let mut again = Vec::new();
        while stage.told.is_empty() {
            stage.pass(SECOND / 4);
            again.extend(stage.duties(there));
        }
        assert_eq!(stage.take_told(), ["lost"]);
        let is_forgotten = there < 2;
        // Where Redis has all, the stream was cut; where it forgot some, what came before is not known.
        assert_eq!(stage.node.catch_up.is_some(), !is_forgotten);
        assert_eq!((stage.subscriber.is_up(), again == ["SUBSCRIBE a"]), (is_forgotten, is_forgotten));
    }
}

#[test]
fn a_stream_that_is_cut_is_continued_unless_its_node_is_a_replica_now() {
    let demoted = LinkError::NoMaster("a:1".to_owned(), "is a replica");
    for (error, is_cut) in [(LinkError::Closed, true), (demoted, false)] {
        let mut stage = Stage::hearing_milestones();
        let milestone = stage.publication(milestone::CHANNEL, "0000000000000001 0000000000000002 10");
        stage.say(&milestone);
        stage.subscriber.fail(&mut stage.node, &error, stage.now);
        assert_eq!(stage.node.catch_up.is_some(), is_cut);
    }
}

#[test]
fn a_channel_that_was_just_subscribed_gets_a_milestone_soon_where_there_is_a_log() {
    let mut stage = Stage::hearing_milestones();
    for (log, is_soon) in [("", false), (" 0000000000000002 10", true)] {
        let milestone = stage.publication(milestone::CHANNEL, &format!("{:016x}{log}", u64::from(is_soon)));
        stage.say(&milestone);
        stage.node.milestones.hide_log();
        stage.node.milestones.next(stage.now);
        let name = format!("new{is_soon}");
        stage.subscribe(&name);
        stage.push("subscribe", &name);
        let due = stage.node.milestones.due_at().unwrap();
        assert_eq!(due <= stage.now + SECOND / 10, is_soon);
    }
}
