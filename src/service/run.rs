//! Runs a server as the binary does: sockets and signals in; READY, STOPPING and WATCHDOG out.
//!
//! Works the same without systemd. May not enter: how connections are served, how they are handed over (`giver.rs`).

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::error::ServiceError;
use super::giver::Giver;
use super::inherit::{listen, resume, take_over};
use super::watch::{second_signal, watchdog};
use crate::admin::{control, status};
use crate::config::Config;
use crate::handover::{Predecessor, Program};
use crate::os;
use crate::server::{Ending, Server, ServerError};
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
/// As [`Server::bind`] and [`Server::run`]; when the sockets that systemd passed have another name; and when this
/// process was started to take over from another and could not.
pub async fn run_service(config: Config, extra: Extra) -> Result<(), ServiceError> {
    let on_hang_up = if extra == Extra::TestPage { HangUp::Stop } else { HangUp::HandOver };
    let mut signals = Signals::try_new(on_hang_up).map_err(ServiceError::Signals)?;
    // At the start: later, another file may be at the program's path.
    let program = Program::own();
    let broker = config.broker.to_string();
    let control = config.control.clone();
    let found = Predecessor::find(Some(&broker)).map_err(ServiceError::hand_over)?;
    let mut legacy = None;
    let (predecessor, server) = match found {
        None => (None, listen(config, &mut legacy)),
        Some((predecessor, heritage)) => {
            // Settings that a start would refuse are refused now, while the old process still serves.
            let server = Server::check(&config).map_err(ServerError::from);
            let server = server.and_then(|()| Server::taking_over(config, heritage));
            (Some(Arc::new(predecessor)), server.map_err(ServiceError::from))
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
    // The socket to the new process, and its id. Dropped last: the new process waits for the socket's end.
    let farewell = OnceCell::new();
    let control =
        control.map(|path| control::listen(&path, requests.clone()).map_err(|error| (path, error))).transpose();
    let control = match control {
        // Sessions that were taken over are served, even without a control socket.
        Err((path, error)) if has_sessions => {
            let path = path.display();
            tracing::error!(
                %error,
                %path,
                "the control socket {path} cannot be made ({error}): reload and upgrade do not work until a restart"
            );
            None
        }
        Err((path, source)) => return Err(ServiceError::Control { path, source }),
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
    let status = status::renew(metrics.clone(), site.workers.clone(), max_sessions);
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
    tokio::select! {
        biased;
        () = second_signal(told) => {
            if let Some((_, successor)) = farewell.get() {
                // The signal is meant for the process that serves.
                os::process::terminate(*successor);
                return Ok(());
            }
            let sessions = metrics.sessions();
            tracing::warn!(sessions, "stopped at once by a second signal, {sessions} sessions are cut off: {metrics}");
            Ok(())
        }
        ended = serving => {
            metrics.log_stopped(farewell.get().map(|(_, pid)| *pid));
            ended.map_err(ServiceError::from)
        }
        () = watchdog => Ok(()),
        () = status => Ok(()),
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
            "limits.max_sessions needs {wanted} descriptors, the limit is {limit}: raise LimitNOFILE and restart (a \
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
