//! The old process' side: starts the new one, hands everything over, and can go on at any moment until
//! the other has said that it serves.
//!
//! It runs on a thread of its own and waits; the workers go on meanwhile.

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;

use super::attempt::{Attempt, Program};
use super::deadlines::{HANDSHAKES, HELLO, LAST_WORD, MARKER, READY, STANDSTILL, STEP};
use super::error::{GiveError, out_of_turn};
use super::parcel::{NAME_COST, parts, say_worker};
use super::protocol::{Hello, Line, Message, PortableListener, ProtocolError};
use super::take::VARIABLE;
use super::workers::tell_all;
use crate::broker::Seal;
use crate::broker::redis::Deployment;
use crate::channel::Channel;
use crate::front::acceptor::Entrance;
use crate::os::descriptors::Lent;
use crate::os::process::Grandchild;
use crate::worker::{Answer, Collected, Command, Mailbox};

/// What is handed over.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) workers: Vec<Mailbox>,
    pub(crate) listeners: Vec<(PortableListener, Lent)>,
    pub(crate) broker: String,
    pub(crate) control: Option<PathBuf>,
    pub(crate) deployment: Option<Deployment>,
    pub(crate) entrance: Arc<Entrance>,
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

impl Site {
    /// Hands everything over to a new process of `program`. It waits; not for async code.
    ///
    /// # Errors
    /// Why that was not possible. Everything goes on here then.
    pub(crate) fn give(&self, program: &Program, attempt: &Attempt) -> Result<Done, GiveError> {
        if process::id() == 1 {
            return Err(GiveError::Here(
                "this is the first process of its container, and the container would end with it".to_owned(),
            ));
        }
        let start = |source| GiveError::Start { path: program.path.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(start)?;
        let mut command = process::Command::new(&program.path);
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
                self.resume();
                if attempt.is_broken_off() {
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
            let set = self.set_marker(&mark, seal);
            set.map_err(|error| GiveError::NoMark(Box::new(error)))?;
        }

        let stood_still = self.quiesce()?;
        self.say_channels(line, &mut known)?;
        expect_ready(line, STEP)?;
        if shares_streams {
            // One worker speaks for all: their streams are of the same servers.
            if let Some(worker) = self.workers.first() {
                worker.blocking_send(Command::PublishMarker)?;
            }
            self.await_marker()?;
        }
        line.say(&Message::Marked, &[], STEP)?;
        let mut sessions = 0;
        // One after the other: what was not sent is copied, and may be much.
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let collected = self.collect(mailbox)?;
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
            self.await_marker()?;
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

    /// Quiesces everything; returns since when no session is served.
    pub(super) fn quiesce(&self) -> Result<Instant, GiveError> {
        // No connections come any more, and those that came become sessions.
        self.entrance.set_open(false);
        self.all(|tell| Command::FinishHandshakes { within: HANDSHAKES, tell })?;
        let since = Instant::now();
        self.all(|tell| Command::Quiesce { within: STANDSTILL, tell })?;
        Ok(since)
    }

    /// Lets all streams stop at a marker of that name.
    fn set_marker(&self, name: &str, seal: Option<Seal>) -> Result<(), GiveError> {
        self.all(|tell| Command::SetMarker { name: name.to_owned(), seal, within: MARKER, tell })
    }

    /// Waits for all streams to stand still at the marker.
    pub(super) fn await_marker(&self) -> Result<(), GiveError> {
        self.all(|tell| Command::AwaitMarker { within: STANDSTILL, tell })
    }

    /// Whether this process has no links to Redis.
    fn is_away(&self) -> bool {
        let fault = self.workers.first().and_then(|worker| worker.blocking_ask(Command::LinkFault).ok());
        fault.flatten().is_some()
    }

    /// Resumes as if nothing had been asked.
    pub(crate) fn resume(&self) {
        // A worker that has ended ends the server.
        drop(self.all(Command::Resume));
        self.entrance.set_open(true);
    }

    /// A worker's snapshot.
    pub(super) fn collect(&self, worker: &Mailbox) -> Result<Collected, GiveError> {
        Ok(worker.blocking_ask(Command::Collect)?)
    }

    /// Says which channels there are that are not `known` yet.
    fn say_channels(&self, line: &Line, known: &mut HashSet<(usize, Channel)>) -> Result<(), GiveError> {
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let names = mailbox.blocking_ask(Command::Channels)?;
            let new: Vec<_> = names.into_iter().filter(|name| known.insert((worker, name.clone()))).collect();
            for (names, _) in parts(new, |name| name.len() + NAME_COST) {
                let names = names.iter().map(|name| ByteBuf::from(&**name)).collect();
                line.say(&Message::Channels { worker, names }, &[], STEP)?;
            }
        }
        Ok(line.say(&Message::End, &[], STEP)?)
    }

    /// Tells all workers the same, and waits for all of their answers.
    pub(super) fn all(&self, command: impl Fn(Answer) -> Command) -> Result<(), GiveError> {
        tell_all(&self.workers, command).map_err(GiveError::Here)
    }
}

fn expect_ready(line: &Line, limit: Duration) -> Result<(), GiveError> {
    match line.hear(limit)? {
        (Message::Ready, _) => Ok(()),
        (other, _) => Err(out_of_turn(&other)),
    }
}
