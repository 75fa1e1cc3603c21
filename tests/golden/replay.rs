//! Drives one plain case: its request, its steps, the settling, and the release of the subscription.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::case::{Case, Data, Kind, Outcome, Step};
use super::judge::{Observed, judge};
use super::{Route, Stack};
use crate::support::client::{End, Socket};
use crate::support::frame::{Frame, Head, hex, take_frame, take_head};
use crate::support::redis::Spy;
use crate::support::{SOON, holds_within, lasting};

/// `format.expect`: after the steps, for the outcome to come true.
const SETTLE: Duration = Duration::from_secs(3);
/// `format.expect`: with nothing more to come.
const QUIET: Duration = Duration::from_millis(250);
/// `numsub_zero_within_s` where a case does not say.
const RELEASE_S: f64 = 3.0;

/// # Errors
/// What was expected and what was seen, on lines of their own.
pub(super) async fn replay(case: &'static Case, stack: &Stack, route: Route) -> Result<(), String> {
    let Kind::Plain { request, channel, steps, no_quiet } = &case.kind else {
        panic!("{case} is no plain case");
    };
    let channel = channel.as_ref().map(|name| [b"chat:", &name[..]].concat());
    let spy = match &channel {
        Some(channel) => Some(stack.redis.spy(channel).await),
        None => None,
    };
    let mut run = Run { stack, channel, spy, connection: Connection::open(stack, request).await };
    run.connection.await_head().await;
    if run.connection.seen().head.is_some_and(|head| head.status == 101) {
        for step in steps {
            run.step(step).await;
        }
    }
    let proxied = case.expect.proxy_any_of.iter().filter(|_| route != Route::Direct);
    let outcomes: Vec<&Outcome> = case.expect.any_of.iter().chain(proxied).collect();
    let quiet = if *no_quiet { Duration::ZERO } else { QUIET };
    let outcome = run.settle(&outcomes, quiet).await;
    // What is still open would disturb the next case on this channel.
    run.connection.leave(Socket::reset).await;
    run.released(outcome?).await
}

struct Run<'a> {
    stack: &'a Stack,
    /// The Redis channel, with its prefix.
    channel: Option<Vec<u8>>,
    spy: Option<Spy>,
    connection: Connection,
}

impl Run<'_> {
    async fn step(&mut self, step: &Step) {
        match step {
            Step::Send { data } => self.connection.send(data).await,
            Step::Sleep { s } => lasting(Duration::from_secs_f64(*s)).await,
            Step::Publish { data, raw_channel } => {
                let raw = raw_channel.as_ref().map(String::as_bytes);
                let channel = raw.or(self.channel.as_deref()).expect("a channel to publish on");
                self.stack.redis.publish(channel, data).await;
            }
            // Going on anyway is right: the outcome tells.
            Step::AwaitSubscribed {} => {
                holds_within(Duration::from_secs(2), async || self.is_subscribed().await).await;
            }
            Step::AwaitFrames { n, .. } => {
                let enough = async || self.connection.seen().frames.len() >= *n;
                holds_within(Duration::from_secs(3), enough).await;
            }
            Step::ClientFin {} => self.connection.fin(),
            Step::ClientRst {} => self.connection.leave(Socket::reset).await,
            Step::ClientClose {} => self.connection.leave(drop).await,
        }
    }

    async fn is_subscribed(&self) -> bool {
        match &self.channel {
            Some(channel) => self.stack.redis.numsub(channel).await > 0,
            None => false,
        }
    }

    async fn observe(&self) -> Observed {
        let subscribed = self.is_subscribed().await;
        let published = self.spy.iter().flat_map(Spy::seen).map(Vec::from).collect();
        self.connection.observed(published, subscribed)
    }

    /// Waits for one of `outcomes` to hold, and to hold still after `quiet`.
    async fn settle<'o>(&self, outcomes: &[&'o Outcome], quiet: Duration) -> Result<&'o Outcome, String> {
        let has_settled = async || {
            if self.first_that_holds(outcomes).await.is_err() {
                return false;
            }
            // As long as the rules watch for more.
            lasting(quiet).await;
            self.first_that_holds(outcomes).await.is_ok()
        };
        holds_within(SETTLE, has_settled).await;
        self.first_that_holds(outcomes).await
    }

    async fn first_that_holds<'o>(&self, outcomes: &[&'o Outcome]) -> Result<&'o Outcome, String> {
        let seen = self.observe().await;
        let mut report = String::new();
        for outcome in outcomes {
            match judge(outcome, &seen) {
                Ok(()) => return Ok(outcome),
                Err(expected) => report += &format!("  expected: {expected}\n"),
            }
        }
        Err(report + &describe(&seen))
    }

    /// After the end the subscription must go in time.
    async fn released(&self, outcome: &Outcome) -> Result<(), String> {
        let limit = Duration::from_secs_f64(outcome.numsub_zero_within_s.unwrap_or(RELEASE_S));
        let ends = outcome.subscription_ends != Some(false);
        if !ends || holds_within(limit, async || !self.is_subscribed().await).await {
            return Ok(());
        }
        Err(format!("  expected: NUMSUB 0 within {limit:?} of the end\n  seen: still subscribed"))
    }
}

/// What was seen, for people.
fn describe(seen: &Observed) -> String {
    let head = seen.head.as_ref().map(|head| (&head.status_line, &head.headers));
    let published: Vec<_> = seen.published.iter().map(|payload| hex(payload)).collect();
    format!(
        "  seen: {head:?}\n        frames {:.2?}\n        end {:?}, published {published:?}, subscribed {}",
        seen.frames, seen.end, seen.subscribed
    )
}

/// One client whose reader runs beside the steps and notes when everything came.
struct Connection {
    /// `None` once the client has left.
    socket: Option<Arc<Socket>>,
    reader: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
    connected: Instant,
    last_sent: Instant,
}

#[derive(Clone, Default)]
struct Seen {
    head: Option<Head>,
    frames: Vec<(Instant, Frame)>,
    fault: Option<String>,
    end: Option<(End, Instant)>,
}

impl Connection {
    async fn open(stack: &Stack, request: &Data) -> Connection {
        let socket = Arc::new(Socket::connect(&stack.target()).await.unwrap());
        let connected = Instant::now();
        let seen = Arc::default();
        let reader = tokio::spawn(read(Arc::clone(&socket), Arc::clone(&seen)));
        let mut connection = Connection { socket: Some(socket), reader, seen, connected, last_sent: connected };
        connection.send(request).await;
        connection
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    async fn await_head(&self) {
        let replied = async || {
            let seen = self.seen();
            seen.head.is_some() || seen.end.is_some()
        };
        holds_within(SOON, replied).await;
    }

    /// Writes in one go. The server may have ended already: the outcome tells.
    async fn send(&mut self, data: &[u8]) {
        if let Some(socket) = &self.socket {
            socket.write(data).await.ok();
            self.last_sent = Instant::now();
        }
    }

    fn fin(&mut self) {
        if let Some(socket) = &self.socket {
            socket.fin();
            self.last_sent = Instant::now();
        }
    }

    /// Takes the socket away from the reader and ends it by `how`.
    async fn leave(&mut self, how: fn(Socket)) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        self.reader.abort();
        (&mut self.reader).await.ok();
        how(Arc::into_inner(socket).expect("only the reader shared it"));
    }

    fn observed(&self, published: Vec<Vec<u8>>, subscribed: bool) -> Observed {
        let Seen { head, frames, fault, end } = self.seen();
        let since = |instant: Instant| (instant - self.connected).as_secs_f64();
        Observed {
            head,
            frames: frames.into_iter().map(|(at, frame)| (since(at), frame)).collect(),
            fault,
            end: end.map(|(end, at)| (end, at.saturating_duration_since(self.last_sent).as_secs_f64())),
            published,
            subscribed,
        }
    }
}

async fn read(socket: Arc<Socket>, seen: Arc<Mutex<Seen>>) {
    let mut unread = BytesMut::new();
    loop {
        let read = socket.read(&mut unread).await;
        let now = Instant::now();
        let mut seen = seen.lock().unwrap();
        if seen.head.is_none() {
            seen.head = take_head(&mut unread);
        }
        // Behind a refusal comes its body.
        while seen.head.as_ref().is_some_and(|head| head.status == 101) && seen.fault.is_none() {
            match take_frame(&mut unread) {
                Ok(Some(frame)) => seen.frames.push((now, frame)),
                Ok(None) => break,
                Err(fault) => seen.fault = Some(fault),
            }
        }
        if let Err(end) = read {
            // Half a frame at the end is as bad as a wrong one.
            if seen.head.as_ref().is_some_and(|head| head.status == 101) && !unread.is_empty() {
                seen.fault.get_or_insert(format!("ended inside a frame: {}", hex(&unread)));
            }
            seen.end = Some((end, now));
            return;
        }
    }
}
