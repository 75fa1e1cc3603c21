//! The subscribing link without sockets: a scripted Redis, and a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::broker::event::{Gap, Report};
use crate::broker::redis::health::Health;
use crate::broker::redis::marker::{Marker, Progress};
use crate::broker::redis::node_state::Terms;
use crate::broker::redis::resp::Protocol;
use crate::broker::redis::role::RoleWatch;
use crate::broker::seal::Seal;
use crate::config::RedisUrl;
use crate::placement::{Node, Owners, Placement, SLOTS};

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(3);

/// A link, its worker and its clock.
struct Stage {
    node: NodeState,
    subscriber: Subscriber,
    now: Instant,
    protocol: Protocol,
    /// What the worker was told.
    told: Vec<String>,
}

impl Stage {
    fn new(channels: &[&str]) -> Self {
        Self::over(Placement::over(1), Node(0), channels)
    }

    /// A node of a cluster that owns all slots, where `live:` is sharded.
    fn sharded(channels: &[&str]) -> Self {
        let placement = Placement::in_cluster(vec!["live:".to_owned()]);
        let all = || vec![Some(Node(0)); SLOTS.into()];
        placement.set_owners(Owners { slots: all(), homes: all(), nodes: 1, live: 1 });
        Self::over(placement, Node(0), channels)
    }

    fn over(placement: Placement, node: Node, channels: &[&str]) -> Self {
        let now = Instant::now();
        let is_in_cluster = placement.has_sharded();
        let terms =
            Terms { response_timeout: TIMEOUT, max_reconnect_delay: SECOND, is_in_cluster, ..Terms::of_test() };
        let node = NodeState::new(node, terms, Arc::new(Health::new(&RedisUrl::default(), 1)), placement, now);
        let subscriber = Subscriber::new(SECOND, now);
        let mut stage = Self { node, subscriber, now, protocol: Protocol::Resp3, told: Vec::new() };
        channels.iter().for_each(|name| stage.subscribe(name));
        stage
    }

    fn subscribe(&mut self, name: &str) {
        self.subscriber.subscribe(&mut self.node, channel(name));
        self.step();
    }

    /// A link is made, whose role was just asked.
    fn connect(&mut self) {
        self.now += SECOND;
        assert!(self.subscriber.wants_link(self.now) && !self.subscriber.wants_link(self.now));
        let role = RoleWatch::of_master(self.protocol, self.now);
        let greeting = Greeting { protocol: self.protocol, address: "a:1".to_owned(), role, master: None };
        self.subscriber.on_connected(&mut self.node, greeting, self.now);
    }

    /// The commands that wait to be sent, each as one line.
    fn commands(&mut self) -> Vec<String> {
        let sent = self.subscriber.outgoing().map(std::mem::take).unwrap_or_default();
        let text = String::from_utf8(sent).unwrap();
        let probe = String::from_utf8_lossy(self.node.probe.channel()).into_owned();
        let mut words: Vec<_> = text.split("\r\n").filter(|word| !word.starts_with('$')).collect();
        words.pop();
        let commands = words.split(|word| word.starts_with('*')).filter(|command| !command.is_empty());
        commands.map(|command| command.join(" ").replace(&probe, "PROBE")).collect()
    }

    fn expect_command(&mut self, expected: &str) {
        assert_eq!(self.commands(), [expected]);
    }

    /// Redis sends bytes.
    fn say(&mut self, bytes: &[u8]) {
        self.say_in_parts(bytes, bytes.len().max(1));
    }

    fn say_in_parts(&mut self, bytes: &[u8], len: usize) {
        for part in bytes.chunks(len) {
            let mut part = part;
            while !part.is_empty() && self.subscriber.wants_bytes() {
                let room = self.subscriber.room();
                let taken = room.len().min(part.len());
                room[..taken].copy_from_slice(&part[..taken]);
                part = &part[taken..];
                self.subscriber.on_bytes(&mut self.node, taken, self.now);
                self.listen();
            }
        }
    }

    /// Collects what the worker is to be told.
    fn listen(&mut self) {
        loop {
            if let Some(event) = self.node.events.pop_front() {
                self.told.push(match event {
                    Report::Subscribed { channel, .. } => format!("subscribed {}", channel.escape_ascii()),
                    Report::Refused { channel, .. } => format!("refused {}", channel.escape_ascii()),
                    Report::Dropped { channel, .. } => format!("dropped {}", channel.escape_ascii()),
                    Report::Lost { .. } => "lost".to_owned(),
                    Report::Gap(Gap { length, .. }) => format!("gap {}", length.as_secs_f64().round()),
                    other => format!("{other:?}"),
                });
            } else if let Some((channel, payload)) = self.subscriber.next(&mut self.node, self.now) {
                let (channel, payload) = self.subscriber.publication(&channel, &payload).unwrap();
                self.told.push(format!("{}={}", channel.escape_ascii(), payload.escape_ascii()));
            } else if self.node.events.is_empty() {
                return;
            }
        }
    }

    fn step(&mut self) {
        self.subscriber.step(&mut self.node, self.now);
        self.listen();
    }

    /// Time passes; the machine runs whenever it asked for that.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.subscriber.next_timeout(&self.node).filter(|next| *next <= end) {
            if !self.subscriber.is_up() {
                break;
            }
            assert!(next >= self.now || self.node.probe.limit().is_some(), "a time in the past is asked for");
            self.now = next.max(self.now);
            self.step();
            if self.subscriber.next_timeout(&self.node) == Some(next) {
                panic!("the same time is asked for again: the worker would never sleep");
            }
        }
        self.now = end;
    }

    fn take_told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    fn pushed(&self, kind: &str, name: &str) -> Vec<u8> {
        let first = if self.protocol == Protocol::Resp3 { '>' } else { '*' };
        let name = if name == "PROBE" {
            String::from_utf8_lossy(self.node.probe.channel()).into_owned()
        } else {
            name.to_owned()
        };
        format!("{first}3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n:1\r\n", kind.len(), name.len()).into_bytes()
    }

    fn push(&mut self, kind: &str, name: &str) {
        let bytes = self.pushed(kind, name);
        self.say(&bytes);
    }

    fn publication(&self, name: &str, payload: &str) -> Vec<u8> {
        let first = if self.protocol == Protocol::Resp3 { '>' } else { '*' };
        format!("{first}3\r\n$7\r\nmessage\r\n${}\r\n{name}\r\n${}\r\n{payload}\r\n", name.len(), payload.len())
            .into_bytes()
    }

    /// What CLIENT INFO answers.
    fn count(&self, subscriptions: usize) -> Vec<u8> {
        if self.protocol == Protocol::Resp2 {
            return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec();
        }
        let info = format!("id=1 sub={subscriptions} psub=0 ssub=0");
        format!("${}\r\n{info}\r\n", info.len()).into_bytes()
    }

    /// Answers the questions that a link asks by itself, of a master with so many subscriptions; returns the commands
    /// behind them.
    fn duties(&mut self, subscriptions: usize) -> Vec<String> {
        loop {
            let commands = self.commands();
            match commands.first().map(String::as_str) {
                Some("HELLO 3") => self.say(b"%1\r\n+role\r\n+master\r\n"),
                Some("CLIENT INFO") => {
                    let count = self.count(subscriptions);
                    self.say(&count);
                }
                _ => return commands,
            }
        }
    }

    /// Connects, and confirms the probe and the channels `a` and `b`.
    fn hearing() -> Self {
        let mut stage = Self::new(&["a", "b"]);
        stage.connect();
        stage.all_confirmed();
        assert_eq!(stage.told.len(), 2);
        stage.told.clear();
        stage
    }

    /// Confirms the probe and all channels, in the order of the command.
    fn all_confirmed(&mut self) {
        assert_eq!(self.commands().len(), 1, "the probe's channel");
        self.push("subscribe", "PROBE");
        let subscribe = self.commands();
        let names: Vec<_> = subscribe.first().map_or(Vec::new(), |command| command.split(' ').skip(1).collect());
        names.iter().for_each(|name| self.push("subscribe", name));
        assert_eq!(self.commands().len(), 1, "the count");
        let count = self.count(1 + names.len());
        self.say(&count);
        assert!(!self.node.is_incomplete());
    }

    fn set_marker(&mut self, seal: Seal) -> Vec<u8> {
        let marker = Marker::new("m", "a", Some(seal));
        let payload = marker.payload();
        self.node.marker = Some(marker);
        self.subscriber.set_marker();
        self.step();
        self.expect_command("SUBSCRIBE m:a");
        self.push("subscribe", "m:a");
        assert_eq!(self.node.marker.as_ref().map(|marker| marker.progress), Some(Progress::Set));
        self.publication("m:a", &payload)
    }
}

fn channel(name: &str) -> Channel {
    Channel::copy_from_slice(name.as_bytes())
}

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
fn what_is_read_is_the_same_wherever_it_is_cut() {
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
fn a_channel_that_was_subscribed_only_to_look_is_given_back_before_redis_is_known_to_take_any() {
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
fn a_channel_is_not_subscribed_once_more_before_an_audit_has_missed_it() {
    let mut stage = Stage::hearing();
    stage.subscribe("c");
    stage.commands();
    stage.say(b"-NOPERM no\r\n");
    assert_eq!(stage.commands(), ["SUBSCRIBE c"]);
    stage.say(b"-NOPERM no\r\n");
    // Whether all are refused: the last that was taken would be subscribed again, and it is one that Redis has forgotten.
    stage.expect_command("CLIENT INFO");
    let count = stage.count(2);
    stage.say(&count);
    let told = stage.take_told();
    assert_eq!(told, ["refused c", "lost"]);
    let again = stage.commands();
    assert!(again.len() == 1 && again[0].contains(" a") && again[0].contains(" b"), "{again:?}");
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
fn a_gap_ends_when_all_is_back_that_was_lost_however_many_channels_are_new() {
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
    let number = stage.node.probe.next(sent);
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
fn a_node_that_is_no_master_any_more_is_left() {
    let mut stage = Stage::hearing();
    stage.pass(2 * SECOND);
    stage.expect_command("HELLO 3");
    stage.say(b"%1\r\n+role\r\n+replica\r\n");
    assert_eq!(stage.take_told(), ["lost"]);
    assert!(stage.node.health.fault().is_some_and(|fault| fault.contains("replica")));
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

#[test]
fn a_server_that_speaks_resp2_is_heard_and_not_asked_what_a_subscriber_may_not() {
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

#[test]
fn what_is_no_resp_or_no_answer_ends_the_link() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"+PONG\r\n", b"-ERR unasked\r\n"] {
        let mut stage = Stage::hearing();
        stage.say(bytes);
        assert_eq!(stage.take_told(), ["lost"], "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_probe_that_does_not_come_back_ends_the_link() {
    let mut stage = Stage::hearing();
    let number = stage.node.probe.next(stage.now);
    stage.node.probe.on_published(number, 1, stage.now);
    stage.pass(SECOND);
    stage.commands();
    stage.say(b"%1\r\n+role\r\n+master\r\n");
    assert!(stage.subscriber.is_up());
    stage.pass(2 * SECOND);
    assert_eq!(stage.take_told(), ["lost"]);
}

#[test]
fn a_new_link_is_asked_for_after_a_pause_and_never_where_the_node_has_left() {
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
