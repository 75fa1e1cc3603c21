//! The new process' side: prepares everything while the old one serves, takes the sessions, and goes on
//! when it is told to. Whatever fails before, it says so and ends: the old one goes on.

use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::deadlines::{LATE_SUBSCRIBING, LEAVING, LINKS, LONG_STEP, MARKER, STANDSTILL, STEP, SUBSCRIBING};
use super::fault::{self, Point};
use super::protocol::{Hello, Line, Message, PortableListener, ProtocolError};
use super::workers::{answer, tell_all, tell_each};
use crate::broker::Seal;
use crate::broker::redis::Home;
use crate::channel::Channel;
use crate::os::descriptors;
use crate::worker::{Adopted, Command, Mailbox, Missing};

/// The variable with the number of the descriptor that leads to the old process.
pub(crate) const VARIABLE: &str = "WEBWS_HANDOVER";

/// The process that everything is taken from.
#[derive(Debug)]
pub(crate) struct Predecessor {
    line: Line,
    mark: String,
    seal: Option<Seal>,
    broker: String,
    pub(crate) control: Option<PathBuf>,
    pub(crate) version: String,
}

/// Tells the process that started this one, if one did, that this one cannot take over. For a program that
/// fails before [`crate::binary::run_service`].
pub fn refuse_hand_over(why: &str) {
    if let Ok(Some((predecessor, _))) = Predecessor::find(None) {
        predecessor.refuse(why);
    }
}

/// Whether the process that started this one has been told why this one cannot take over: it logs the reason.
pub fn has_refused_hand_over() -> bool {
    IS_REFUSED.load(Ordering::Relaxed)
}

static IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// What the new process needs before it has workers.
#[derive(Debug)]
pub(crate) struct Heritage {
    pub(crate) listeners: Vec<(PortableListener, OwnedFd)>,
    pub(crate) homes: Vec<Home>,
}

impl Predecessor {
    /// The process that started this one to take over from it, and what it begins with; `None` if none
    /// did.
    ///
    /// # Errors
    /// When what it says cannot be understood.
    pub(crate) fn find(broker: Option<&str>) -> Result<Option<(Self, Heritage)>, ProtocolError> {
        // Empty is unset, as for every variable.
        let Some(text) = std::env::var_os(VARIABLE).filter(|text| !text.is_empty()) else { return Ok(None) };
        let alien = |why: String| ProtocolError::Variable { value: text.display().to_string(), why };
        let number: Option<RawFd> = text.to_str().and_then(|number| number.parse().ok());
        let number = number.ok_or_else(|| alien("it is no number".to_owned()))?;
        let line = Line::new(descriptors::inherited(number).map_err(|error| alien(error.to_string()))?);
        line.say(&Message::Hello(Hello::using(broker)), &[], STEP)?;
        let (message, sockets) = line.hear(STEP)?;
        let Message::Listeners { hello, listeners, broker, mark, seal, homes, control } = message else {
            return Err(out_of_turn());
        };
        hello.check()?;
        if listeners.len() != sockets.len() {
            return Err(ProtocolError::Nonsense("not every listener has a socket".to_owned()));
        }
        let listeners = listeners.into_iter().zip(sockets).collect();
        let control = control.map(PathBuf::from);
        Ok(Some((Self { line, mark, seal, broker, control, version: hello.version }, Heritage { listeners, homes })))
    }

    /// Says that this process cannot take over.
    pub(crate) fn refuse(&self, why: &str) {
        self.say_refusal(&Message::Refused { why: why.to_owned(), is_broker: false });
    }

    fn say_refusal(&self, refusal: &Message) {
        // If the old one is gone, this process has to log it.
        if self.line.say(refusal, &[], STEP).is_ok() {
            IS_REFUSED.store(true, Ordering::Relaxed);
        }
    }

    /// Takes everything over into workers that rest; returns when they go on, with the number of
    /// sessions.
    /// It waits; not for async code.
    ///
    /// # Errors
    /// Why that was not possible. The old process goes on then, and this one must end.
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

    /// Waits for it to be gone.
    pub(crate) fn await_end(&self) {
        self.line.await_end(LEAVING);
    }

    fn try_take(&self, workers: &[Mailbox], broker: &str) -> Result<usize, ProtocolError> {
        // Another broker has another order of things: what is published meanwhile may be missing or come
        // twice, and there is no mark to wait for.
        let shares_streams = broker == self.broker;
        let channels = self.hear_channels(workers, STEP)?;
        // Whether there are channels or not: a broker that is not there is no reason to leave one that is.
        tell_all(workers, |tell| Command::Connect { within: LINKS, tell }).map_err(ProtocolError::Broker)?;
        reserve(workers, channels, SUBSCRIBING)?;
        if shares_streams {
            let set = |tell| Command::SetMarker { name: self.mark.clone(), seal: self.seal, within: MARKER, tell };
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
        fault::at(Point::Ready);
        self.line.say(&Message::Ready, &[], STEP)?;
        fault::at(Point::AfterReady);
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
                fault::at(Point::Sessions);
                self.line.say(&Message::Taken, &[], STEP)?;
            }
        }
        if shares_streams {
            await_marker(workers)?;
        }
        fault::at(Point::Adopted);
        self.line.say(&Message::Adopted, &[], STEP)?;
        let (Message::Commit, _) = self.line.hear(STEP)? else { return Err(out_of_turn()) };
        fault::at(Point::Commit);
        // Behind this there is no way back.
        self.line.say(&Message::Serving, &[], STEP)?;
        if !shares_streams {
            lose(workers, gathering.away.max(misses_since.elapsed()), Missing::OtherBroker);
        }
        tell_all(workers, Command::Resume).map_err(ProtocolError::Refused)?;
        Ok(gathering.sessions)
    }

    /// Hears a list of channels, for each worker.
    fn hear_channels(&self, workers: &[Mailbox], limit: Duration) -> Result<Vec<Vec<Channel>>, ProtocolError> {
        let lists: Vec<RefCell<Vec<Channel>>> = workers.iter().map(|_| RefCell::default()).collect();
        loop {
            match self.line.hear(limit)?.0 {
                Message::Channels { worker, names } => {
                    let names = names.into_iter().map(|name| Channel::from(name.into_vec()));
                    place(&lists, worker)?.borrow_mut().extend(names);
                }
                Message::End => break,
                _ => return Err(out_of_turn()),
            }
        }
        Ok(lists.into_iter().map(RefCell::into_inner).collect())
    }
}

/// Subscribes channels, of each worker its own.
fn reserve(workers: &[Mailbox], channels: Vec<Vec<Channel>>, within: Duration) -> Result<(), ProtocolError> {
    let commands = channels.into_iter().map(|channels| move |tell| Command::Reserve { channels, within, tell });
    tell_each(workers, commands).map_err(ProtocolError::Refused)
}

/// Waits for all streams to stand still at the marker.
fn await_marker(workers: &[Mailbox]) -> Result<(), ProtocolError> {
    tell_all(workers, |tell| Command::AwaitMarker { within: STANDSTILL, tell }).map_err(ProtocolError::Refused)
}

/// Makes workers what others were, one after the other.
pub(super) struct Gathering<'a> {
    workers: &'a [Mailbox],
    /// The one that is told of.
    adopted: Adopted,
    /// Of those that are told of.
    answers: Vec<oneshot::Receiver<Result<(), String>>>,
    pub(super) sessions: usize,
    /// How long some of them have missed what was published.
    pub(super) away: Duration,
}

/// Lets workers report a gap of that length.
pub(super) fn lose(workers: &[Mailbox], time: Duration, why: Missing) {
    for worker in workers {
        // One that has ended ends the server.
        worker.blocking_send(Command::Lose(time, why)).ok();
    }
}

impl<'a> Gathering<'a> {
    pub(super) fn new(workers: &'a [Mailbox]) -> Self {
        Self { workers, adopted: Adopted::default(), answers: Vec::new(), sessions: 0, away: Duration::ZERO }
    }

    /// False when that was all.
    pub(super) fn add(&mut self, message: Message, sockets: Vec<OwnedFd>) -> Result<bool, ProtocolError> {
        match message {
            Message::Sessions { sessions, .. } => {
                if sessions.len() != sockets.len() {
                    return Err(ProtocolError::Nonsense("not every session has a socket".to_owned()));
                }
                self.sessions += sessions.len();
                self.adopted.sessions.extend(sessions.into_iter().zip(sockets));
            }
            // With them a worker is complete.
            Message::Texts { worker, texts, has_more, away_ms } => {
                self.away = self.away.max(Duration::from_millis(away_ms));
                self.adopted.texts.extend(texts);
                if has_more {
                    return Ok(true);
                }
                let adopted = std::mem::take(&mut self.adopted);
                let (tell, told) = oneshot::channel();
                // One that has ended does not answer.
                place(self.workers, worker)?.blocking_send(Command::Adopt(adopted, tell)).ok();
                // It does so while the next one is heard of.
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

/// Which of ours does what a worker of theirs did: there may be more or fewer.
fn place<T>(own: &[T], theirs: usize) -> Result<&T, ProtocolError> {
    let count = own.len().max(1);
    own.get(theirs % count).ok_or_else(|| ProtocolError::Nonsense("there are no workers".to_owned()))
}

fn out_of_turn() -> ProtocolError {
    ProtocolError::Nonsense("a message out of turn".to_owned())
}
