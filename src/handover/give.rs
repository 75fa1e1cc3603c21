//! The old process' side: starts the new one, hands everything over, and can go on at any moment until
//! the other has said that it serves.
//!
//! It runs on a thread of its own and waits; the workers go on meanwhile.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{FULL_BYTES, Hello, Line, MAX_SESSIONS, Message, PortableListener, ProtocolError};
use super::take::VARIABLE;
use crate::broker::redis::{Deployment, Seal};
use crate::channel::Channel;
use crate::clock::millis;
use crate::front::acceptor::Entrance;
use crate::os::descriptors::Lent;
use crate::os::process::Grandchild;
use crate::protocol::session::portable::Portable;
use crate::worker::PortableText;
use crate::worker::handover::{Answer, Ask, Collected};

/// How long the new process may take to say who it is: as long as a unit's start.
const HELLO: Duration = Duration::from_secs(20);

/// How long it may take to be connected and subscribed. Nobody waits for it meanwhile.
const READY: Duration = Duration::from_secs(45);

/// How long each step may take while everything stands still.
const STEP: Duration = Duration::from_secs(5);

/// How long is waited for the word of a process that has ended.
const LAST_WORD: Duration = Duration::from_millis(200);

/// How long connections that were accepted may wait for their worker.
const INLETS: Duration = Duration::from_secs(2);

/// What is started: the binary at the path it was started from, whatever stands there now.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// What is handed over.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) asks: Vec<mpsc::Sender<Ask>>,
    pub(crate) listeners: Vec<(PortableListener, Lent)>,
    pub(crate) broker: String,
    pub(crate) control: Option<PathBuf>,
    pub(crate) deployment: Option<Deployment>,
    pub(crate) entrance: Arc<Entrance>,
}

/// An attempt that may be broken off from elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt(Arc<Mutex<Breakable>>);

#[derive(Debug, Default)]
struct Breakable {
    program: Option<Grandchild>,
    is_broken_off: bool,
    is_committed: bool,
}

/// Breaks an attempt off when whoever waits for it does not any more.
#[derive(Debug)]
pub(crate) struct BreakOff(pub(crate) Attempt);

impl Drop for BreakOff {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

/// A hand-over that is done.
#[derive(Debug)]
pub(crate) struct Done {
    /// The new process.
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) sessions: usize,
    /// How long nobody was served.
    pub(crate) standstill: Duration,
    /// Open until this process ends: the other waits for that.
    pub(crate) line: Line,
}

/// Why all goes on here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GiveError {
    #[error("{} cannot be started: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("the new process: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the new process ended ({0}); what it wrote to the log says why")]
    Ended(ExitStatus),
    /// In the streams of Redis, which may not be there.
    #[error("{0}")]
    NoMark(Box<GiveError>),
    #[error("{0}; this process has lost Redis as well: systemctl restart keeps the WebSockets too, with a gap")]
    Away(Box<GiveError>),
    #[error("{0}")]
    Here(String),
}

impl Program {
    /// The binary that runs, with its arguments. Asked for at the start: later, its file may be another.
    ///
    /// # Errors
    /// When the system does not say where it is.
    pub(crate) fn own() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        // As it was called, if that says where it is: a link may lead elsewhere by then.
        let called = arguments.next().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = called.map_or_else(std::env::current_exe, Ok)?;
        Ok(Self { path, arguments: arguments.collect() })
    }
}

impl Attempt {
    /// Ends it, and all goes on here; unless it is nearly done: then it is waited for.
    pub(crate) fn break_off(&self) {
        let mut this = self.lock();
        this.is_broken_off = true;
        if !this.is_committed {
            this.program.iter_mut().for_each(Grandchild::end);
        }
    }

    /// From here on it is not broken off.
    fn commit(&self) -> Result<(), GiveError> {
        let mut this = self.lock();
        this.is_committed = !this.is_broken_off;
        if this.is_committed { Ok(()) } else { Err(GiveError::Here("it was broken off".to_owned())) }
    }

    fn lock(&self) -> MutexGuard<'_, Breakable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, mut program: Grandchild) {
        let mut this = self.lock();
        if this.is_broken_off {
            program.end();
        }
        this.program = Some(program);
    }

    fn let_go(&self) {
        if let Some(program) = self.lock().program.take() {
            program.let_go();
        }
    }

    /// Ends the new process; returns how it ended, if it did so by itself.
    fn end(&self) -> Option<ExitStatus> {
        let mut program = self.lock().program.take()?;
        // It may be about to end, and its status says more than that it was killed.
        let by_itself = ended_within(&mut program, Duration::from_millis(200));
        if by_itself.is_none() {
            program.end();
            ended_within(&mut program, STEP);
            program.let_go();
        }
        by_itself
    }
}

fn ended_within(program: &mut Grandchild, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match program.status() {
            None if Instant::now() < deadline => rest(Duration::from_millis(5)),
            status => return status,
        }
    }
}

impl Site {
    /// Hands everything over to a new process of `program`. It waits; not for async code.
    ///
    /// # Errors
    /// Why that was not possible. Everything goes on here then.
    pub(crate) fn give(&self, program: &Program, attempt: &Attempt) -> Result<Done, GiveError> {
        if std::process::id() == 1 {
            return Err(GiveError::Here(
                "this is the first process of its container, and the container would end with it".to_owned(),
            ));
        }
        let start = |source| GiveError::Start { path: program.path.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(start)?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env(VARIABLE, theirs.as_raw_fd().to_string());
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            // They speak of this process.
            command.env_remove(name);
        }
        attempt.started(Grandchild::spawn(&mut command, &theirs).map_err(start)?);
        drop(theirs);
        let line = Line::new(ours);
        // A panic must not leave the workers at rest.
        let talked = catch_unwind(AssertUnwindSafe(|| self.talk(&line, attempt)));
        match talked.unwrap_or_else(|_| Err(GiveError::Here("a panic; the log says where".to_owned()))) {
            Ok((Hello { version, pid, .. }, sessions, standstill)) => {
                // Who stood between goes, and the new process is the service manager's child.
                attempt.let_go();
                Ok(Done { pid, version, sessions, standstill, line })
            }
            Err(error) => {
                // It may have said why it ended, while we were talking.
                let last_word = match &error {
                    GiveError::Protocol(ProtocolError::Ended) => line.hear(LAST_WORD).err(),
                    _ => None,
                };
                let ended = attempt.end();
                line.await_end(STEP);
                self.go_on();
                if attempt.lock().is_broken_off {
                    return Err(GiveError::Here("this process was told to stop".to_owned()));
                }
                let error = match (last_word, ended, error) {
                    (Some(refusal @ (ProtocolError::Refused(_) | ProtocolError::Broker(_))), ..) => refusal.into(),
                    (_, Some(status), GiveError::Protocol(ProtocolError::Ended)) => GiveError::Ended(status),
                    (.., error) => error,
                };
                let is_broker = matches!(error, GiveError::Protocol(ProtocolError::Broker(_)) | GiveError::NoMark(_));
                Err(if is_broker && self.is_away() { GiveError::Away(Box::new(error)) } else { error })
            }
        }
    }

    /// Returns who the other is, how many sessions it has, and how long nobody was served.
    fn talk(&self, line: &Line, attempt: &Attempt) -> Result<(Hello, usize, Duration), GiveError> {
        let hello = match line.hear(HELLO)? {
            (Message::Hello(hello), _) => hello,
            (other, _) => return Err(out_of_turn(&other)),
        };
        hello.check()?;
        // An earlier version does not say, and waits for a mark if it uses the same one.
        let shares_streams = hello.broker.as_ref().is_none_or(|broker| *broker == self.broker);
        let mark = format!("webws:probe:{:016x}", fastrand::u64(..));
        let seal = Some(Seal::random());
        let (listeners, sockets): (Vec<_>, Vec<_>) = self.listeners.iter().cloned().unzip();
        let homes = self.deployment.as_ref().map(Deployment::homes).unwrap_or_default();
        let (hello_back, broker, to_mark) = (Hello::own(), self.broker.clone(), mark.clone());
        let control = self.control.as_ref().map(|path| path.display().to_string());
        let first = Message::Listeners { hello: hello_back, listeners, broker, mark: to_mark, seal, homes, control };
        line.say(&first, &sockets, STEP)?;
        let mut known = HashSet::new();
        self.say_channels(line, &mut known)?;
        expect_ready(line, READY)?;
        if shares_streams {
            let set = self.all(|tell| Ask::SetMark(mark.clone(), seal, tell));
            set.map_err(|error| GiveError::NoMark(Box::new(error)))?;
        }

        let stood_still = self.come_to_rest()?;
        self.say_channels(line, &mut known)?;
        expect_ready(line, STEP)?;
        if shares_streams {
            // One worker speaks for all: their streams are of the same servers.
            self.asks.iter().take(1).for_each(|worker| drop(worker.blocking_send(Ask::PublishMark)));
            self.all(Ask::AwaitMark)?;
        }
        line.say(&Message::Marked, &[], STEP)?;
        let mut sessions = 0;
        // One after the other: what was not sent is copied, and may be much.
        for (worker, asks) in self.asks.iter().enumerate() {
            let collected = self.collect(asks)?;
            sessions += collected.sessions.len();
            say_worker(line, worker, collected)?;
        }
        line.say(&Message::End, &[], STEP)?;
        match line.hear(STEP)? {
            (Message::Adopted, _) => {}
            (other, _) => return Err(out_of_turn(&other)),
        }
        if shares_streams {
            // They stand where they stood, and their sessions are alive.
            self.all(Ask::AwaitMark)?;
        }
        attempt.commit()?;
        line.say(&Message::Commit, &[], STEP)?;
        match line.hear(STEP) {
            Ok((Message::Serving, _)) => {}
            heard => {
                // It serves if it has said so by now, and cannot say so any more.
                line.stop_hearing();
                if !matches!(line.hear(STEP), Ok((Message::Serving, _))) {
                    return Err(heard.map_or_else(GiveError::Protocol, |(other, _)| out_of_turn(&other)));
                }
            }
        }
        Ok((hello, sessions, stood_still.elapsed()))
    }

    /// Comes to rest; returns since when nobody is served.
    pub(super) fn come_to_rest(&self) -> Result<Instant, GiveError> {
        // No connections come any more, and those that came become sessions.
        self.entrance.set_open(false);
        let deadline = Instant::now() + INLETS;
        while self.entrance.waiting() > 0 && Instant::now() < deadline {
            rest(Duration::from_millis(1));
        }
        self.all(Ask::Settle)?;
        let since = Instant::now();
        self.all(Ask::Rest)?;
        Ok(since)
    }

    /// Whether this process has no links to Redis.
    fn is_away(&self) -> bool {
        let fault = self.asks.first().and_then(|worker| ask(worker, Ask::LinkFault).ok());
        fault.flatten().is_some()
    }

    /// Goes on as if nothing had been asked.
    pub(crate) fn go_on(&self) {
        // A worker that has ended ends the server.
        drop(self.all(Ask::GoOn));
        self.entrance.set_open(true);
    }

    /// A worker in words.
    pub(super) fn collect(&self, worker: &mpsc::Sender<Ask>) -> Result<Collected, GiveError> {
        ask(worker, Ask::Collect)
    }

    /// Says which channels there are that are not `known` yet.
    fn say_channels(&self, line: &Line, known: &mut HashSet<(usize, Channel)>) -> Result<(), GiveError> {
        for (worker, asks) in self.asks.iter().enumerate() {
            let names = ask(asks, Ask::Channels)?;
            let new: Vec<_> = names.into_iter().filter(|name| known.insert((worker, name.clone()))).collect();
            for (names, _) in parts(new, |name| name.len() + NAME_COST) {
                let names = names.iter().map(|name| ByteBuf::from(&**name)).collect();
                line.say(&Message::Channels { worker, names }, &[], STEP)?;
            }
        }
        Ok(line.say(&Message::End, &[], STEP)?)
    }

    /// Asks all workers, and waits for all of their answers.
    pub(super) fn all(&self, ask: impl Fn(Answer) -> Ask) -> Result<(), GiveError> {
        let (tells, answers): (Vec<_>, Vec<_>) = self.asks.iter().map(|_| oneshot::channel()).unzip();
        for (worker, tell) in self.asks.iter().zip(tells) {
            // One that has ended does not answer either.
            drop(worker.blocking_send(ask(tell)));
        }
        for answer in answers {
            answer.blocking_recv().map_err(|_| gone())?.map_err(GiveError::Here)?;
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread serves nobody")]
fn rest(time: Duration) {
    std::thread::sleep(time);
}

fn gone() -> GiveError {
    GiveError::Here("a worker has ended".to_owned())
}

fn ask<T>(worker: &mpsc::Sender<Ask>, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, GiveError> {
    let (tell, told) = oneshot::channel();
    worker.blocking_send(ask(tell)).map_err(|_| gone())?;
    told.blocking_recv().map_err(|_| gone())
}

fn expect_ready(line: &Line, limit: Duration) -> Result<(), GiveError> {
    match line.hear(limit)? {
        (Message::Ready, _) => Ok(()),
        (other, _) => Err(out_of_turn(&other)),
    }
}

/// Says a worker's sessions, so many at a time that few descriptors are under way: unread ones count
/// against the limit of open files (unix(7), ETOOMANYREFS).
fn say_worker(line: &Line, worker: usize, collected: Collected) -> Result<(), GiveError> {
    for (sessions, sockets) in batches(collected.sessions) {
        line.say(&Message::Sessions { worker, sessions }, &sockets, STEP)?;
        match line.hear(STEP)? {
            (Message::Taken, _) => {}
            (other, _) => return Err(out_of_turn(&other)),
        }
    }
    for message in texts_of(worker, collected.texts, collected.away) {
        line.say(&message, &[], STEP)?;
    }
    Ok(())
}

/// A worker's texts as messages: one at least, which completes the worker.
pub(super) fn texts_of(worker: usize, texts: Vec<PortableText>, away: Duration) -> impl Iterator<Item = Message> {
    let away_ms = millis(away);
    let none = texts.is_empty().then(|| Message::Texts { worker, texts: Vec::new(), has_more: false, away_ms });
    let some = parts(texts, PortableText::size);
    none.into_iter().chain(some.map(move |(texts, has_more)| Message::Texts { worker, texts, has_more, away_ms }))
}

/// What a name counts for in a message beside its bytes.
const NAME_COST: usize = 16;

/// `items` in parts that are a message each, of about [`FULL_BYTES`], and whether more follow.
fn parts<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> impl Iterator<Item = (Vec<T>, bool)> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < FULL_BYTES
            && let Some(item) = items.next()
        {
            bytes += size(&item);
            part.push(item);
        }
        (!part.is_empty()).then(|| (part, items.peek().is_some()))
    })
}

/// Sessions in parts that are a message each.
pub(super) fn batches(sessions: Vec<(Portable, Lent)>) -> impl Iterator<Item = (Vec<Portable>, Vec<Lent>)> {
    let mut sessions = sessions.into_iter().peekable();
    std::iter::from_fn(move || {
        sessions.peek()?;
        let (mut some, mut sockets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while some.len() < MAX_SESSIONS
            && bytes < FULL_BYTES
            && let Some((session, socket)) = sessions.next()
        {
            bytes += session.size();
            some.push(session);
            sockets.push(socket);
        }
        Some((some, sockets))
    })
}

fn out_of_turn(message: &Message) -> GiveError {
    let words = format!("{message:?}");
    let name = words.split([' ', '(', '{']).next().unwrap_or_default();
    GiveError::Protocol(ProtocolError::Nonsense(format!("{name} is not what should come here")))
}
