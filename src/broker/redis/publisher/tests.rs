//! The publishing link without sockets: a scripted Redis, and a clock that the test moves. May not enter: sockets.

use std::sync::Arc;

use bytes::Bytes;
use redis::ServerError;
use tokio::sync::oneshot;

use super::*;
use crate::broker::redis::health::Health;
use crate::broker::redis::milestone::{MilestoneClock, MilestoneUse};
use crate::broker::redis::node_state::{RETRY, Terms};
use crate::broker::redis::resp::Protocol;
use crate::broker::redis::role::RoleWatch;
use crate::broker::redis::transport::HostPort;
use crate::channel::Channel;
use crate::config::RedisUrl;
use crate::id::SessionKey;
use crate::message::{NotPublished, Origin};
use crate::placement::{Node, Placement};

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(3);

struct Stage {
    node: NodeState,
    publisher: Publisher,
    now: Instant,
}

impl Stage {
    /// A node whose subscriber is complete, and a publishing link whose node is a master.
    fn up() -> Self {
        let now = Instant::now();
        let terms = Terms { response_timeout: TIMEOUT, max_reconnect_delay: SECOND, ..Terms::of_test() };
        let health = Arc::new(Health::new(&RedisUrl::default(), 1));
        let mut node = NodeState::new(Node(0), terms, health, Placement::over(1), now);
        node.incomplete_since = None;
        node.health.worker_is_complete();
        let mut stage = Self { node, publisher: Publisher::new(SECOND, now), now };
        stage.connect(None);
        stage
    }

    fn connect(&mut self, master: Option<HostPort>) {
        self.now += SECOND;
        assert!(self.publisher.wants_link(self.now));
        let role = RoleWatch::of_master(Protocol::Resp3, self.now);
        let greeting = Greeting { protocol: Protocol::Resp3, address: "a:1".to_owned(), role, master };
        self.publisher.on_connected(&mut self.node, greeting, self.now);
    }

    /// The next commands, each as one line; empty where nothing is to be sent.
    fn step(&mut self) -> Vec<String> {
        let pipeline = self.publisher.step(&mut self.node, self.now);
        pipeline.map(|pipeline| lines(&pipeline)).unwrap_or_default()
    }

    fn answer(&mut self, answers: Vec<Value>) {
        self.publisher.on_answers(&mut self.node, Ok(answers), self.now);
    }

    /// What the worker was told, and the outcomes of messages.
    fn told(&mut self) -> Vec<String> {
        let events = std::mem::take(&mut self.node.events);
        let told = events.into_iter().map(|event| match event {
            Report::Room { .. } => "room".to_owned(),
            Report::Published { outcome: Ok(()), .. } => "published".to_owned(),
            Report::Published { outcome: Err(NotPublished::Unknown), .. } => "unknown".to_owned(),
            Report::Published { outcome: Err(_), .. } => "refused".to_owned(),
            Report::Returned(messages) => format!("{} returned", messages.len()),
            Report::Doubt { sessions, messages } => format!("{messages} of {} in doubt", sessions.len()),
            other => format!("{other:?}"),
        });
        told.collect()
    }

    /// Gives the link messages when it has room, and returns its commands.
    fn publish(&mut self, messages: &[(u32, &str, &str)]) -> Vec<String> {
        let mut sent = self.step();
        while sent == ["probe"] {
            self.answer(vec![Value::Int(1)]);
            sent = self.step();
        }
        assert_eq!((sent.len(), self.told()), (0, vec!["room".to_owned()]));
        let messages = messages.iter().map(|(session, channel, payload)| ClientMessage {
            channel: Channel::copy_from_slice(channel.as_bytes()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            origin: Origin::Session(SessionKey { index: *session, generation: 0 }),
            since: 0,
        });
        let pipeline = self.publisher.on_messages(&mut self.node, messages.collect(), self.now);
        pipeline.map(|pipeline| lines(&pipeline)).unwrap_or_default()
    }
}

/// What `INFO replication` answers where there is a log.
fn info() -> Value {
    let info = "master_replid:8f31c2a0d1be5a779ef0a3b1c2d4e5f601234567\r\nmaster_repl_offset:4711\r\nrepl_backlog_active:1\r\n";
    Value::BulkString(info.as_bytes().to_vec())
}

fn lines(pipeline: &Pipeline) -> Vec<String> {
    let line = |command: &redis::Cmd| {
        let arguments = command.args_iter().map(|argument| match argument {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => "cursor".to_owned(),
        });
        let line = arguments.collect::<Vec<_>>().join(" ");
        if line.contains("webws:probe:") { "probe".to_owned() } else { line }
    };
    pipeline.cmd_iter().map(line).collect()
}

fn role_of(role: &str) -> Value {
    Value::Array(vec![Value::SimpleString("role".to_owned()), Value::SimpleString(role.to_owned())])
}

fn error(line: &str) -> Value {
    let parsed = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
    let _: &ServerError = match &parsed {
        Value::ServerError(error) => error,
        other => panic!("{other:?}"),
    };
    parsed
}

#[test]
fn messages_leave_in_one_pipeline_and_each_is_answered() {
    let mut stage = Stage::up();
    assert_eq!(stage.publish(&[(1, "a", "x"), (2, "b", "y")]), ["PUBLISH a x", "PUBLISH b y"]);
    assert!(stage.step().is_empty() && stage.publisher.batch() == Some(1), "one at a time");
    stage.answer(vec![Value::Int(1), error("NOPERM no")]);
    assert_eq!(stage.told(), ["published", "refused"]);
    // More may have come meanwhile; without any the link sleeps until the next question or probe.
    assert_eq!(stage.publish(&[]), [""; 0]);
    assert!(stage.step().is_empty() && stage.publisher.next_timeout().is_some_and(|next| next > stage.now));
    stage.publisher.on_messages_wait();
    assert_eq!(stage.publish(&[(1, "a", "z")]), ["PUBLISH a z"]);
}

#[test]
fn what_was_refused_for_now_goes_back_unless_another_overtook_it() {
    let mut stage = Stage::up();
    stage.publish(&[(1, "a", "1"), (1, "b", "2"), (1, "a", "3")]);
    stage.answer(vec![error("LOADING not yet"), error("LOADING not yet"), Value::Int(1)]);
    assert_eq!(stage.told(), ["refused", "published", "1 returned"]);
    assert!(stage.node.doubts_topology && stage.step().is_empty());
    assert!(stage.told().is_empty(), "it waits a moment");
    stage.now += RETRY;
    assert_eq!(stage.publish(&[(1, "b", "2")]), ["PUBLISH b 2"]);
}

#[test]
fn what_was_not_answered_is_unknown_and_never_sent_again() {
    let mut stage = Stage::up();
    stage.publish(&[(1, "a", "1"), (2, "a", "2")]);
    stage.now += TIMEOUT;
    assert!(stage.publisher.awaits_answers() && stage.step().is_empty());
    stage.publisher.judge_deadline(&mut stage.node, stage.now);
    assert_eq!(stage.told(), ["unknown", "unknown"]);
    assert!(!stage.publisher.is_up());
    stage.connect(None);
    assert!(stage.step().iter().all(|command| command != "PUBLISH a 1"));
}

#[test]
fn nothing_is_published_while_the_subscriber_is_away_but_the_role_is_asked() {
    let mut stage = Stage::up();
    stage.node.incomplete_since = Some(stage.now);
    stage.publisher.on_messages_wait();
    assert!(stage.step().is_empty() && stage.told().is_empty());
    stage.now += 2 * SECOND;
    assert_eq!(stage.step(), ["HELLO 3"]);
    stage.answer(vec![role_of("master")]);
    assert!(stage.step().is_empty() && stage.told().is_empty());
    stage.node.incomplete_since = None;
    stage.node.health.worker_is_incomplete();
    stage.node.subscribed_at = stage.now;
    assert!(stage.step().is_empty() && stage.told().is_empty(), "another worker has its moment");
    stage.node.health.worker_is_complete();
    assert_eq!(stage.publish(&[(1, "a", "x")]), ["PUBLISH a x"]);
}

#[test]
fn a_milestone_names_the_log_right_before_it_and_is_the_probe() {
    let mut stage = Stage::up();
    stage.node.milestones = MilestoneClock::new(MilestoneUse::Gaps, false, stage.now);
    stage.node.probe.allow();
    stage.node.probe.begin(stage.now);
    assert_eq!(stage.step(), ["INFO replication"]);
    stage.answer(vec![info()]);
    let published = stage.step();
    assert!(published.len() == 1 && published[0].ends_with(" 4711"), "{published:?}");
    assert!(published[0].starts_with("PUBLISH webws:milestone "));
    stage.answer(vec![Value::Int(3)]);
    assert!(stage.node.probe.limit().is_some(), "it is awaited");
    // Without the right, the probe's own channel is to be subscribed first.
    stage.now += SECOND;
    while stage.step() != ["INFO replication"] {
        stage.node.events.clear();
        stage.answer(vec![role_of("master")]);
    }
    stage.answer(vec![error("NOPERM no")]);
    let published = stage.step();
    assert_eq!(published[0].split(' ').count(), 3, "no log is named: {published:?}");
    stage.answer(vec![error("NOPERM No permissions to access a channel used as argument")]);
    assert!(stage.node.probe.is_lost() && stage.node.proof_due_at().is_none());
    assert!(stage.told()[0].starts_with("NoMilestones"));
    stage.node.probe.allow();
    stage.now += SECOND;
    let mut next = stage.step();
    while next == ["HELLO 3"] {
        stage.answer(vec![role_of("master")]);
        next = stage.step();
    }
    assert_eq!(next, ["probe"]);
}

#[test]
fn messages_that_a_former_master_took_are_in_doubt() {
    let mut stage = Stage::up();
    stage.publish(&[(1, "a", "1"), (1, "a", "2"), (2, "a", "3")]);
    stage.answer(vec![Value::Int(0), Value::Int(0), Value::Int(0)]);
    stage.told();
    stage.now += 2 * SECOND;
    assert_eq!(stage.step(), ["HELLO 3"]);
    stage.answer(vec![role_of("replica")]);
    assert_eq!(stage.told(), ["3 of 2 in doubt"]);
    assert!(!stage.publisher.is_up() && stage.node.is_suspect);
}

#[test]
fn messages_of_a_link_that_was_cut_are_in_doubt_once_its_node_turns_out_to_be_no_master() {
    let mut stage = Stage::up();
    let take_and_cut = |stage: &mut Stage| {
        stage.publish(&[(1, "a", "1"), (2, "a", "2")]);
        stage.answer(vec![Value::Int(0), Value::Int(0)]);
        stage.publisher.fail(&mut stage.node, &LinkError::Closed, stage.now);
        assert_eq!(stage.told(), ["published", "published"], "a cut says nothing yet");
    };
    take_and_cut(&mut stage);
    stage.now += SECOND;
    assert!(stage.publisher.wants_link(stage.now));
    let demoted = || LinkError::NoMaster("a:1".to_owned(), "is a replica");
    stage.publisher.on_not_connected(&mut stage.node, &demoted(), stage.now);
    assert_eq!(stage.told(), ["2 of 2 in doubt"]);
    stage.now += SECOND;
    assert!(stage.publisher.wants_link(stage.now));
    stage.publisher.on_not_connected(&mut stage.node, &demoted(), stage.now);
    assert!(stage.told().is_empty(), "once");
    stage.connect(None);
    take_and_cut(&mut stage);
    stage.connect(None);
    assert!(stage.told().is_empty(), "the node is a master");
    take_and_cut(&mut stage);
    // The Sentinels name another one.
    let other = Some(("b".to_owned(), 1));
    stage.node.subscriber_at.clone_from(&other);
    stage.connect(other);
    assert_eq!(stage.told(), ["2 of 2 in doubt"]);
}

#[test]
fn a_link_to_another_master_than_the_subscribers_ends() {
    let mut stage = Stage::up();
    stage.node.subscriber_at = Some(("b".to_owned(), 1));
    assert!(stage.step().is_empty() && !stage.publisher.is_up());
    stage.connect(Some(("b".to_owned(), 1)));
    assert_eq!(stage.publish(&[(1, "a", "x")]), ["PUBLISH a x"]);
}

#[test]
fn a_node_that_leaves_is_closed_when_its_messages_are_answered_for() {
    let mut stage = Stage::up();
    stage.publish(&[(1, "a", "1")]);
    stage.publisher.close();
    assert!(!stage.publisher.is_closed());
    stage.answer(vec![Value::Int(1)]);
    stage.publisher.close();
    assert!(stage.publisher.is_closed() && stage.told() == ["published"]);
}

#[test]
fn messages_under_way_at_the_end_are_returned() {
    let mut stage = Stage::up();
    let (tell, _told) = oneshot::channel();
    assert_eq!(stage.publish(&[]), [""; 0]);
    stage.publisher.on_messages_wait();
    stage.step();
    let message = ClientMessage {
        channel: Channel::copy_from_slice(b"a"),
        payload: Bytes::new(),
        origin: Origin::Publisher(tell),
        since: 0,
    };
    assert!(stage.publisher.on_messages(&mut stage.node, vec![message], stage.now).is_some());
    assert_eq!(stage.publisher.abandon().len(), 1);
    assert!(stage.publisher.abandon().is_empty() && stage.publisher.is_closed());
}
