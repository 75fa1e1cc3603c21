//! Runs a server as the binary does: sockets and signals in; READY, STOPPING and WATCHDOG out.
//!
//! Works the same without systemd. May not enter: how connections are served, how they are handed over (`giver.rs`).

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

use super::error::ServiceError;
use super::giver::Giver;
use super::origin::{Facts, Origin};
use super::watch::{second_signal, watchdog};
use crate::admin::control::{self, Control, Request};
use crate::admin::status;
use crate::config::Config;
use crate::handover::Program;
use crate::os;
use crate::server::{Ending, Running};
use crate::signals::{HangUp, Signals};

/// Requests to hand over that may wait: one is carried out, and the others get the reply that it is under way.
const MAX_REQUESTS: usize = 8;

/// What the service offers besides its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// Nothing.
    None,
    /// The test page at `/`.
    TestPage,
}

/// Runs a server as the binary does: on the sockets that systemd passed, else on `config.listen`.
///
/// At SIGTERM, SIGINT or SIGQUIT the server drains and ends; at a second one, it ends at once. SIGHUP, SIGUSR2 and
/// `upgrade` on the control socket start the binary again, and hand everything over to the new process. Other signals
/// are ignored.
///
/// # Errors
/// As [`crate::Server::bind`] and [`crate::Server::run`]; when the sockets that systemd passed have another name; and
/// when this process was started to take over from another and could not.
pub async fn run_service(config: Config, extra: Extra) -> Result<(), ServiceError> {
    let on_hang_up = if extra == Extra::TestPage { HangUp::Stop } else { HangUp::HandOver };
    let mut signals = Signals::try_new(on_hang_up).map_err(ServiceError::Signals)?;
    // At the start: later, another file may be at the program's path.
    let program = Program::own();
    let control = config.control.clone();
    let (mut running, origin, facts) = start(config, extra)?;
    let has_sessions = origin.has_sessions();
    origin.take_up(&mut running, &facts).await?;
    if extra == Extra::TestPage {
        show_page(&facts.addresses);
    }
    let (requests, mut requested) = mpsc::channel(MAX_REQUESTS);
    // The socket to the new process, and its id. Dropped last: the new process waits for the socket's end.
    let farewell = OnceCell::new();
    let control = RefCell::new(open_control(control, requests.clone(), has_sessions)?);
    for oddity in os::systemd::oddities() {
        tracing::warn!("{oddity}");
    }
    os::systemd::notify_ready(&format!("serving on {}", facts.addresses));
    let watchdog = watchdog(running.shards());
    let (tell, told) = oneshot::channel();
    let site = running.site();
    let metrics = facts.metrics;
    let status = status::renew(metrics.clone(), site.workers.clone(), facts.max_sessions);
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
        // The same streams, because a second signal may wait in them already.
        tell.send((signals, giver.is_suspended.get())).ok();
        ending
    });
    let successor = || farewell.get().map(|(_, pid)| *pid);
    tokio::select! {
        biased;
        () = second_signal(told) => {
            // After a hand-over, the signal is meant for the process that serves.
            successor().map_or_else(|| metrics.log_cut_off(), os::process::terminate);
            Ok(())
        }
        ended = serving => {
            metrics.log_stopped(successor());
            ended.map_err(ServiceError::from)
        }
        () = watchdog => Ok(()),
        () = status => Ok(()),
    }
}

/// Starts a server: its listeners and its workers. The sessions of another process are not there yet.
fn start(config: Config, extra: Extra) -> Result<(Running, Origin, Facts), ServiceError> {
    let broker = config.broker.to_string();
    let (server, origin) = Origin::find(config)?;
    let server = if extra == Extra::TestPage { server.with_test_page() } else { server };
    raise_limits(server.wanted_descriptors());
    let facts = Facts {
        addresses: server.addresses(),
        broker,
        workers: server.workers(),
        max_sessions: server.max_sessions(),
        memory: server.memory(),
        metrics: server.metrics(),
    };
    Ok((server.start()?, origin, facts))
}

/// Listens on the control socket, if one is configured.
fn open_control(
    path: Option<PathBuf>,
    requests: mpsc::Sender<Request>,
    has_sessions: bool,
) -> Result<Option<Control>, ServiceError> {
    let Some(path) = path else { return Ok(None) };
    match control::listen(&path, requests) {
        Ok(control) => Ok(Some(control)),
        // Sessions that were taken over are served, even without a control socket.
        Err(error) if has_sessions => {
            let path = path.display();
            tracing::error!(
                %error,
                %path,
                "the control socket {path} cannot be created ({error}): reload and upgrade do not work until a restart"
            );
            Ok(None)
        }
        Err(source) => Err(ServiceError::Control { path, source }),
    }
}

/// Raises the descriptor limit to what the settings need, if possible. A reload keeps the limits of the old process.
fn raise_limits(wanted: usize) {
    if let Err(error) = os::limit::raise_descriptors(wanted) {
        let limit = os::limit::descriptors();
        tracing::warn!(
            %error,
            limit,
            wanted,
            "limits.max_sessions needs {wanted} descriptors, but the limit is {limit}: raise LimitNOFILE and restart (a \
             reload keeps the limits of the old process)"
        );
    }
}

/// Logs the address of the test page, in a form that a terminal makes clickable.
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
