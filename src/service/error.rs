//! Why a service does not start, or ended. May not enter: how a service starts.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::server::{ServerError, advice};

/// The name of a socket in its `.socket` unit (`FileDescriptorName=`).
pub(super) const SOCKET_NAME: &str = "ws";

/// Why the service does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The server does not start, or ended.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The system refuses the signal handlers.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// The sockets that systemd handed over cannot be used.
    #[error("socket activation: {0}")]
    Activation(#[source] io::Error),
    /// A socket that systemd handed over has the name of another service.
    #[error(
        "socket activation: a socket is named '{name}', but only '{SOCKET_NAME}' is served: set \
         FileDescriptorName={SOCKET_NAME} in the .socket unit"
    )]
    ForeignSocket {
        /// The socket's `FileDescriptorName=`.
        name: String,
    },
    /// This process was started to take over from another, and could not: the other process continues.
    #[error("this process cannot take over: {0}")]
    HandOver(#[source] Box<dyn Error + Send + Sync>),
    /// The control socket cannot be made.
    #[error("the control socket {} cannot be created: {source}{}", path.display(), advice("", source))]
    Control {
        /// The setting `control`.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ServiceError {
    pub(super) fn hand_over(error: impl Error + Send + Sync + 'static) -> Self {
        Self::HandOver(Box::new(error))
    }
}
