//! A server as a systemd service: sockets and signals in, READY, STOPPING and WATCHDOG out; and how it
//! is handed over to another process.
//!
//! Works the same without systemd. May not enter: how connections are served.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::admin::control::{self, Control, Outcome, Request, Wish};
use crate::admin::status;
use crate::clock::millis;
use crate::config::Config;
use crate::handover::protocol::{Line, ProtocolError};
use crate::handover::{Attempt, BreakOff, Done, GiveError, Legacy, Predecessor, Program, Site};
use crate::log;
use crate::metrics::{Metrics, Shard};
use crate::os;
use crate::server::{Ending, Running, Server, ServerError, advice};
use crate::signals::{HangUp, Signals, Wanted};

/// The name a socket has in its `.socket` unit (`FileDescriptorName=`).
const SOCKET_NAME: &str = "ws";

/// Requests to hand over that may wait: one is tried, and the others are told so.
const MAX_REQUESTS: usize = 8;

/// What the service does beside its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// Nothing.
    None,
    /// It serves the test page at `/`.
    TestPage,
}

/// Runs a server as the binary does: on the sockets that systemd handed over, else on
/// `config.listen`; until SIGTERM, SIGINT or SIGQUIT, then drains. A second one ends it at once. SIGHUP, SIGUSR2
/// or `upgrade` on the control socket start the binary again and hand everything over to it.
/// Other signals are ignored.
///
/// # Errors
/// As [`Server::bind`] and [`Server::run`], when the sockets handed over are not ours, and when this
/// process was started to take over from another and could not.
pub async fn run_service(config: Config, extra: Extra) -> Result<(), ServerError> {
    let on_hang_up = if extra == Extra::TestPage { HangUp::Stop } else { HangUp::HandOver };
    let signals = Signals::try_new(on_hang_up);
    let mut signals = signals.map_err(|error| ServerError::Activation(format!("signals: {error}")))?;
    // Now: later, another file may stand there.
    let program = Program::own();
    let broker = config.broker.to_string();
    let control = config.control.clone();
    let found = Predecessor::find(Some(&broker)).map_err(|error| ServerError::HandOver(error.to_string()))?;
    let mut legacy = None;
    let (predecessor, server) = match found {
        None => (None, listen(config, &mut legacy)),
        Some((predecessor, heritage)) => {
            // What a start would refuse, at the latest.
            let server = Server::check(&config).map_err(ServerError::from);
            let server = server.and_then(|()| Server::taking_over(config, heritage));
            (Some(Arc::new(predecessor)), server)
        }
    };
    let server = match (server, &predecessor) {
        (Err(error), Some(predecessor)) => {
            predecessor.refuse(&error.to_string());
            return Err(error);
        }
        (server, _) => server?,
    };
    let server = if extra == Extra::TestPage { server.with_test_page() } else { server };
    raise_limits(server.wanted_descriptors());
    let (metrics, workers, addresses) = (server.metrics(), server.workers(), server.addresses());
    let max_sessions = server.max_sessions();
    let own_version = env!("CARGO_PKG_VERSION");
    let mut running = server.start()?;
    let has_sessions = predecessor.is_some() || legacy.is_some();
    match predecessor {
        None => {
            if let Some(legacy) = legacy {
                resume(&mut running, legacy).await?;
            }
            tracing::info!(
                listen = addresses,
                broker,
                workers,
                max_sessions,
                "webws {own_version} serves on {addresses} with broker {broker}, {workers} workers and at most \
                 {max_sessions} WebSockets"
            );
        }
        Some(predecessor) => {
            let (version, its_control) = (predecessor.version.clone(), predecessor.control.clone());
            let sessions = take_over(&mut running, predecessor, &broker).await?;
            if let Some(path) = its_control.filter(|path| control.as_ref() != Some(path)) {
                os::socket_file::remove_dead(&path);
            }
            tracing::info!(
                listen = addresses,
                broker,
                workers,
                sessions,
                max_sessions,
                before = version,
                "webws {own_version} has taken over {sessions} sessions from webws {version} and serves on {addresses} \
                 with broker {broker}, {workers} workers and at most {max_sessions} WebSockets"
            );
        }
    }
    if extra == Extra::TestPage {
        show_page(&addresses);
    }
    let (requests, mut requested) = mpsc::channel(MAX_REQUESTS);
    // Dropped last: the process that takes over waits for that. And who that is.
    let farewell = OnceCell::new();
    let control =
        control.map(|path| control::listen(&path, requests.clone()).map_err(|error| (path, error))).transpose();
    let control = match control {
        // Sessions were taken over and are served, whatever else is wrong.
        Err((path, error)) if has_sessions => {
            let path = path.display();
            tracing::error!(
                %error,
                %path,
                "the control socket {path} cannot be made ({error}): reload and upgrade do not work until a restart"
            );
            None
        }
        Err((path, error)) => {
            let advice = advice("", &error);
            return Err(ServerError::Control(format!("{}: {error}{advice}", path.display())));
        }
        Ok(control) => control,
    };
    let control = RefCell::new(control);
    for oddity in os::systemd::oddities() {
        tracing::warn!("{oddity}");
    }
    os::systemd::notify_ready(&format!("serving on {addresses}"));
    let watchdog = watchdog(running.shards());
    let (tell, told) = oneshot::channel();
    let site = running.site();
    let status = status::renew(metrics.clone(), site.asks.clone(), max_sessions);
    let serving = running.run_until(async {
        let is_suspended = Cell::new(false);
        let metrics = metrics.clone();
        let giver = Giver { site, program, metrics, farewell: &farewell, control: &control, is_suspended };
        let ending = giver.serve(&mut signals, &mut requested).await;
        if ending == Ending::Drain {
            let sessions = giver.metrics.sessions();
            tracing::info!(sessions, "stopping: accepting no new connections, closing {sessions} sessions with 1001");
            os::systemd::notify_stopping("closing connections");
        }
        // The streams themselves: a second signal may be in them already.
        tell.send((signals, giver.is_suspended.get())).ok();
        ending
    });
    tokio::select! {
        biased;
        () = second_signal(told) => {
            if let Some((_, heir)) = farewell.get() {
                // It is meant for whoever serves.
                os::process::terminate(*heir);
                return Ok(());
            }
            let sessions = metrics.sessions();
            tracing::warn!(sessions, "stopped at once by a second signal, {sessions} sessions are cut off: {metrics}");
            Ok(())
        }
        ended = serving => {
            match farewell.get() {
                Some((_, pid)) => tracing::info!(pid, "stopped, process {pid} serves on: {metrics}"),
                None => tracing::info!("stopped: {metrics}"),
            }
            ended
        }
        () = watchdog => Ok(()),
        () = status => Ok(()),
    }
}

/// As many descriptors as the settings ask for, where the process may: a reload keeps the limits of the process before.
fn raise_limits(wanted: usize) {
    if let Err(error) = os::limit::raise_descriptors(wanted) {
        let limit = os::limit::descriptors();
        tracing::warn!(
            %error,
            limit,
            wanted,
            "limits.max_sessions needs {wanted} descriptors, the limit is {limit}: raise LimitNOFILE and restart (a \
             reload keeps the limits of the old process)"
        );
    }
}

/// Says where a browser finds the test page, as an address that a terminal makes clickable.
fn show_page(addresses: &str) {
    let listened = addresses.split(", ").filter_map(|address| address.strip_prefix("tcp:")?.parse::<SocketAddr>().ok());
    for mut address in listened {
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let page = format!("http://{address}/");
        tracing::info!(page, "the test page is at {page}");
    }
}

/// Takes everything over from another process; returns how many sessions, when that one has gone.
async fn take_over(running: &mut Running, predecessor: Arc<Predecessor>, broker: &str) -> Result<usize, ServerError> {
    let (asks, broker) = (running.site().asks, broker.to_owned());
    let taken = blocking(move || {
        let taken = predecessor.take(&asks, &broker);
        if taken.is_ok() {
            predecessor.await_end();
        }
        taken
    });
    let sessions = taken.await.and_then(|taken| taken.map_err(|error| error.to_string()));
    let sessions = sessions.map_err(ServerError::HandOver)?;
    running.own_listeners();
    Ok(sessions)
}

/// Goes on with the sessions that were left by a process that has ended.
async fn resume(running: &mut Running, legacy: Legacy) -> Result<(), ServerError> {
    let site = running.site();
    let taken = blocking(move || {
        let taken = legacy.take(&site.asks)?;
        site.go_on();
        Ok::<_, ProtocolError>(taken)
    });
    // With a part of it nobody would know what is missing: all end, the clients come back, and so do we.
    let sessions = taken.await.and_then(|taken| taken.map_err(|error| error.to_string()));
    let sessions = sessions.map_err(ServerError::HandOver)?;
    tracing::info!(sessions, "took up {sessions} sessions that the previous process left with systemd");
    running.own_listeners();
    Ok(())
}

/// Runs what waits on a thread for that.
async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(act).await.map_err(|error| error.to_string())
}

/// Who hands over when that is asked for.
struct Giver<'a> {
    site: Site,
    program: std::io::Result<Program>,
    metrics: Metrics,
    /// What the process that takes over waits for to be closed.
    farewell: &'a OnceCell<(Line, u32)>,
    control: &'a RefCell<Option<Control>>,
    /// Whether everything was left with systemd, whose SIGTERM follows.
    is_suspended: Cell<bool>,
}

impl Giver<'_> {
    /// Waits for the end, and hands over when asked to.
    async fn serve(&self, signals: &mut Signals, requested: &mut mpsc::Receiver<Request>) -> Ending {
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
        let left = blocking(move || site.leave()).await.unwrap_or_else(|error| Err(GiveError::Here(error)));
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
        blocking(give).await.unwrap_or_else(|error| Err(GiveError::Here(error)))
    }
}

/// A server on systemd's sockets or those of the settings, and what systemd kept for it.
fn listen(config: Config, legacy: &mut Option<Legacy>) -> Result<Server, ServerError> {
    let mut handed_over =
        os::systemd::take_descriptors().map_err(|error| ServerError::Activation(error.to_string()))?;
    *legacy = Legacy::among(&mut handed_over);
    let server = listen_on(config, handed_over)?;
    Ok(if legacy.is_some() { server.resting() } else { server })
}

fn listen_on(config: Config, handed_over: Vec<(OwnedFd, String)>) -> Result<Server, ServerError> {
    if handed_over.is_empty() {
        return Server::bind(config);
    }
    // systemd-socket-activate names them "unknown" unless told otherwise.
    if let Some((_, name)) = handed_over.iter().find(|(_, name)| name != SOCKET_NAME && name != "unknown") {
        return Err(ServerError::Activation(format!(
            "a socket is called '{name}', but only '{SOCKET_NAME}' is served: set FileDescriptorName={SOCKET_NAME} in the .socket unit"
        )));
    }
    Server::on(config, handed_over.into_iter().map(|(socket, _)| socket).collect())
}

/// Resolves at the second signal to stop. Behind `suspend` systemd sends the first one.
async fn second_signal(told: oneshot::Receiver<(Signals, bool)>) {
    let Ok((mut signals, is_suspended)) = told.await else { return std::future::pending().await };
    if is_suspended {
        signals.stop().await;
    }
    signals.stop().await;
}

/// Feeds systemd's watchdog while every worker makes progress; resolves never.
async fn watchdog(shards: Vec<Arc<Shard>>) {
    let Some(period) = os::systemd::watchdog_period() else { return std::future::pending().await };
    let mut seen: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
    // Who took over may have begun long before it was listened to.
    os::systemd::notify_watchdog();
    loop {
        tokio::time::sleep((period / 3).max(Duration::from_millis(200))).await;
        let now: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
        if seen.iter().zip(&now).all(|(before, now)| now > before) {
            os::systemd::notify_watchdog();
        }
        seen = now;
    }
}
