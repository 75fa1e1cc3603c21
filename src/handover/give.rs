//! The old process' side: starts the new one, and hands everything over.
//!
//! Until the new process has said that it serves, the old one can resume at any step. This code blocks, on a thread of
//! its own; the workers serve meanwhile. May not enter: how a worker is quiesced.

use std::collections::HashSet;
use std::mem::discriminant;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_bytes::ByteBuf;

use super::attempt::{Attempt, Program};
use super::deadlines::{HANDSHAKES, HELLO, HISTORIES, LAST_WORD, MARKER, READY, STANDSTILL, STEP};
use super::error::{GiveError, out_of_turn};
use super::parcel::{NAME_COST, parts, say_worker};
use super::protocol::{Hello, Line, ListenerSnapshot, Message, ProtocolError};
use super::take::VARIABLE;
use super::workers::tell_all;
use crate::broker::Seal;
use crate::broker::redis::Deployment;
use crate::channel::Channel;
use crate::front::acceptor::Entrance;
use crate::os::descriptors::Lent;
use crate::os::process::Grandchild;
use crate::protocol::hub::HistoryCursor;
use crate::worker::{Answer, Collected, Command, Ended, Mailbox};

/// Everything that a hand-over needs of a running server.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) workers: Vec<Mailbox>,
    pub(crate) listeners: Vec<(ListenerSnapshot, Lent)>,
    pub(crate) broker: String,
    pub(crate) control: Option<PathBuf>,
    pub(crate) deployment: Option<Deployment>,
    pub(crate) entrance: Arc<Entrance>,
}

/// A successful hand-over.
#[derive(Debug)]
pub(crate) struct Done {
    /// The new process, and its version.
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) sessions: usize,
    /// How long no session was served.
    pub(crate) standstill: Duration,
    /// Open until this process ends: the new process waits for the end of this socket.
    pub(crate) line: Line,
}

impl Site {
    /// Hands everything over to a new process of `program`. Blocks; not for async code.
    ///
    /// # Errors
    /// Why the hand-over failed. This process has resumed then.
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
            // These variables describe this process.
            command.env_remove(name);
        }
        attempt.started(Grandchild::spawn(&mut command, &theirs).map_err(start)?);
        drop(theirs);
        let line = Line::new(ours);
        // A panic must not leave the workers quiesced.
        let talked = catch_unwind(AssertUnwindSafe(|| self.talk(&line, attempt)));
        match talked.unwrap_or_else(|_| Err(GiveError::Here("a panic; the log says where".to_owned()))) {
            Ok((Hello { version, pid, .. }, sessions, standstill)) => {
                // The process in between ends, so that the new process becomes the service manager's child.
                attempt.let_go();
                Ok(Done { pid, version, sessions, standstill, line })
            }
            Err(error) => {
                // The new process may have sent its reason before it ended.
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
                let is_broker = matches!(error, GiveError::Protocol(ProtocolError::Broker(_)) | GiveError::NoMarker(_));
                Err(if is_broker && self.is_away() { GiveError::Away(Box::new(error)) } else { error })
            }
        }
    }

    /// Returns the new process' introduction, the number of its sessions, and how long no session was served.
    fn talk(&self, line: &Line, attempt: &Attempt) -> Result<(Hello, usize, Duration), GiveError> {
        let hello = hear_hello(line)?;
        // An earlier version does not name its broker. If its broker is the same, it waits for a marker.
        let shares_streams = hello.broker.as_ref().is_none_or(|broker| *broker == self.broker);
        let marker = format!("webws:probe:{:016x}", fastrand::u64(..));
        let seal = Some(Seal::random());
        self.say_listeners(line, &marker, seal)?;
        let mut known = HashSet::new();
        self.say_channels(line, &mut known)?;
        expect(line, READY, &Message::Ready)?;
        if shares_streams {
            let set = self.set_marker(&marker, seal);
            set.map_err(|error| GiveError::NoMarker(Box::new(error)))?;
            if hello.takes_histories {
                // The marker's channel was subscribed after the new process' first milestone: these workers have heard
                // that milestone, so their histories reach to those of the new process.
                self.say_histories(line)?;
            }
        }

        let stood_still = self.quiesce()?;
        self.say_channels(line, &mut known)?;
        expect(line, STEP, &Message::Ready)?;
        if shares_streams {
            self.publish_marker()?;
            self.await_marker()?;
        }
        line.say(&Message::Marked, &[], STEP)?;
        let sessions = self.say_sessions(line)?;
        expect(line, STEP, &Message::Adopted)?;
        if shares_streams {
            // Proves that this process' streams are still at the marker: this process could still resume.
            self.await_marker()?;
        }
        attempt.commit()?;
        line.say(&Message::Commit, &[], STEP)?;
        expect_serving(line)?;
        Ok((hello, sessions, stood_still.elapsed()))
    }

    /// Sends the listeners, and what else the new process needs before it has workers.
    fn say_listeners(&self, line: &Line, marker: &str, seal: Option<Seal>) -> Result<(), ProtocolError> {
        let (listeners, sockets): (Vec<_>, Vec<_>) = self.listeners.iter().cloned().unzip();
        let message = Message::Listeners {
            hello: Hello::own(),
            listeners,
            broker: self.broker.clone(),
            marker: marker.to_owned(),
            seal,
            homes: self.deployment.as_ref().map(Deployment::homes).unwrap_or_default(),
            control: self.control.as_ref().map(|path| path.display().to_string()),
        };
        line.say(&message, &sockets, STEP)
    }

    /// Sends all workers' snapshots; returns the number of sessions.
    fn say_sessions(&self, line: &Line) -> Result<usize, GiveError> {
        let mut sessions = 0;
        // One worker at a time: backlogs are copied, and may be large.
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let collected = self.collect(mailbox)?;
            sessions += collected.sessions.len();
            say_worker(line, worker, collected)?;
        }
        line.say(&Message::End, &[], STEP)?;
        Ok(sessions)
    }

    /// Quiesces all workers; returns since when no session is served.
    pub(super) fn quiesce(&self) -> Result<Instant, GiveError> {
        // No connection is accepted any more; accepted ones become sessions.
        self.entrance.set_open(false);
        self.all(|tell| Command::FinishHandshakes { within: HANDSHAKES, tell })?;
        let since = Instant::now();
        self.all(|tell| Command::Quiesce { within: STANDSTILL, tell })?;
        Ok(since)
    }

    /// Makes all streams stop at the marker called `name`.
    fn set_marker(&self, name: &str, seal: Option<Seal>) -> Result<(), GiveError> {
        self.all(|tell| Command::SetMarker { name: name.to_owned(), seal, within: MARKER, tell })
    }

    /// Publishes the marker on all nodes.
    fn publish_marker(&self) -> Result<(), Ended> {
        // One worker publishes for all: their streams come from the same nodes.
        self.workers.first().map_or(Ok(()), |worker| worker.blocking_send(Command::PublishMarker))
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

    /// Resumes: workers serve, and connections are accepted.
    pub(crate) fn resume(&self) {
        // A worker that has ended ends the server.
        drop(self.all(Command::Resume));
        self.entrance.set_open(true);
    }

    /// A worker's snapshot.
    pub(super) fn collect(&self, worker: &Mailbox) -> Result<Collected, GiveError> {
        Ok(worker.blocking_ask(Command::Collect)?)
    }

    /// Sends the names of all channels that are not `known` yet.
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

    /// Sends the workers' histories. Each part is adopted before the next is sent, so none of this work is left for the
    /// time in which no session is served.
    fn say_histories(&self, line: &Line) -> Result<(), GiveError> {
        let until = Instant::now() + HISTORIES;
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let mut next = Some(HistoryCursor::default());
            // Clients of the channels that are left out learn that messages may be missing.
            while let Some(from) = next.filter(|_| Instant::now() < until) {
                let (part, behind) = mailbox.blocking_ask(|tell| Command::Histories { from, tell })?;
                next = behind;
                if !part.histories.is_empty() {
                    line.say(&Message::Histories { worker, part }, &[], STEP)?;
                    expect(line, STEP, &Message::Taken)?;
                }
            }
        }
        Ok(())
    }

    /// Sends the same command to all workers, and waits for all answers.
    pub(super) fn all(&self, command: impl Fn(Answer) -> Command) -> Result<(), GiveError> {
        tell_all(&self.workers, command).map_err(GiveError::Here)
    }
}

/// Receives the new process' introduction.
fn hear_hello(line: &Line) -> Result<Hello, GiveError> {
    let hello = match line.hear(HELLO)? {
        (Message::Hello(hello), _) => hello,
        (other, _) => return Err(out_of_turn(&other)),
    };
    hello.check()?;
    Ok(hello)
}

/// Receives a message of the same kind as `expected`.
fn expect(line: &Line, limit: Duration, expected: &Message) -> Result<(), GiveError> {
    let (message, _) = line.hear(limit)?;
    if discriminant(&message) == discriminant(expected) { Ok(()) } else { Err(out_of_turn(&message)) }
}

/// Receives `Serving`: from then on the new process serves, and this one does not resume.
fn expect_serving(line: &Line) -> Result<(), GiveError> {
    let Err(error) = expect(line, STEP, &Message::Serving) else { return Ok(()) };
    // The new process serves if it has sent `Serving` by now; from now on, it cannot send.
    line.stop_hearing();
    expect(line, STEP, &Message::Serving).map_err(|_| error)
}
