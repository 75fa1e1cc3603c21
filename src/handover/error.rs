//! Why a hand-over failed, as the old process sees it. May not enter: the steps of a hand-over.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::protocol::{Message, ProtocolError};
use crate::worker::Ended;

/// Why the old process continues to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GiveError {
    #[error("{} cannot be started: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("the new process: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the new process ended ({0}); its log lines say why")]
    Ended(ExitStatus),
    /// The marker could not be set: Redis may be away.
    #[error("{0}")]
    NoMarker(Box<GiveError>),
    #[error(
        "{0}; the old process has lost Redis as well: `systemctl restart` also keeps the WebSockets, but leaves a gap"
    )]
    Away(Box<GiveError>),
    #[error("{0}")]
    Here(String),
}

pub(super) fn out_of_turn(message: &Message) -> GiveError {
    let text = format!("{message:?}");
    let name = text.split([' ', '(', '{']).next().unwrap_or_default();
    GiveError::Protocol(ProtocolError::Nonsense(format!("{name} is out of turn")))
}

impl From<Ended> for GiveError {
    fn from(ended: Ended) -> Self {
        Self::Here(ended.to_string())
    }
}
