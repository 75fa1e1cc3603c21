//! The new process' side: prepares everything while the old one serves, takes the sessions, and serves when told to.
//!
//! When a step fails, this process reports the reason to the old one and ends; the old process resumes.
//! May not enter: how a worker adopts a session.

use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::deadlines::{LATE_SUBSCRIBING, LEAVING, LINKS, LONG_STEP, MARKER, STANDSTILL, STEP, SUBSCRIBING};
use super::fault_injection::{self, Point};
use super::protocol::{Hello, Line, ListenerSnapshot, Message, ProtocolError};
use super::workers::{answer, tell_all, tell_each};
use crate::broker::Seal;
use crate::broker::redis::Home;
use crate::channel::Channel;
use crate::os::descriptors;
use crate::protocol::hub::HistoriesSnapshot;
use crate::worker::{Adopted, Command, Mailbox, Missing};

/// The variable with the number of the descriptor of the socket to the old process.
pub(crate) const VARIABLE: &str = "WEBWS_HANDOVER";

/// The old process.
#[derive(Debug)]
pub(crate) struct Predecessor {
    line: Line,
    /// The marker's name.
    marker: String,
    seal: Option<Seal>,
    broker: String,
    pub(crate) control: Option<PathBuf>,
    pub(crate) version: String,
}

/// Tells the old process, if there is one, that this process cannot take over. For a program that fails before
/// [`crate::binary::run_service`].
pub fn refuse_hand_over(why: &str) {
    if let Ok(Some((predecessor, _))) = Predecessor::find(None) {
        predecessor.refuse(why);
    }
}

/// Whether the old process has been told why this process cannot take over: the old process logs the reason.
pub fn has_refused_hand_over() -> bool {
    IS_REFUSED.load(Ordering::Relaxed)
}

static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// What the new process needs before it has workers.
#[derive(Debug)]
pub(crate) struct Heritage {
    pub(crate) listeners: Vec<(ListenerSnapshot, OwnedFd)>,
    pub(crate) homes: Vec<Home>,
}

impl Predecessor {
    /// The old process and its heritage; `None` when this process was not started to take over.
    ///
    /// # Errors
    /// When the old process cannot be reached or understood.
    pub(crate) fn find(broker: Option<&str>) -> Result<Option<(Self, Heritage)>, ProtocolError> {
        // Empty is unset, as for every variable.
        let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else { return Ok(None) };
        let alien = |why: String| ProtocolError::Variable { value: text.display().to_string(), why };
        let number: Option<RawFd> = text.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| alien("the value is not a number".to_owned()))?;
        let line = Line::new(descriptors::inherited(number).map_err(|error| alien(error.to_string()))?);
        line.say(&Message::Hello(Hello::using(broker)), &[], STEP)?;
        let (message, sockets) = line.hear(STEP)?;
        let Message::Listeners { hello, listeners, broker, marker, seal, homes, control } = message else {
            return Err(out_of_turn());
        };
        hello.check()?;
        if listeners.len() != sockets.len() {
            return Err(ProtocolError::Nonsense("not every listener has a socket".to_owned()));
        }
        let listeners = listeners.into_iter().zip(sockets).collect();
        let control = control.map(PathBuf::from);
        Ok(Some((Self { line, marker, seal, broker, control, version: hello.version }, Heritage { listeners, homes })))
    }

    /// Tells the old process that this one cannot take over.
    pub(crate) fn refuse(&self, why: &str) {
        self.say_refusal(&Message::Refused { why: why.to_owned(), is_broker: false });
    }

    fn say_refusal(&self, refusal: &Message) {
        // If the old process is gone, this one logs the reason.
        if self.line.say(refusal, &[], STEP).is_ok() {
            IS_REFUSED.store(true, Ordering::Relaxed);
        }
    }

    /// Takes everything over into quiesced workers, and resumes them; returns the number of sessions. Blocks; not for
    /// async code.
    ///
    /// # Errors
    /// Why the hand-over failed. The old process resumes then, and this one must end.
    pub(crate) fn take(&self, workers: &[Mailbox], broker: &str) -> Result<usize, ProtocolError> {
        let taken = self.try_take(workers, broker);
        match &taken {
            Err(ProtocolError::Broker(why)) => {
                self.say_refusal(&Message::Refused { why: why.clone(), is_broker: true });
            }
            Err(error) => self.refuse(&error.to_string()),
            Ok(_) => {}
        }
        taken
    }

    /// Waits until the old process has ended.
    pub(crate) fn await_end(&self) {
        self.line.await_end(LEAVING);
    }

    fn try_take(&self, workers: &[Mailbox], broker: &str) -> Result<usize, ProtocolError> {
        // Two brokers share no streams, and so no marker: publications of the meantime may be missing or come twice.
        let shares_streams = broker == self.broker;
        let channels = self.hear_channels(workers, STEP)?;
        // Even without channels: a process without a broker must not replace one that has its broker.
        tell_all(workers, |tell| Command::Connect { within: LINKS, tell }).map_err(ProtocolError::Broker)?;
        reserve(workers, channels, SUBSCRIBING)?;
        if shares_streams {
            let set = |tell| Command::SetMarker { name: self.marker.clone(), seal: self.seal, within: MARKER, tell };
            tell_all(workers, set).map_err(ProtocolError::Refused)?;
        } else {
            tracing::warn!(
                before = self.broker,
                now = broker,
                "the broker changes from {} to {broker}: messages published during the hand-over may be missing or \
                 arrive twice",
                self.broker
            );
        }
        fault_injection::at(Point::Ready);
        self.line.say(&Message::Ready, &[], STEP)?;
        fault_injection::at(Point::AfterReady);
        let misses_since = Instant::now();
        reserve(workers, self.hear_channels(workers, LONG_STEP)?, LATE_SUBSCRIBING)?;
        self.line.say(&Message::Ready, &[], STEP)?;
        let (Message::Marked, _) = self.line.hear(STEP)? else { return Err(out_of_turn()) };
        if shares_streams {
            await_marker(workers)?;
        }
        let mut gathering = Gathering::new(workers);
        loop {
            let (message, sockets) = self.line.hear(STEP)?;
            let is_answered = matches!(message, Message::Sessions { .. });
            if !gathering.add(message, sockets)? {
                break;
            }
            if is_answered {
                fault_injection::at(Point::Sessions);
                self.line.say(&Message::Taken, &[], STEP)?;
            }
        }
        if shares_streams {
            await_marker(workers)?;
        }
        fault_injection::at(Point::Adopted);
        self.line.say(&Message::Adopted, &[], STEP)?;
        let (Message::Commit, _) = self.line.hear(STEP)? else { return Err(out_of_turn()) };
        fault_injection::at(Point::Commit);
        // From here on the old process does not resume.
        self.line.say(&Message::Serving, &[], STEP)?;
        if !shares_streams {
            lose(workers, gathering.away.max(misses_since.elapsed()), Missing::OtherBroker);
        }
        tell_all(workers, Command::Resume).map_err(ProtocolError::Refused)?;
        Ok(gathering.sessions)
    }

    /// Receives a list of channels, by worker; and histories before it, which a worker adopts at once.
    fn hear_channels(&self, workers: &[Mailbox], limit: Duration) -> Result<Vec<Vec<Channel>>, ProtocolError> {
        let lists: Vec<RefCell<Vec<Channel>>> = workers.iter().map(|_| RefCell::default()).collect();
        loop {
            match self.line.hear(limit)?.0 {
                Message::Channels { worker, names } => {
                    let names = names.into_iter().map(|name| Channel::from(name.into_vec()));
                    counterpart(&lists, worker)?.borrow_mut().extend(names);
                }
                Message::Histories { worker, part } => {
                    adopt_histories(counterpart(workers, worker)?, part)?;
                    self.line.say(&Message::Taken, &[], STEP)?;
                }
                Message::End => break,
                _ => return Err(out_of_turn()),
            }
        }
        Ok(lists.into_iter().map(RefCell::into_inner).collect())
    }
}

/// Subscribes each worker's channels.
fn reserve(workers: &[Mailbox], channels: Vec<Vec<Channel>>, within: Duration) -> Result<(), ProtocolError> {
    let commands = channels.into_iter().map(|channels| move |tell| Command::Reserve { channels, within, tell });
    tell_each(workers, commands).map_err(ProtocolError::Refused)
}

fn adopt_histories(worker: &Mailbox, part: HistoriesSnapshot) -> Result<(), ProtocolError> {
    let adopted = worker.blocking_ask(|tell| Command::AdoptHistories(part, tell));
    adopted.map_err(|ended| ended.to_string()).flatten().map_err(ProtocolError::Refused)
}

/// Waits for all streams to stand still at the marker.
fn await_marker(workers: &[Mailbox]) -> Result<(), ProtocolError> {
    tell_all(workers, |tell| Command::AwaitMarker { within: STANDSTILL, tell }).map_err(ProtocolError::Refused)
}

/// Collects each worker's snapshot from its messages, and gives it to a worker of this process.
pub(super) struct Gathering<'a> {
    workers: &'a [Mailbox],
    /// The snapshot of the worker that messages currently describe.
    adopted: Adopted,
    /// From the workers that have their snapshot.
    answers: Vec<oneshot::Receiver<Result<(), String>>>,
    pub(super) sessions: usize,
    /// The longest time for which sessions have missed publications.
    pub(super) away: Duration,
}

/// Makes all workers report a gap of length `time`.
pub(super) fn lose(workers: &[Mailbox], time: Duration, why: Missing) {
    for worker in workers {
        // A worker that has ended ends the server.
        worker.blocking_send(Command::Lose(time, why)).ok();
    }
}

impl<'a> Gathering<'a> {
    pub(super) fn new(workers: &'a [Mailbox]) -> Self {
        Self { workers, adopted: Adopted::default(), answers: Vec::new(), sessions: 0, away: Duration::ZERO }
    }

    /// Adds a message with its sockets; false when it was the last one.
    pub(super) fn add(&mut self, message: Message, sockets: Vec<OwnedFd>) -> Result<bool, ProtocolError> {
        match message {
            Message::Sessions { sessions, .. } => {
                if sessions.len() != sockets.len() {
                    return Err(ProtocolError::Nonsense("not every session has a socket".to_owned()));
                }
                self.sessions += sessions.len();
                self.adopted.sessions.extend(sessions.into_iter().zip(sockets));
            }
            // The last part of the client messages completes a worker.
            Message::Messages { worker, messages, has_more, away_ms } => {
                self.away = self.away.max(Duration::from_millis(away_ms));
                self.adopted.messages.extend(messages);
                if has_more {
                    return Ok(true);
                }
                let adopted = std::mem::take(&mut self.adopted);
                let (tell, told) = oneshot::channel();
                // A worker that has ended does not answer.
                counterpart(self.workers, worker)?.blocking_send(Command::Adopt(adopted, tell)).ok();
                // The worker adopts its sessions while messages about the next worker arrive.
                self.answers.push(told);
            }
            Message::End => {
                self.answers.drain(..).try_for_each(answer).map_err(ProtocolError::Refused)?;
                return Ok(false);
            }
            _ => return Err(out_of_turn()),
        }
        Ok(true)
    }
}

/// Our counterpart of a worker of the old process, which may have more workers or fewer.
fn counterpart<T>(own: &[T], theirs: usize) -> Result<&T, ProtocolError> {
    let count = own.len().max(1);
    own.get(theirs % count).ok_or_else(|| ProtocolError::Nonsense("there are no workers".to_owned()))
}

fn out_of_turn() -> ProtocolError {
    ProtocolError::Nonsense("a message out of turn".to_owned())
}
