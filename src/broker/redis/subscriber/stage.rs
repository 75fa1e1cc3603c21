//! A subscribing link without sockets, for tests: a scripted Redis, and a clock that the test moves. May not enter:
//! tests.

use std::sync::Arc;
use std::time::Duration;

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

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// A link, its worker and its clock.
pub(super) struct Stage {
    pub(super) node: NodeState,
    pub(super) subscriber: Subscriber,
    pub(super) now: Instant,
    pub(super) protocol: Protocol,
    /// What the worker was told.
    pub(super) told: Vec<String>,
}

impl Stage {
    pub(super) fn new(channels: &[&str]) -> Self {
        Self::over(Placement::over(1), Node(0), channels)
    }

    /// A node of a cluster that owns all slots, where `live:` is sharded.
    pub(super) fn sharded(channels: &[&str]) -> Self {
        let placement = Placement::in_cluster(vec!["live:".to_owned()]);
        let all = || vec![Some(Node(0)); SLOTS.into()];
        placement.set_owners(Owners { slots: all(), homes: all(), nodes: 1, live: 1 });
        Self::over(placement, Node(0), channels)
    }

    pub(super) fn over(placement: Placement, node: Node, channels: &[&str]) -> Self {
        let now = Instant::now();
        let is_in_cluster = placement.has_sharded();
        let terms = Terms { response_timeout: TIMEOUT, max_reconnect_delay: SECOND, is_in_cluster, ..Terms::of_test() };
        let node = NodeState::new(node, terms, Arc::new(Health::new(&RedisUrl::default(), 1)), placement, now);
        let subscriber = Subscriber::new(SECOND, now);
        let mut stage = Self { node, subscriber, now, protocol: Protocol::Resp3, told: Vec::new() };
        channels.iter().for_each(|name| stage.subscribe(name));
        stage
    }

    pub(super) fn subscribe(&mut self, name: &str) {
        self.subscriber.subscribe(&mut self.node, channel(name));
        self.step();
    }

    /// A link is made, whose role was just asked.
    pub(super) fn connect(&mut self) {
        self.now += SECOND;
        assert!(self.subscriber.wants_link(self.now) && !self.subscriber.wants_link(self.now));
        let role = RoleWatch::of_master(self.protocol, self.now);
        let greeting = Greeting { protocol: self.protocol, address: "a:1".to_owned(), role, master: None };
        self.subscriber.on_connected(&mut self.node, greeting, self.now);
    }

    /// The commands that wait to be sent, each as one line.
    pub(super) fn commands(&mut self) -> Vec<String> {
        let sent = self.subscriber.outgoing().map(std::mem::take).unwrap_or_default();
        let text = String::from_utf8(sent).unwrap();
        let probe = String::from_utf8_lossy(self.node.probe.channel()).into_owned();
        let mut words: Vec<_> = text.split("\r\n").filter(|word| !word.starts_with('$')).collect();
        words.pop();
        let commands = words.split(|word| word.starts_with('*')).filter(|command| !command.is_empty());
        commands.map(|command| command.join(" ").replace(&probe, "PROBE")).collect()
    }

    pub(super) fn expect_command(&mut self, expected: &str) {
        assert_eq!(self.commands(), [expected]);
    }

    /// Redis sends bytes.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.say_in_parts(bytes, bytes.len().max(1));
    }

    pub(super) fn say_in_parts(&mut self, bytes: &[u8], len: usize) {
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
    pub(super) fn listen(&mut self) {
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

    pub(super) fn step(&mut self) {
        self.subscriber.step(&mut self.node, self.now);
        self.listen();
    }

    /// Time passes; the machine runs whenever it asked for that.
    pub(super) fn pass(&mut self, time: Duration) {
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

    pub(super) fn take_told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    pub(super) fn pushed(&self, kind: &str, name: &str) -> Vec<u8> {
        let first = if self.protocol == Protocol::Resp3 { '>' } else { '*' };
        let name = if name == "PROBE" {
            String::from_utf8_lossy(self.node.probe.channel()).into_owned()
        } else {
            name.to_owned()
        };
        format!("{first}3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n:1\r\n", kind.len(), name.len()).into_bytes()
    }

    pub(super) fn push(&mut self, kind: &str, name: &str) {
        let bytes = self.pushed(kind, name);
        self.say(&bytes);
    }

    pub(super) fn publication(&self, name: &str, payload: &str) -> Vec<u8> {
        let first = if self.protocol == Protocol::Resp3 { '>' } else { '*' };
        format!("{first}3\r\n$7\r\nmessage\r\n${}\r\n{name}\r\n${}\r\n{payload}\r\n", name.len(), payload.len())
            .into_bytes()
    }

    /// What CLIENT INFO answers.
    pub(super) fn count(&self, subscriptions: usize) -> Vec<u8> {
        if self.protocol == Protocol::Resp2 {
            return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec();
        }
        let info = format!("id=1 sub={subscriptions} psub=0 ssub=0");
        format!("${}\r\n{info}\r\n", info.len()).into_bytes()
    }

    /// Answers the questions that a link asks by itself, of a master with so many subscriptions; returns the commands
    /// behind them.
    pub(super) fn duties(&mut self, subscriptions: usize) -> Vec<String> {
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
    pub(super) fn hearing() -> Self {
        let mut stage = Self::new(&["a", "b"]);
        stage.connect();
        stage.all_confirmed();
        assert_eq!(stage.told.len(), 2);
        stage.told.clear();
        stage
    }

    /// Confirms the probe and all channels, in the order of the command.
    pub(super) fn all_confirmed(&mut self) {
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

    pub(super) fn set_marker(&mut self, seal: Seal) -> Vec<u8> {
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

pub(super) fn channel(name: &str) -> Channel {
    Channel::copy_from_slice(name.as_bytes())
}
