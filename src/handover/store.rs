//! What a process leaves to the next one when there is a time without any: systemd keeps it, as two
//! descriptors. One is a file in memory with the words, the other a socket in which all other sockets
//! wait: as many entries as there are connections would take systemd minutes.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;

use super::give::{GiveError, Site, batches};
use super::protocol::{self, Hello, Message, ProtocolError};
use super::take::Gathering;
use crate::os::{descriptors, systemd};
use crate::worker::handover::Ask;

/// The names under which systemd keeps them.
pub(crate) const WORDS: &str = "webws-words";
pub(crate) const SOCKETS: &str = "webws-sockets";

/// How long systemd may take to take them.
const SYSTEMD: Duration = Duration::from_secs(5);

/// What was left.
#[derive(Debug)]
pub(crate) struct Legacy {
    pub(crate) words: OwnedFd,
    pub(crate) sockets: OwnedFd,
}

impl Site {
    /// Leaves all sessions to whoever is started next; returns how many. It waits; not for async code.
    ///
    /// # Errors
    /// Why that was not possible. Everything goes on here then.
    pub(crate) fn leave(&self) -> Result<usize, GiveError> {
        let left = self.try_leave();
        if left.is_err() {
            systemd::forget(WORDS);
            systemd::forget(SOCKETS);
            self.go_on();
        }
        left
    }

    fn try_leave(&self) -> Result<usize, GiveError> {
        let here = |error: std::io::Error| GiveError::Here(error.to_string());
        let mut words = descriptors::memory_file(c"webws-words").map_err(here)?;
        let (ours, theirs) = UnixStream::pair().map_err(here)?;
        // What does not fit there is an error, and nothing to wait for.
        ours.set_nonblocking(true).map_err(here)?;
        self.come_to_rest()?;
        let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let left = Message::Left { hello: Hello::own(), at_ms: at_ms.try_into().unwrap_or(u64::MAX) };
        let mut write = |message: &Message, count| -> Result<(), GiveError> {
            words.write_all(&protocol::encode(message, count)?).map_err(here)
        };
        write(&left, 0)?;
        let mut count = 0;
        for (worker, asks) in self.asks.iter().enumerate() {
            let collected = self.collect(asks)?;
            for (sessions, sockets) in batches(collected.sessions) {
                count += sessions.len();
                write(&Message::Sessions { worker, sessions }, sockets.len())?;
                descriptors::send(&ours, b"s", &sockets)
                    .map_err(|error| GiveError::Here(format!("{count} sockets are too many to be kept: {error}")))?;
            }
            write(&Message::Texts { worker, texts: collected.texts }, 0)?;
        }
        write(&Message::End, 0)?;
        systemd::store(WORDS, words.as_fd()).map_err(here)?;
        systemd::store(SOCKETS, theirs.as_fd()).map_err(here)?;
        if !systemd::has_heard(SYSTEMD) {
            return Err(GiveError::Here("there is no systemd that keeps them".to_owned()));
        }
        Ok(count)
    }
}

impl Legacy {
    /// Makes workers that rest what others were; returns how many sessions there are. It waits; not for
    /// async code.
    ///
    /// # Errors
    /// When it makes no sense.
    pub(crate) fn take(self, asks: &[mpsc::Sender<Ask>]) -> Result<usize, ProtocolError> {
        // Nobody else must get it.
        systemd::forget(WORDS);
        systemd::forget(SOCKETS);
        let (mut words, carrier) = (File::from(self.words), UnixStream::from(self.sockets));
        // Everything is there, or never comes.
        carrier.set_nonblocking(true).map_err(ProtocolError::Io)?;
        words.rewind().map_err(ProtocolError::Io)?;
        let (Message::Left { hello, at_ms }, _) = protocol::next(&mut words)? else {
            return Err(ProtocolError::Nonsense("it does not begin as it should".to_owned()));
        };
        hello.check()?;
        let left_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms));
        let lost_for = left_at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        let mut gathering = Gathering::new(asks, Some(lost_for));
        loop {
            let (message, count) = protocol::next(&mut words)?;
            let sockets = match count {
                0 => Vec::new(),
                _ => descriptors::receive(&carrier, &mut [0]).map_err(ProtocolError::Io)?,
            };
            if !gathering.add(message, sockets)? {
                break;
            }
        }
        Ok(gathering.sessions)
    }
}
