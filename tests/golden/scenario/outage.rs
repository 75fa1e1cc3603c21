//! Redis stalls, loses connections, goes away and comes back, under and before live websockets.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, interval, timeout};

use super::{Stack, join, path, redis_channel};
use crate::support::client::{Client, Socket, upgrade_request};
use crate::support::frame::{PONG, TEXT};
use crate::support::{SOON, holds_within};

/// Pings are answered within, whatever Redis does.
const PONG_MAX: Duration = Duration::from_millis(800);
/// Messages flow again within, counted from the end of the outage.
const RECOVERY: Duration = Duration::from_secs(5);

pub(super) async fn stall_at_connect(stack: &Stack) {
    let stall = Duration::from_secs(2);
    pause(stack, stall).await;
    let recovered = Instant::now() + stall + RECOVERY;
    if let Some(client) = upgrade_or_refusal(stack).await {
        let mut witness = [Witness::new(client)];
        flow_again(stack, "outage", &mut witness, recovered).await;
    }
}

pub(super) async fn stall_at_publish(stack: &Stack) {
    let stall = Duration::from_millis(2600);
    let mut witness = [Witness::new(join(stack, "outage").await)];
    pause(stack, stall).await;
    let recovered = Instant::now() + stall + RECOVERY;
    let client = &witness[0].client;
    client.send_text("m1").await;
    client.send_ping(b"1").await;
    client.send_text("m2").await;
    client.send_ping(b"2").await;
    witness[0].await_pong(b"1", PONG_MAX).await;
    witness[0].await_pong(b"2", PONG_MAX).await;
    flow_again(stack, "outage", &mut witness, recovered).await;
    let own: Vec<_> = witness[0].texts.iter().filter(|text| text.starts_with('m')).collect();
    assert!(own.is_sorted(), "own texts out of order: {own:?}");
}

pub(super) async fn subscriber_killed(stack: &Stack) {
    let mut witnesses = two_witnesses(stack).await;
    stack.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let recovered = Instant::now() + RECOVERY;
    for witness in &mut witnesses {
        witness.ping(b"killed").await;
    }
    flow_again(stack, "outage", &mut witnesses, recovered).await;
    witnesses[0].client.send_text("own").await;
    for witness in &mut witnesses {
        witness.await_text("ownoutage").await;
        witness.ping(b"again").await;
        witness.assert_one_copy_each();
    }
}

pub(super) async fn redis_restarted(mut stack: Stack) {
    let mut witnesses = two_witnesses(&stack).await;
    stack.redis.kill();
    // Down for about two seconds.
    let mut ticks = interval(Duration::from_millis(500));
    for round in 0..4 {
        ticks.tick().await;
        for witness in &mut witnesses {
            witness.ping(format!("down {round}").as_bytes()).await;
        }
        if round == 1 {
            witnesses[0].client.send_text("meanwhile").await;
        }
    }
    stack.redis.start_again().await;
    let recovered = Instant::now() + RECOVERY;
    flow_again(&stack, "outage", &mut witnesses, recovered).await;
    for witness in &mut witnesses {
        witness.ping(b"up").await;
    }
}

pub(super) async fn redis_down_at_connect(mut stack: Stack) {
    stack.redis.kill();
    let deaf = upgrade_or_refusal(&stack).await;
    stack.redis.start_again().await;
    let recovered = Instant::now() + RECOVERY;
    let accepted = async || match request(&stack).await {
        Some(client) => client.head().status == 101,
        None => false,
    };
    let accepting = timeout(RECOVERY, holds_within(RECOVERY, accepted)).await;
    assert_eq!(accepting, Ok(true), "no new connection is accepted {RECOVERY:?} after Redis is back");
    if let Some(client) = deaf {
        flow_again(&stack, "outage", &mut [Witness::new(client)], recovered).await;
    }
}

async fn pause(stack: &Stack, time: Duration) {
    stack.redis.command(&["CLIENT", "PAUSE", &time.as_millis().to_string(), "ALL"]).await;
}

/// A refusal of the allowed kind is `None`, as is no reply in 6 s; an upgrade is to be tested.
async fn upgrade_or_refusal(stack: &Stack) -> Option<Client> {
    let client = timeout(Duration::from_secs(6), request(stack)).await.ok()??;
    match client.head().status {
        101 => Some(client),
        502..=504 => None,
        _ => panic!("refused with {:?}", client.head()),
    }
}

async fn request(stack: &Stack) -> Option<Client> {
    let socket = Socket::connect(&stack.target()).await.unwrap();
    Client::request(socket, &upgrade_request(&path("outage"))).await
}

async fn two_witnesses(stack: &Stack) -> [Witness; 2] {
    [Witness::new(join(stack, "outage").await), Witness::new(join(stack, "outage").await)]
}

/// Publishes until every witness has got something, then checks that all is there once.
async fn flow_again(stack: &Stack, name: &str, witnesses: &mut [Witness], deadline: Instant) {
    let channel = redis_channel(name);
    let mut n = 0;
    while !witnesses.iter().all(|witness| witness.texts.iter().any(|text| text.starts_with('t'))) {
        assert!(Instant::now() < deadline, "no message since the end of the outage");
        stack.redis.publish(&channel, format!("t{n:03}").as_bytes()).await;
        n += 1;
        for witness in &mut *witnesses {
            witness.collect(Duration::from_millis(50)).await;
        }
    }
    stack.redis.publish(&channel, b"last").await;
    for witness in witnesses {
        witness.await_text(&format!("last{name}")).await;
        witness.assert_one_copy_each();
        let tests: Vec<_> = witness.texts.iter().filter(|text| text.starts_with('t')).collect();
        assert!(tests.is_sorted(), "out of order: {tests:?}");
    }
}

/// A client that keeps all it gets.
struct Witness {
    client: Client,
    texts: Vec<String>,
    pongs: Vec<Bytes>,
}

impl Witness {
    fn new(client: Client) -> Witness {
        Witness { client, texts: Vec::new(), pongs: Vec::new() }
    }

    /// Takes what comes until nothing does for that long.
    async fn collect(&mut self, quiet: Duration) {
        while self.take(quiet).await {}
        assert_eq!(self.client.end(), None, "the websocket has ended");
    }

    async fn take(&mut self, deadline: Duration) -> bool {
        let Some(frame) = self.client.next_but_pings(deadline).await else {
            return false;
        };
        match frame.opcode {
            TEXT => self.texts.push(String::from_utf8(frame.payload.to_vec()).unwrap()),
            PONG => self.pongs.push(frame.payload),
            _ => panic!("the websocket is closed with {frame:?}"),
        }
        true
    }

    async fn ping(&mut self, payload: &[u8]) {
        self.client.send_ping(payload).await;
        self.await_pong(payload, PONG_MAX).await;
    }

    async fn await_pong(&mut self, payload: &[u8], deadline: Duration) {
        let end = Instant::now() + deadline;
        while !self.pongs.iter().any(|pong| pong == payload) {
            let got = self.take(end.saturating_duration_since(Instant::now())).await;
            assert!(got, "no pong within {deadline:?}, end: {:?}", self.client.end());
        }
    }

    async fn await_text(&mut self, text: &str) {
        while !self.texts.iter().any(|seen| seen == text) {
            assert!(self.take(SOON).await, "no {text:?}, end: {:?}", self.client.end());
        }
        // A second copy would follow at once.
        self.collect(Duration::from_millis(250)).await;
    }

    fn assert_one_copy_each(&self) {
        for text in &self.texts {
            let copies = self.texts.iter().filter(|seen| *seen == text).count();
            assert_eq!(copies, 1, "copies of {text:?}: {:?}", self.texts);
        }
    }
}
