//! A worker's part in a hand-over: it comes to rest, is put into words, and goes on or leaves; or it
//! takes over what another was, and goes on from there.
//!
//! While it rests, nobody is read, nothing is published, and no timer runs: a session is what it was.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::snapshot::{Adopted, Collected};
use super::state::Worker;
use crate::broker::Marking;
use crate::broker::redis::Seal;
use crate::channel::Channel;
use crate::clock;

/// How long handshakes that have begun are waited for before a worker rests. Chosen: nginx sends
/// whole requests, so they take milliseconds, unless somebody holds one back.
const HANDSHAKES: Duration = Duration::from_secs(2);

/// How long Redis may take to answer for texts, and the mark to come: all the time nobody is served.
const STANDSTILL: Duration = Duration::from_secs(2);

/// How long all channels may take to be subscribed.
const SUBSCRIBING: Duration = Duration::from_secs(20);

/// How long links may take to be made.
const LINKS: Duration = Duration::from_secs(10);

/// How long a link that is being made anew is waited for, and then the mark's subscription.
const MARKING: Duration = Duration::from_secs(5);

/// Between two looks at something that takes milliseconds.
const LOOK: Duration = Duration::from_millis(1);

/// What came of something that was asked.
pub(crate) type Answer = oneshot::Sender<Result<(), String>>;

/// Why nobody listened for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There was no process, as an operator wanted.
    Restart,
    /// The new process listens to another broker.
    OtherBroker,
}

/// What a hand-over asks of a worker, one after the other.
#[derive(Debug)]
pub(crate) enum Ask {
    /// To have its links to the broker.
    Connect(Answer),
    /// Why it does not have them.
    LinkFault(oneshot::Sender<Option<String>>),
    /// The channels that its sessions listen to.
    Channels(oneshot::Sender<Vec<Channel>>),
    /// To subscribe channels whose sessions are to come.
    Reserve(Vec<Channel>, Answer),
    /// To let its streams stop at a mark.
    SetMark(String, Option<Seal>, Answer),
    /// To finish handshakes: no connections come any more.
    Settle(Answer),
    /// To rest, when the broker has answered for the texts that it has.
    Rest(Answer),
    PublishMark,
    /// To say when its streams have come to the mark.
    AwaitMark(Answer),
    /// To put itself into words; the sockets stay open for as long as it rests.
    Collect(oneshot::Sender<Collected>),
    /// To be what another was.
    Adopt(Adopted, Answer),
    /// To know that nobody has listened for so long for those that it has adopted.
    Lose(Duration, Missing),
    /// To go on.
    GoOn(Answer),
    /// How it stands.
    State(oneshot::Sender<State>),
    /// To end without a word to anybody.
    Leave,
}

/// How a worker stands.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Connections that are being answered.
    pub(crate) handshakes: usize,
    /// Why it is not ready, if it is not.
    pub(crate) fault: Option<String>,
}

impl Worker {
    /// Does what it is asked; returns when it shall end.
    pub(super) async fn obey(self: &Rc<Self>, asks: &mut mpsc::Receiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            match ask {
                // Who asked and went away needs no answer, here and below.
                Ask::Connect(tell) => {
                    self.holds(LINKS, || self.broker.link_fault().is_none()).await;
                    drop(tell.send(self.broker.link_fault().map_or(Ok(()), Err)));
                }
                Ask::LinkFault(tell) => drop(tell.send(self.broker.link_fault())),
                Ask::Channels(tell) => drop(tell.send(self.core.borrow().hub.channels_in_use())),
                Ask::Reserve(channels, tell) => drop(tell.send(self.reserve_all(channels).await)),
                Ask::SetMark(name, seal, tell) => {
                    let usable = || self.broker.link_fault().is_none();
                    let done = if self.holds(MARKING, usable).await {
                        self.broker.set_mark(&name, seal);
                        self.marks(MARKING, Marking::Set).await
                    } else {
                        Err(self.broker.link_fault().unwrap_or_default())
                    };
                    drop(tell.send(done));
                }
                Ask::Settle(tell) => {
                    self.holds(HANDSHAKES, || self.handshakes.get() == 0).await;
                    drop(tell.send(Ok(())));
                }
                Ask::Rest(tell) => {
                    self.rest();
                    let answered = || !self.core.borrow().outbox.has_in_flight();
                    let done = self.holds(STANDSTILL, answered).await;
                    let silent = "the broker does not answer for messages that it has: try again later";
                    drop(tell.send(if done { self.tells_no_gap() } else { Err(silent.to_owned()) }));
                }
                Ask::PublishMark => self.broker.publish_mark(),
                Ask::AwaitMark(tell) => {
                    let done = self.marks(STANDSTILL, Marking::Reached).await.and_then(|()| self.tells_no_gap());
                    drop(tell.send(done));
                }
                Ask::Collect(tell) => {
                    let now = self.now();
                    let mut core = self.core.borrow_mut();
                    core.hub.stop_pacing();
                    core.flush(now);
                    // Nothing may be sent any more that the other does not know of.
                    self.is_frozen.set(true);
                    let away = self.broker.away_for();
                    drop(tell.send(Collected { away, ..core.collect(now) }));
                }
                Ask::Adopt(adopted, tell) => drop(tell.send(self.adopt(adopted))),
                Ask::Lose(time, why) => {
                    let now = Instant::now();
                    self.was_restarted.set(why == Missing::Restart);
                    self.core.borrow_mut().miss_all();
                    self.broker.lose_since(now.checked_sub(time).unwrap_or(now));
                }
                Ask::GoOn(tell) => {
                    self.go_on();
                    drop(tell.send(Ok(())));
                }
                Ask::State(tell) => {
                    drop(tell.send(State { handshakes: self.handshakes.get(), fault: self.fault() }));
                }
                Ask::Leave => return,
            }
        }
        std::future::pending().await
    }

    /// Only the process that knows of a gap can tell of it.
    fn tells_no_gap(&self) -> Result<(), String> {
        if self.is_closing_gapped.get() {
            return Err("clients are being told of a gap: try again later".to_owned());
        }
        Ok(())
    }

    /// Whether `condition` holds within `limit`.
    async fn holds(&self, limit: Duration, condition: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !condition() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    async fn marks(&self, limit: Duration, expected: Marking) -> Result<(), String> {
        let is_decided = || self.broker.marking() >= expected || self.broker.marking() == Marking::Lost;
        self.holds(limit, is_decided).await;
        match self.broker.marking() {
            marking if marking >= expected => Ok(()),
            Marking::Lost => {
                Err("a link to Redis or some of its subscriptions were lost meanwhile, or its user may not \
                                  use the channels webws:probe:* (ACL: &webws:probe:*): try again later"
                    .to_owned())
            }
            _ => Err(format!("Redis did not come to the mark within {limit:?}")),
        }
    }

    async fn reserve_all(&self, channels: Vec<Channel>) -> Result<(), String> {
        let mut confirmations = Vec::new();
        for channel in channels {
            confirmations.extend(self.core.borrow_mut().reserve(&channel));
        }
        self.subscribe_wanted();
        let deadline = Instant::now() + SUBSCRIBING;
        for confirmation in confirmations {
            match clock::timeout_at(deadline, confirmation).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(refused))) => return Err(refused.to_string()),
                Ok(Err(_)) | Err(_) => {
                    let why = self.broker.fault().unwrap_or_else(|| "no confirmation came".to_owned());
                    return Err(format!("not all channels could be subscribed within {SUBSCRIBING:?}: {why}"));
                }
            }
        }
        Ok(())
    }

    fn adopt(&self, adopted: Adopted) -> Result<(), String> {
        let now = self.now();
        self.rests_since.set(now);
        let adopted = self.core.borrow_mut().adopt(adopted, &self.endpoints, now);
        self.subscribe_wanted();
        adopted.map_err(|error| error.to_string())
    }

    fn rest(&self) {
        if !self.is_resting.replace(true) {
            self.rests_since.set(self.now());
        }
    }

    /// Resolves when it does not rest.
    pub(crate) async fn is_up(&self) {
        while self.is_resting.get() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn go_on(&self) {
        let now = self.now();
        let rested = if self.is_resting.get() { now.saturating_sub(self.rests_since.get()) } else { 0 };
        let keys = {
            let mut core = self.core.borrow_mut();
            core.hub.set_pace(self.config.pace);
            core.free_reserved(now);
            core.outbox.rested(rested);
            core.all_keys()
        };
        self.is_resting.set(false);
        self.is_frozen.set(false);
        for key in keys {
            self.guarded(key, now, |core| core.go_on(key, rested, now));
        }
        self.broker.release();
        self.after_reading();
        self.flush();
    }
}
