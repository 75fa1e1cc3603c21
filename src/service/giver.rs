//! Hands over at a signal or a request on the control socket, until the server is told to end.
//!
//! May not enter: the messages of the two processes.

use std::cell::{Cell, OnceCell, RefCell};

use tokio::sync::mpsc;

use super::blocking::blocking;
use crate::admin::control::{Control, Operation, Reply, Request, UPGRADING};
use crate::clock::millis;
use crate::handover::protocol::Line;
use crate::handover::{Attempt, BreakOff, Done, GiveError, LONGEST, Program, Site};
use crate::log;
use crate::metrics::Metrics;
use crate::os;
use crate::server::Ending;
use crate::signals::{Signals, Wanted};

// A client of the control socket waits longer than any hand-over takes.
const _: () = assert!(LONGEST.as_millis() < UPGRADING.as_millis());

/// Carries out requests to hand over.
pub(super) struct Giver<'a> {
    pub(super) site: Site,
    pub(super) program: std::io::Result<Program>,
    pub(super) metrics: Metrics,
    /// The socket to the new process, which waits until this end is closed; and its process id.
    pub(super) farewell: &'a OnceCell<(Line, u32)>,
    pub(super) control: &'a RefCell<Option<Control>>,
    /// Whether all sessions were left with systemd, whose SIGTERM follows.
    pub(super) is_suspended: Cell<bool>,
}

/// The result of a hand-over.
struct Given {
    result: Result<Done, GiveError>,
    /// Whether a signal to stop came meanwhile.
    is_stopping: bool,
}

impl Given {
    /// The reply to the request, which the log repeats after a failure.
    fn reply(&self) -> Reply {
        match &self.result {
            Ok(done) => Reply::done(format!(
                "{} sessions are with process {} (webws {}) now; nothing was served for {} ms",
                done.sessions,
                done.pid,
                done.version,
                done.standstill.as_millis()
            )),
            Err(error) if self.is_stopping => Reply::failed(format!("the hand-over failed: {error}")),
            Err(error) => Reply::failed(format!("the hand-over failed; the old process continues to serve: {error}")),
        }
    }

    fn log(&self, reply: &Reply) {
        match &self.result {
            Ok(Done { pid, sessions, standstill, .. }) => {
                let standstill_ms = millis(*standstill);
                tracing::info!(
                    pid,
                    sessions,
                    standstill_ms,
                    "handed over {sessions} sessions to process {pid}; nothing was served for {standstill_ms} ms"
                );
            }
            Err(error) => tracing::error!(%error, "{}", reply.text()),
        }
    }
}

impl Giver<'_> {
    /// Hands over when requested; returns how the server ends.
    pub(super) async fn serve(&self, signals: &mut Signals, requested: &mut mpsc::Receiver<Request>) -> Ending {
        loop {
            let request = tokio::select! {
                wanted = signals.next() => match wanted {
                    Wanted::Stop => return Ending::Drain,
                    Wanted::HandOver => None,
                },
                Some(request) = requested.recv() => Some(request),
            };
            let ending = match request {
                None => self.hand_over(None, signals, requested).await,
                Some(request) => match request.operation {
                    Operation::Upgrade => self.hand_over(Some(request), signals, requested).await,
                    Operation::Suspend => self.suspend(request).await,
                },
            };
            if let Some(ending) = ending {
                return ending;
            }
        }
    }

    /// Hands over once, for `request` or a signal. Returns how the server ends; none when the server continues.
    async fn hand_over(
        &self,
        request: Option<Request>,
        signals: &mut Signals,
        requested: &mut mpsc::Receiver<Request>,
    ) -> Option<Ending> {
        let given = self.give_while_refusing(signals, requested).await;
        let reply = given.reply();
        given.log(&reply);
        // Before the reply: a client that has read the reply finds the log line.
        blocking(log::flush).await.ok();
        if let Ok(done) = &given.result {
            // Before the reply as well: systemctl, called next, must reach the new process.
            os::systemd::notify_main_process(done.pid);
            // Later requests reach the control socket of the new process.
            let control = self.control.take();
            if let Some(control) = control {
                control.leave().await;
            }
        }
        if let Some(request) = request {
            request.answer(reply).await;
        }
        match given.result {
            Ok(done) => {
                while let Ok(late) = requested.try_recv() {
                    late.answer(Reply::elsewhere()).await;
                }
                if given.is_stopping {
                    os::process::terminate(done.pid);
                }
                drop(self.farewell.set((done.line, done.pid)));
                Some(Ending::Leave)
            }
            Err(_) if given.is_stopping => Some(Ending::Drain),
            Err(_) => None,
        }
    }

    /// Hands over; meanwhile refuses other requests, and breaks the hand-over off at a signal to stop.
    async fn give_while_refusing(&self, signals: &mut Signals, requested: &mut mpsc::Receiver<Request>) -> Given {
        let attempt = Attempt::default();
        let _break_off = BreakOff(attempt.clone());
        let mut giving = Box::pin(self.give(attempt.clone()));
        let mut is_stopping = false;
        loop {
            tokio::select! {
                result = &mut giving => return Given { result, is_stopping },
                // A second signal to stop stays unread here: `second_signal` ends the process at once.
                wanted = signals.next(), if !is_stopping => match wanted {
                    Wanted::Stop => {
                        // A hand-over that is committed is not broken off: the new process is stopped instead.
                        is_stopping = true;
                        attempt.break_off();
                    }
                    Wanted::HandOver => tracing::warn!("{}", Reply::BUSY),
                },
                Some(other) = requested.recv() => {
                    tracing::warn!("{}", Reply::BUSY);
                    other.answer(Reply::busy()).await;
                }
            }
        }
    }

    /// Leaves the sessions to the process that is started next. Returns how the server ends; none when the server
    /// continues.
    async fn suspend(&self, request: Request) -> Option<Ending> {
        let site = self.site.clone();
        let left = blocking(move || site.leave()).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())));
        let reply = match &left {
            Ok(sessions) => {
                tracing::info!(sessions, "left {sessions} sessions with systemd for the next process");
                Reply::done(format!("{sessions} sessions wait for the next process"))
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "the sessions cannot be left with systemd ({error}): this process continues to serve"
                );
                Reply::failed(format!("the sessions cannot be left with systemd for the next process: {error}"))
            }
        };
        blocking(log::flush).await.ok();
        request.answer(reply).await;
        self.is_suspended.set(left.is_ok());
        left.is_ok().then_some(Ending::Leave)
    }

    async fn give(&self, attempt: Attempt) -> Result<Done, GiveError> {
        let program = match &self.program {
            Ok(program) => program.clone(),
            Err(error) => return Err(GiveError::Here(format!("the path of this program is unknown: {error}"))),
        };
        let sessions = self.metrics.sessions();
        tracing::info!(sessions, "handing over {sessions} sessions to a new process");
        let site = self.site.clone();
        let give = move || {
            // The lines of the new process follow the lines of this one.
            log::flush();
            site.give(&program, &attempt)
        };
        blocking(give).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())))
    }
}
