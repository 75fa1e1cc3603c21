//! A listening socket, or one for handoffs, and the socket file that was made for it.
//!
//! May not enter: accepted connections.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::error::ServerError;
use crate::config::{Config, Listen};
use crate::os::{self, socket_file::FileId};

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    /// The configured address; none when the embedding program or systemd passed the socket.
    pub(super) listen: Option<Listen>,
    /// The socket file that webws made for the socket.
    pub(super) file: Option<(PathBuf, FileId)>,
    /// Whether this process removes the file at its end; false while the file belongs to another process.
    pub(super) owns_file: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, id)) = self.file.as_ref().filter(|_| self.owns_file) {
            os::socket_file::remove_own(path, *id);
        }
    }
}

/// Listens at a configured address.
///
/// # Errors
/// When the address cannot be used.
pub(super) fn bind(listen: &Listen, config: &Config) -> Result<Listener, ServerError> {
    try_bind(listen, config).map_err(|source| ServerError::Listen { address: listen.to_string(), source })
}

fn try_bind(listen: &Listen, config: &Config) -> io::Result<Listener> {
    let (mode, group) = (config.socket_mode.0, config.socket_group.as_deref());
    let (socket, file) = match listen {
        Listen::Unix(path) => {
            let (socket, id) = os::socket_file::bind_unix(path, mode, group)?;
            (socket, Some((path.clone(), id)))
        }
        Listen::Handoff(path) => {
            let (socket, id) = os::socket_file::bind_datagram(path, mode, group)?;
            (socket, Some((path.clone(), id)))
        }
        Listen::Tcp(address) => (std::net::TcpListener::bind(address)?.into(), None),
    };
    let listener = Listener { socket, listen: Some(listen.clone()), file, owns_file: true };
    prepare(listener.socket.as_fd())?;
    Ok(listener)
}

/// Sets the options of a listening socket, or of one for handoffs.
///
/// # Errors
/// When the socket is neither.
pub(super) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    if os::handoff::is_handoff(socket) {
        return os::handoff::prepare(socket);
    }
    if !os::socket::is_listening(socket) {
        return Err(io::Error::other(
            "it is neither a listening stream socket nor a Unix datagram socket (ListenStream= and ListenDatagram= in the \
             .socket unit)",
        ));
    }
    os::socket::prepare_listener(socket)
}
