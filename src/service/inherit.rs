//! A server's start: listeners from systemd or its own, and the sessions of another process.
//!
//! May not enter: how connections are served.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::blocking::blocking;
use super::error::{SOCKET_NAME, ServiceError};
use crate::config::Config;
use crate::handover::protocol::ProtocolError;
use crate::handover::{Legacy, Predecessor};
use crate::os;
use crate::server::{Running, Server};

/// A server on systemd's sockets, or else on those of the settings. `legacy` gets the sessions that systemd kept.
pub(super) fn listen(config: Config, legacy: &mut Option<Legacy>) -> Result<Server, ServiceError> {
    let mut handed_over = os::systemd::take_descriptors().map_err(ServiceError::Activation)?;
    *legacy = Legacy::among(&mut handed_over);
    let server = listen_on(config, handed_over)?;
    Ok(if legacy.is_some() { server.awaiting_sessions() } else { server })
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
    // Part of the sessions is worse than none: this process ends with all of them, and is started again without.
    let sessions = taken.await.map_err(ServiceError::hand_over)?.map_err(ServiceError::hand_over)?;
    tracing::info!(sessions, "took up {sessions} sessions that the previous process left with systemd");
    running.own_listeners();
    Ok(())
}
