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

impl Giver<'_> {
    /// Hands over when requested; returns how the server ends.
    pub(super) async fn serve(&self, signals: &mut Signals, requested: &mut mpsc::Receiver<Request>) -> Ending {
        loop {
            let mut request = tokio::select! {
                wanted = signals.next() => match wanted {
                    Wanted::Stop => return Ending::Drain,
                    Wanted::HandOver => None,
                },
                request = requested.recv() => request,
            };
            if let Some(request) = request.take_if(|request| request.operation == Operation::Suspend) {
                if self.suspend(request).await {
                    self.is_suspended.set(true);
                    return Ending::Leave;
                }
                continue;
            }
            let attempt = Attempt::default();
            let _break_off = BreakOff(attempt.clone());
            let mut giving = Box::pin(self.give(attempt.clone()));
            let mut is_stopping = false;
            let given = loop {
                tokio::select! {
                    given = &mut giving => break given,
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
            };
            let reply = match &given {
                Ok(done) => Reply::done(format!(
                    "{} sessions are with process {} (webws {}) now; nothing was served for {} ms",
                    done.sessions,
                    done.pid,
                    done.version,
                    done.standstill.as_millis()
                )),
                Err(error) if is_stopping => Reply::failed(format!("not handed over: {error}")),
                Err(error) => Reply::failed(format!("not handed over, everything goes on as before: {error}")),
            };
            match &given {
                Ok(Done { pid, sessions, standstill, .. }) => {
                    let standstill_ms = millis(*standstill);
                    tracing::info!(
                        pid,
                        sessions,
                        standstill_ms,
                        "handed over {sessions} sessions to process {pid}; nothing was served for {standstill_ms} ms"
                    );
                }
                Err(_) => tracing::error!("{}", reply.text()),
            }
            // Before the reply: a client that has read the reply finds the log line.
            blocking(log::flush).await.ok();
            if let Ok(done) = &given {
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
            match given {
                Ok(done) => {
                    while let Ok(late) = requested.try_recv() {
                        late.answer(Reply::elsewhere()).await;
                    }
                    if is_stopping {
                        os::process::terminate(done.pid);
                    }
                    drop(self.farewell.set((done.line, done.pid)));
                    return Ending::Leave;
                }
                Err(_) if is_stopping => return Ending::Drain,
                Err(_) => {}
            }
        }
    }

    /// Leaves the sessions to the process that is started next; true on success.
    async fn suspend(&self, request: Request) -> bool {
        let site = self.site.clone();
        let left = blocking(move || site.leave()).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())));
        let reply = match &left {
            Ok(sessions) => {
                tracing::info!(sessions, "left {sessions} sessions with systemd for the process that is started next");
                Reply::done(format!("{sessions} sessions wait for the process that is started next"))
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "the sessions cannot be left with systemd ({error}): this process continues to serve"
                );
                Reply::failed(format!("the sessions cannot be left to another process: {error}"))
            }
        };
        blocking(log::flush).await.ok();
        request.answer(reply).await;
        left.is_ok()
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
            // Lines of the new process come after the lines of this one.
            log::flush();
            site.give(&program, &attempt)
        };
        blocking(give).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())))
    }
}
