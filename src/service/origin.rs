//! The source of a new server's listeners and sessions: another process, systemd, or none.
//!
//! May not enter: how connections are served.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::blocking::blocking;
use super::error::{SOCKET_NAME, ServiceError};
use crate::config::Config;
use crate::handover::protocol::ProtocolError;
use crate::handover::{Heritage, Legacy, Predecessor};
use crate::metrics::Metrics;
use crate::os;
use crate::server::{Running, Server, ServerError};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The source of a new server's sessions.
#[derive(Debug)]
pub(super) enum Origin {
    /// None: the server starts without sessions.
    Nowhere,
    /// systemd has kept the sessions of a process that has ended.
    Store(Legacy),
    /// An old process, which still serves.
    Process(Arc<Predecessor>),
}

/// The facts of a new server that its log names.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) addresses: String,
    pub(super) broker: String,
    pub(super) workers: usize,
    pub(super) max_sessions: usize,
    /// What the process may use beyond its start, in bytes.
    pub(super) memory: usize,
    pub(super) metrics: Metrics,
}

impl Origin {
    /// A new server and the source of its sessions. The server has the listeners of the old process if this process was
    /// started to take over, and else those of systemd or its own. When it cannot start, the old process logs the
    /// reason.
    pub(super) fn find(config: Config) -> Result<(Server, Self), ServiceError> {
        let broker = config.broker.to_string();
        let found = Predecessor::find(Some(&broker)).map_err(ServiceError::hand_over)?;
        let Some((predecessor, heritage)) = found else { return listen(config) };
        match taking_over(config, heritage) {
            Ok(server) => Ok((server, Self::Process(Arc::new(predecessor)))),
            Err(error) => {
                predecessor.refuse(&error.to_string());
                Err(error.into())
            }
        }
    }

    pub(super) fn has_sessions(&self) -> bool {
        !matches!(self, Self::Nowhere)
    }

    /// Takes up the sessions, and logs that the server serves.
    pub(super) async fn take_up(self, running: &mut Running, facts: &Facts) -> Result<(), ServiceError> {
        match self {
            Self::Nowhere => facts.log_start(),
            Self::Store(legacy) => {
                resume(running, legacy).await?;
                facts.log_start();
            }
            Self::Process(predecessor) => {
                let (version, control) = (predecessor.version.clone(), predecessor.control.clone());
                let sessions = take_over(running, predecessor, &facts.broker).await?;
                if let Some(path) = control.filter(|path| running.control() != Some(path)) {
                    os::socket_file::remove_dead(&path);
                }
                facts.log_hand_over(&version, sessions);
            }
        }
        Ok(())
    }
}

impl Facts {
    fn memory_mb(&self) -> usize {
        self.memory / 1_000_000
    }

    fn log_start(&self) {
        let Self { addresses: listen, broker, workers, max_sessions, .. } = self;
        let memory_mb = self.memory_mb();
        tracing::info!(listen, broker, workers, max_sessions, memory_mb, "webws {VERSION} {self}");
    }

    fn log_hand_over(&self, before: &str, sessions: usize) {
        let Self { addresses: listen, broker, workers, max_sessions, .. } = self;
        let memory_mb = self.memory_mb();
        tracing::info!(
            listen,
            broker,
            workers,
            sessions,
            max_sessions,
            memory_mb,
            before,
            "webws {VERSION} has taken over {sessions} sessions from webws {before} and {self}"
        );
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addresses, broker, workers, max_sessions, .. } = self;
        let memory = self.memory_mb();
        write!(
            f,
            "serves on {addresses} with broker {broker}, {workers} workers, at most {max_sessions} WebSockets and {memory} \
             MB of memory"
        )
    }
}

/// A server on the old process' listeners.
fn taking_over(config: Config, heritage: Heritage) -> Result<Server, ServerError> {
    // Settings that a start would refuse are refused now, while the old process still serves.
    Server::check(&config)?;
    Server::taking_over(config, heritage)
}

/// A server on systemd's sockets, or else on those of the settings.
fn listen(config: Config) -> Result<(Server, Origin), ServiceError> {
    let mut handed_over = os::systemd::take_descriptors().map_err(ServiceError::Activation)?;
    let legacy = Legacy::among(&mut handed_over);
    let server = listen_on(config, handed_over)?;
    Ok(match legacy {
        Some(legacy) => (server.awaiting_sessions(), Origin::Store(legacy)),
        None => (server, Origin::Nowhere),
    })
}

fn listen_on(config: Config, handed_over: Vec<(OwnedFd, String)>) -> Result<Server, ServiceError> {
    if handed_over.is_empty() {
        return Ok(Server::bind(config)?);
    }
    // systemd-socket-activate names them "unknown" unless told otherwise.
    if let Some((_, name)) = handed_over.iter().find(|(_, name)| name != SOCKET_NAME && name != "unknown") {
        return Err(ServiceError::ForeignSocket { name: name.clone() });
    }
    Ok(Server::on(config, handed_over.into_iter().map(|(socket, _)| socket).collect())?)
}

/// Takes everything over from the old process; returns the number of sessions once the old process has ended.
pub(super) async fn take_over(
    running: &mut Running,
    predecessor: Arc<Predecessor>,
    broker: &str,
) -> Result<usize, ServiceError> {
    let (workers, broker) = (running.site().workers, broker.to_owned());
    let taken = blocking(move || {
        let taken = predecessor.take(&workers, &broker);
        if taken.is_ok() {
            predecessor.await_end();
        }
        taken
    });
    let sessions = taken.await.map_err(ServiceError::hand_over)?.map_err(ServiceError::hand_over)?;
    running.own_listeners();
    Ok(sessions)
}

/// Resumes the sessions that a process left before its end.
pub(super) async fn resume(running: &mut Running, legacy: Legacy) -> Result<(), ServiceError> {
    let site = running.site();
    let taken = blocking(move || {
        let taken = legacy.take(&site.workers)?;
        site.resume();
        Ok::<_, ProtocolError>(taken)
    });
    // A part of the sessions is worse than none: this process ends with all of them, and is started again without.
    let sessions = taken.await.map_err(ServiceError::hand_over)?.map_err(ServiceError::hand_over)?;
    tracing::info!(sessions, "resumed {sessions} sessions that the previous process left with systemd");
    running.own_listeners();
    Ok(())
}
