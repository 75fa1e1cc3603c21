//! Why a hand-over did not come about, as the old process sees it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use super::protocol::{Message, ProtocolError};
use crate::worker::Ended;

/// Why all goes on here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GiveError {
    #[error("{} cannot be started: {source}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("the new process: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the new process ended ({0}); what it wrote to the log says why")]
    Ended(ExitStatus),
    /// In the streams of Redis, which may not be there.
    #[error("{0}")]
    NoMark(Box<GiveError>),
    #[error("{0}; this process has lost Redis as well: systemctl restart keeps the WebSockets too, with a gap")]
    Away(Box<GiveError>),
    #[error("{0}")]
    Here(String),
}

pub(super) fn out_of_turn(message: &Message) -> GiveError {
    let words = format!("{message:?}");
    let name = words.split([' ', '(', '{']).next().unwrap_or_default();
    GiveError::Protocol(ProtocolError::Nonsense(format!("{name} is not what should come here")))
}

impl From<Ended> for GiveError {
    fn from(ended: Ended) -> Self {
        Self::Here(ended.to_string())
    }
}
