//! Random interactions of one session: operations, time and partial writes from a seed, checked against lists. A
//! failing seed is printed; `SEED=7 cargo test --lib random_interactions` runs that one alone. May not enter:
//! expectations for one interaction (`tests.rs`).

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

use super::stage::{
    BINARY, CLOSE, LUA, PING, PONG, SSE, SUBSCRIBER, Stage, TEXT, close_comment, encoded, frame, plain,
};
use super::{Action, Denial, Session};
use crate::channel::Channel;
use crate::close::CloseReason;
use crate::config::{BinaryPolicy, EndpointConfig};
use crate::protocol::encoding::Encoding;
use crate::protocol::outbound::Batch;

const RUNS: u64 = 2_000;
const STEPS: usize = 300;
const HEAD: &[u8] = b"101, and behind it frames";

/// The close that a worker asks for.
const REASONS: [CloseReason; 4] =
    [CloseReason::GoingAway, CloseReason::Gap, CloseReason::NotPublished, CloseReason::SubscriptionLost];

/// A session, and the test's knowledge of it.
struct Run {
    rng: Rng,
    stage: Stage,
    is_open: bool,
    closing: Option<CloseReason>,
    /// The same before the step.
    closing_before: Option<CloseReason>,
    ended: Option<Action>,
    is_held: bool,
    /// Frames of publications that the session took; pongs that its client waits for.
    publications: VecDeque<Vec<u8>>,
    pongs: VecDeque<Vec<u8>>,
    /// What was sent and not checked yet; whether it had the 101 and the close frame.
    wire: Vec<u8>,
    has_head: bool,
    has_close: bool,
    /// The client's bytes that are on their way, and the messages in them.
    coming: VecDeque<u8>,
    expected: VecDeque<(&'static str, Vec<u8>)>,
    /// Whether something is coming behind which nothing is published.
    is_last_sent: bool,
    unanswered: usize,
    count: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let (config, encoding) = match rng.u8(..5) {
            0 => (plain(), Encoding::Plain),
            1 => (EndpointConfig { binary: BinaryPolicy::Close, ..plain() }, Encoding::Plain),
            2 => (plain(), SSE),
            3 => (EndpointConfig { publish: rng.u8(..4) > 0, ..EndpointConfig::default() }, LUA),
            _ => (EndpointConfig::default(), LUA),
        };
        let config = EndpointConfig {
            max_queue_bytes: rng.usize(200..20_000),
            max_unpublished_bytes: rng.usize(1..500),
            idle_timeout: Duration::from_secs(rng.u64(0..40)),
            ..config
        };
        let mut stage = Stage::subscribing(config, encoding);
        stage.socket.room = HEAD.len() + rng.usize(..500);
        Self {
            rng,
            stage,
            is_open: false,
            closing: None,
            closing_before: None,
            ended: None,
            is_held: false,
            publications: VecDeque::new(),
            pongs: VecDeque::new(),
            wire: Vec::new(),
            has_head: false,
            has_close: false,
            coming: VecDeque::new(),
            expected: VecDeque::new(),
            is_last_sent: false,
            unanswered: 0,
            count: 0,
        }
    }

    /// Carries out what the session asks, as its worker does.
    fn apply(&mut self, action: Action) {
        match action {
            Action::Stay | Action::ReadAgain => {}
            Action::Subscribe => panic!("it has its entry in the hub"),
            Action::Recover => {
                let recovered = self.stage.session.on_recovered(b"", &mut self.stage.socket, self.stage.now);
                self.apply(recovered);
            }
            Action::Answer => panic!("its client does not poll"),
            Action::Upgrade => {
                assert!(!self.is_open, "a second 101");
                self.is_open = true;
                let opened = self.stage.session.open(HEAD, &mut self.stage.socket, self.stage.now);
                self.apply(opened);
            }
            Action::Refuse(denial) => {
                assert!(!self.is_open && matches!(denial, Denial::TimedOut | Denial::NotAllowed));
                self.ended = Some(action);
            }
            Action::Close(reason) => {
                assert!(self.is_open && self.closing.is_none(), "closed for {:?} and {reason:?}", self.closing);
                self.closing = Some(reason);
                assert_eq!(self.stage.session.unsubscribe().count(), 1);
            }
            Action::End(reason) => {
                assert!(self.closing.is_none_or(|closing| closing == reason), "{:?}, {reason:?}", self.closing);
                self.ended = Some(action);
            }
        }
    }

    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..=4 => {
                let action = self.stage.session.on_subscribed(SUBSCRIBER);
                self.apply(action);
            }
            5..=24 => self.publish(),
            25..=44 => self.client_sends(),
            45..=59 => self.read(),
            60..=74 => self.take(),
            75..=84 => self.answer(),
            85..=94 => self.wait(),
            95..=97 => self.moves(),
            98 => self.hold(),
            _ => self.rarely(),
        }
        self.check();
    }

    fn publish(&mut self) {
        let mut batch = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            self.count += 1;
            let line_end = if self.rng.u8(..3) == 0 { "\r\n\n" } else { "" };
            let payload = format!("{}{line_end}{}", self.count, "x".repeat(self.rng.usize(..300)));
            let frame = encoded(self.stage.session.encoding, payload.as_bytes());
            batch.extend_from_slice(&frame);
            // A session begins when its channels are ready.
            if self.is_open && self.closing.is_none() {
                self.publications.push_back(frame);
            }
        }
        let (session, socket) = (&mut self.stage.session, &mut self.stage.socket);
        let action = session.deliver(&mut Batch::new(&batch), socket, self.stage.now);
        self.apply(action);
    }

    fn client_sends(&mut self) {
        if self.is_last_sent || !self.is_open {
            return;
        }
        if self.stage.session.encoding.is_one_way() {
            // Whatever it is, it is ignored.
            return self.coming.extend(frame(TEXT, b"ignored"));
        }
        self.count += 1;
        let payload = format!("{}{}", self.count, "y".repeat(self.rng.usize(..200))).into_bytes();
        let config = self.stage.session.endpoint.config.clone();
        let ping = format!("{}", self.count).into_bytes();
        match self.rng.u8(..60) {
            0..=19 => {
                self.coming.extend(frame(TEXT, &payload));
                self.is_last_sent = !config.publish;
                self.expected.push_back(("text", payload));
            }
            20..=34 => {
                // In fragments, with a ping between.
                let (begin, end) = payload.split_at(self.rng.usize(..payload.len()));
                self.coming.extend(frame(TEXT & 0x7f, begin));
                self.coming.extend(frame(PING, &ping));
                self.coming.extend(frame(0x80, end));
                self.pongs.push_back(ping);
                self.is_last_sent = !config.publish;
                self.expected.push_back(("text", payload));
            }
            35..=44 => {
                self.coming.extend(frame(BINARY, &payload));
                if self.stage.session.encoding.ignores_binary() {
                    return;
                }
                self.is_last_sent = !config.publish || config.binary == BinaryPolicy::Close;
                self.expected.push_back(("binary", payload));
            }
            45..=54 => {
                self.coming.extend(frame(PING, &ping));
                self.pongs.push_back(ping);
            }
            55..=57 => self.coming.extend(frame(PONG, b"")),
            58 => {
                self.coming.extend(frame(CLOSE, &1000_u16.to_be_bytes()));
                self.is_last_sent = true;
            }
            _ => {
                self.coming.extend([0xff; 20]);
                self.is_last_sent = true;
            }
        }
    }

    /// A part of the client's bytes arrives, and is read as a worker reads.
    fn read(&mut self) {
        let count = self.rng.usize(..=self.coming.len());
        let arrived: Vec<u8> = self.coming.drain(..count).collect();
        self.stage.socket.inbound.extend(arrived);
        if !self.is_open {
            return;
        }
        if !self.is_held && self.stage.session.may_end_pause(self.stage.outbox.allowance, self.stage.now) {
            let resumed = self.stage.end_pause();
            self.apply(resumed);
            if resumed != Action::Stay {
                return;
            }
        }
        let action = self.stage.read(b"");
        self.apply(action);
    }

    /// The client takes some of the sent bytes. The reactor may report the room later.
    fn take(&mut self) {
        let room = self.rng.usize(..5);
        self.stage.socket.room += self.rng.usize(..=10_usize.pow(u32::try_from(room).unwrap()));
        if self.stage.session.has_unsent() && self.rng.bool() {
            let action = self.stage.session.on_writable(&mut self.stage.socket, self.stage.now);
            self.apply(action);
        }
    }

    /// The broker takes some messages.
    fn answer(&mut self) {
        self.stage.outbox.allowance = self.rng.usize(..1_000);
        for _ in 0..self.rng.usize(..4).min(self.unanswered) {
            self.unanswered -= 1;
            let (cost, allowance) = (self.stage.outbox.cost, self.stage.outbox.allowance);
            let action = self.stage.session.on_published(cost, allowance, self.stage.now);
            self.apply(action);
        }
        self.is_held = false;
    }

    fn wait(&mut self) {
        let decade = self.rng.u32(1..5);
        let time = self.rng.u64(..10_u64.pow(decade));
        let action = self.stage.pass(time);
        self.apply(action);
    }

    /// Moves the session to another process.
    fn moves(&mut self) {
        let Some(snapshot) = self.stage.session.snapshot(self.stage.now) else { return };
        let there = self.rng.u64(1_000_000..2_000_000);
        let mut session = Session::adopt(snapshot, self.stage.session.endpoint.clone(), there).unwrap();
        (0..self.unanswered).for_each(|_| session.adopt_message(self.stage.outbox.cost));
        assert_eq!(session.begin() == Action::Subscribe, self.closing.is_none());
        if let Some(subscription) = session.next_to_join() {
            subscription.on_joined(SUBSCRIBER, Channel::from_static(super::stage::CHANNEL), self.rng.bool());
        }
        assert_eq!(session.on_joined(), Action::Stay);
        (self.stage.session, self.stage.now, self.is_held) = (session, there, false);
    }

    fn hold(&mut self) {
        if self.stage.session.is_open() {
            self.stage.session.pause();
            self.is_held = true;
        }
    }

    fn rarely(&mut self) {
        match self.rng.u8(..10) {
            0 => {
                let action = self.stage.session.on_refused(&mut self.stage.socket, self.stage.now);
                self.apply(action);
            }
            1 => {
                let action = self.stage.close(REASONS[self.rng.usize(..REASONS.len())]);
                self.apply(action);
            }
            2 => self.stage.socket.is_broken = true,
            3 => self.stage.socket.is_peer_finished = true,
            _ => {
                let time = self.rng.u64(..100_000);
                self.stage.now += time;
                self.stage.session.quiesced(time);
                let action = self.stage.pass(0);
                self.apply(action);
            }
        }
    }

    /// What holds after every step.
    fn check(&mut self) {
        let sent = self.stage.sent();
        assert!(self.is_open || sent.is_empty(), "something is sent before the 101");
        self.wire.extend(sent);
        self.check_wire();
        let published = std::mem::take(&mut self.stage.outbox.messages);
        self.unanswered += published.len();
        for message in published {
            let closing = self.closing_before;
            assert!(closing.is_none_or(|reason| reason == CloseReason::GoingAway), "published while it closes");
            assert_eq!(Some(message), self.expected.pop_front(), "in order, once");
        }
        self.closing_before = self.closing;
        if self.ended.is_none() {
            assert!(self.stage.session.next_due() > self.stage.now, "a timer is in the past");
            assert_eq!(self.stage.session.is_closing(), self.closing.is_some());
            assert!(self.closing.is_some() || self.stage.session.backlog() <= 20_000);
        }
    }

    fn check_wire(&mut self) {
        if !self.has_head && !self.wire.is_empty() {
            assert!(self.wire.starts_with(HEAD));
            self.wire.drain(..HEAD.len());
            self.has_head = true;
        }
        while let Some(len) = self.stage.session.encoding.unit_len(&self.wire).filter(|len| *len <= self.wire.len()) {
            assert!(!self.has_close, "a frame behind the close frame");
            let unit: Vec<u8> = self.wire.drain(..len).collect();
            match unit[0] {
                TEXT | b'd' => assert_eq!(Some(unit), self.publications.pop_front(), "in order, once"),
                PING => assert_eq!(unit, [PING, 0]),
                b':' if unit == SSE.ping() => {}
                b':' => {
                    assert_eq!(unit, close_comment(self.closing.expect("it closes")));
                    self.has_close = true;
                }
                PONG => assert_eq!(Some(&unit[2..]), self.pongs.pop_front().as_deref()),
                CLOSE => {
                    let reason = self.closing.expect("it closes");
                    let code = reason.row().code.map(u16::to_be_bytes);
                    assert!(code.is_none_or(|code| unit[2..].starts_with(&code)), "{reason:?}: {unit:?}");
                    self.has_close = true;
                }
                other => panic!("an unknown frame: {other:#x}"),
            }
        }
        assert!(!self.has_close || self.wire.is_empty(), "bytes behind the close frame");
    }

    /// The client takes and sends everything, and the broker answers for it: what can arrive has arrived.
    fn settle(&mut self) {
        for _ in 0..2_000 {
            if self.ended.is_some() {
                return;
            }
            self.stage.socket.room = 1 << 30;
            let arrived: Vec<u8> = self.coming.drain(..).collect();
            self.stage.socket.inbound.extend(arrived);
            self.take();
            self.answer();
            self.stage.outbox.allowance = 1_000;
            self.check();
            if self.ended.is_none() {
                self.read();
                self.check();
            }
        }
        assert!(self.stage.socket.inbound.is_empty(), "it is read to its end");
    }

    fn finish(&mut self) {
        let action = self.stage.session.on_subscribed(SUBSCRIBER);
        self.apply(action);
        self.settle();
        if self.ended.is_none() && self.closing.is_none() && !self.stage.socket.is_broken {
            assert!(self.expected.is_empty() && self.publications.is_empty() && self.pongs.is_empty());
            assert!(self.has_head && self.wire.is_empty());
        }
        if self.ended.is_none() {
            let action = self.stage.close(CloseReason::GoingAway);
            self.apply(action);
        }
        // Whatever the client does, two seconds are enough.
        for _ in 0..4 {
            if self.ended.is_none() {
                let action = self.stage.pass(1_000);
                self.apply(action);
                self.check();
            }
        }
        assert!(self.ended.is_some(), "a session that closes ends");
    }
}

/// Names the seed of a run that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this run has the seed {0}: SEED={0}", self.0);
        }
    }
}

#[test]
fn random_interactions_keep_every_promise() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..RUNS,
    };
    let mut ends = std::collections::BTreeMap::new();
    for seed in seeds.clone() {
        let _named = Named(seed);
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            if run.ended.is_none() {
                run.step();
            }
        }
        run.finish();
        *ends.entry(format!("{:?}", run.ended.unwrap())).or_insert(0) += 1;
    }
    // The walk is worth something only while it comes everywhere.
    let is_whole = seeds.end - seeds.start == RUNS;
    assert!(!is_whole || ends.len() >= 12, "{ends:?}");
}
