//! Hands over when a signal or the control socket asks for it, until the server is to end.
//!
//! May not enter: what the two processes say to each other.

use std::cell::{Cell, OnceCell, RefCell};

use tokio::sync::mpsc;

use super::blocking::blocking;
use crate::admin::control::{Control, Outcome, Request, UPGRADING, Wish};
use crate::clock::millis;
use crate::handover::protocol::Line;
use crate::handover::{Attempt, BreakOff, Done, GiveError, LONGEST, Program, Site};
use crate::log;
use crate::metrics::Metrics;
use crate::os;
use crate::server::Ending;
use crate::signals::{Signals, Wanted};

// A command at the control socket waits longer than any hand-over.
const _: () = assert!(LONGEST.as_millis() < UPGRADING.as_millis());

/// Who hands over when that is asked for.
pub(super) struct Giver<'a> {
    pub(super) site: Site,
    pub(super) program: std::io::Result<Program>,
    pub(super) metrics: Metrics,
    /// What the process that takes over waits for to be closed.
    pub(super) farewell: &'a OnceCell<(Line, u32)>,
    pub(super) control: &'a RefCell<Option<Control>>,
    /// Whether everything was left with systemd, whose SIGTERM follows.
    pub(super) is_suspended: Cell<bool>,
}

impl Giver<'_> {
    /// Waits for the end, and hands over when asked to.
    pub(super) async fn serve(&self, signals: &mut Signals, requested: &mut mpsc::Receiver<Request>) -> Ending {
        loop {
            let mut request = tokio::select! {
                wanted = signals.next() => match wanted {
                    Wanted::Stop => return Ending::Drain,
                    Wanted::HandOver => None,
                },
                request = requested.recv() => request,
            };
            if let Some(request) = request.take_if(|request| request.wish == Wish::Suspend) {
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
            let outcome = loop {
                tokio::select! {
                    outcome = &mut giving => break outcome,
                    // A second signal to stop is left for later: it ends the process at once.
                    wanted = signals.next(), if !is_stopping => match wanted {
                        Wanted::Stop => {
                            // When it is too late for that, the other is told to stop, in our place.
                            is_stopping = true;
                            attempt.break_off();
                        }
                        Wanted::HandOver => tracing::warn!("{}", Outcome::BUSY),
                    },
                    Some(other) = requested.recv() => {
                        tracing::warn!("{}", Outcome::BUSY);
                        other.answer(Outcome::busy()).await;
                    }
                }
            };
            let words = match &outcome {
                Ok(done) => Outcome::done(format!(
                    "{} sessions are with process {} (webws {}) now; nothing was served for {} ms",
                    done.sessions,
                    done.pid,
                    done.version,
                    done.standstill.as_millis()
                )),
                Err(error) if is_stopping => Outcome::failed(format!("not handed over: {error}")),
                Err(error) => Outcome::failed(format!("not handed over, everything goes on as before: {error}")),
            };
            match &outcome {
                Ok(Done { pid, sessions, standstill, .. }) => {
                    let standstill_ms = millis(*standstill);
                    tracing::info!(
                        pid,
                        sessions,
                        standstill_ms,
                        "handed over {sessions} sessions to process {pid}; nothing was served for {standstill_ms} ms"
                    );
                }
                Err(_) => tracing::error!("{}", words.text()),
            }
            // Before the answer: who reads it finds the line.
            blocking(log::flush).await.ok();
            if let Ok(done) = &outcome {
                // Before anybody hears of it, and asks systemd to stop whom it takes for the main process.
                os::systemd::notify_main_process(done.pid);
            }
            if outcome.is_ok() {
                // Who comes from now on shall find the other.
                self.control.take().into_iter().for_each(Control::leave);
            }
            if let Some(request) = request {
                request.answer(words).await;
            }
            match outcome {
                Ok(done) => {
                    while let Ok(late) = requested.try_recv() {
                        late.answer(Outcome::elsewhere()).await;
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

    /// Leaves the sessions to whoever is started next; says whether that was possible.
    async fn suspend(&self, request: Request) -> bool {
        let site = self.site.clone();
        let left = blocking(move || site.leave()).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())));
        let outcome = match &left {
            Ok(sessions) => {
                tracing::info!(sessions, "left {sessions} sessions with systemd for the process that is started next");
                Outcome::done(format!("{sessions} sessions wait for the process that is started next"))
            }
            Err(error) => {
                tracing::error!(%error, "the sessions cannot be left with systemd ({error}): this process serves on");
                Outcome::failed(format!("the sessions cannot be left to another process: {error}"))
            }
        };
        blocking(log::flush).await.ok();
        request.answer(outcome).await;
        left.is_ok()
    }

    async fn give(&self, attempt: Attempt) -> Result<Done, GiveError> {
        let program = match &self.program {
            Ok(program) => program.clone(),
            Err(error) => return Err(GiveError::Here(format!("nobody knows which program this is: {error}"))),
        };
        let sessions = self.metrics.sessions();
        tracing::info!(sessions, "handing over {sessions} sessions to a new process");
        let site = self.site.clone();
        let give = move || {
            // The lines of the new process stand behind.
            log::flush();
            site.give(&program, &attempt)
        };
        blocking(give).await.unwrap_or_else(|error| Err(GiveError::Here(error.to_string())))
    }
}
