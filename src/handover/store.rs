//! A hand-over through systemd, for a time without a process: one process leaves its sessions, the next takes them.
//!
//! systemd keeps three descriptors. One is a memory file with the snapshots. The other two are the ends of a socket
//! pair, and the sessions' sockets wait inside the pair: with one entry per connection, systemd's time grows with the
//! square of their number. May not enter: a hand-over between two processes that both run (`give.rs`, `take.rs`).

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use super::error::GiveError;
use super::give::Site;
use super::parcel::{batches, message_parts};
use super::protocol::{self, Hello, Message, ProtocolError};
use super::take::{Gathering, lose};
use crate::os::{descriptors, systemd};
use crate::worker::{Mailbox, Missing};

/// The names under which systemd keeps the descriptors: the memory file with the snapshots, and the end of the socket
/// pair from which the next process receives the sockets. Other versions read these names.
const SNAPSHOTS: &str = "webws-words";
const SOCKETS: &str = "webws-sockets";
/// The end into which the sockets were sent. It is never read; systemd drops a socket whose other end is closed
/// (before 246 always).
const OTHER_END: &str = "webws-other-end";

/// Older snapshots are refused: their clients have given up.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long systemd may take to store the descriptors.
const STORING: Duration = Duration::from_secs(5);

/// The sessions that the previous process left with systemd.
#[derive(Debug)]
pub(crate) struct Legacy {
    snapshots: OwnedFd,
    sockets: OwnedFd,
}

/// Removes all three descriptors from systemd's store.
fn forget() {
    [SNAPSHOTS, SOCKETS, OTHER_END].into_iter().for_each(systemd::forget);
}

impl Site {
    /// Leaves all sessions to the process that is started next; returns their number. Blocks; not for async code.
    ///
    /// # Errors
    /// Why the sessions could not be left. This process resumes then.
    pub(crate) fn leave(&self) -> Result<usize, GiveError> {
        let left = self.try_leave();
        if left.is_err() {
            forget();
            self.resume();
        }
        left
    }

    fn try_leave(&self) -> Result<usize, GiveError> {
        let here = |error: std::io::Error| GiveError::Here(error.to_string());
        let mut snapshots = descriptors::memory_file(c"webws-words").map_err(here)?;
        let (ours, theirs) = UnixStream::pair().map_err(here)?;
        // A full socket pair is an error: its other end is not read before the next process starts.
        ours.set_nonblocking(true).map_err(here)?;
        forget();
        self.quiesce()?;
        if self.deployment.is_none() {
            // The embedded broker ends with this process: its publications are delivered first.
            self.await_marker()?;
        }
        let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let left = Message::Left { hello: Hello::own(), at_ms: at_ms.try_into().unwrap_or(u64::MAX) };
        let mut write = |message: &Message, count| -> Result<(), GiveError> {
            snapshots.write_all(&protocol::encode(message, count)?).map_err(here)
        };
        write(&left, 0)?;
        // No histories: nothing tells which publications of the time without a process are missing behind them.
        let mut count = 0;
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let collected = self.collect(mailbox)?;
            for (sessions, sockets) in batches(collected.sessions) {
                count += sessions.len();
                write(&Message::Sessions { worker, sessions }, sockets.len())?;
                descriptors::send(&ours, b"s", &sockets)
                    .map_err(|error| GiveError::Here(format!("{count} sockets are too many to be kept: {error}")))?;
            }
            for message in message_parts(worker, collected.messages, collected.away) {
                write(&message, 0)?;
            }
        }
        write(&Message::End, 0)?;
        systemd::store(SNAPSHOTS, snapshots.as_fd()).map_err(here)?;
        systemd::store(SOCKETS, theirs.as_fd()).map_err(here)?;
        systemd::store(OTHER_END, ours.as_fd()).map_err(here)?;
        let has_heard = systemd::has_heard(STORING);
        // systemd answers and still keeps nothing where the unit sets no FileDescriptorStoreMax=.
        drop(theirs);
        if !has_heard || descriptors::is_abandoned(&ours) {
            return Err(GiveError::Here(
                "systemd does not keep the sockets (set FileDescriptorStoreMax=4 in the unit)".to_owned(),
            ));
        }
        Ok(count)
    }
}

impl Legacy {
    /// Takes the store's descriptors out of all descriptors that systemd passed to this process.
    pub(crate) fn among(given: &mut Vec<(OwnedFd, String)>) -> Option<Self> {
        let is_ours = |(_, name): &mut (OwnedFd, String)| [SNAPSHOTS, SOCKETS, OTHER_END].contains(&name.as_str());
        let mut ours: Vec<_> = given.extract_if(.., is_ours).collect();
        let mut only = |wanted: &str| {
            let mut found = ours.extract_if(.., |(_, name)| name == wanted).map(|(descriptor, _)| descriptor);
            found.next().filter(|_| found.next().is_none())
        };
        match (only(SNAPSHOTS), only(SOCKETS)) {
            (Some(snapshots), Some(sockets)) => Some(Self { snapshots, sockets }),
            (None, None) => None,
            _ => {
                tracing::error!(
                    "systemd kept only some of the descriptors that the previous process left: its WebSockets \
                     are closed, and their clients must connect again"
                );
                forget();
                None
            }
        }
    }

    /// Gives the sessions to workers that are quiesced; returns the number of sessions. Blocks; not for async code.
    ///
    /// # Errors
    /// When the snapshots are too old, or cannot be decoded.
    pub(crate) fn take(self, workers: &[Mailbox]) -> Result<usize, ProtocolError> {
        // A later process must not take the same sessions.
        forget();
        let (mut snapshots, carrier) = (File::from(self.snapshots), UnixStream::from(self.sockets));
        // The process that sent the sockets has ended: no more of them come.
        carrier.set_nonblocking(true).map_err(ProtocolError::Io)?;
        snapshots.rewind().map_err(ProtocolError::Io)?;
        let (Message::Left { hello, at_ms }, _) = protocol::next(&mut snapshots)? else {
            return Err(ProtocolError::Nonsense("the snapshots do not start with their version and time".to_owned()));
        };
        hello.check()?;
        let left_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at_ms));
        let lost_for = left_at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
        if lost_for > MAX_AGE {
            return Err(ProtocolError::Nonsense(format!("the snapshots are {lost_for:.0?} old")));
        }
        let mut gathering = Gathering::new(workers);
        loop {
            let (message, count) = protocol::next(&mut snapshots)?;
            let sockets = match count {
                0 => Vec::new(),
                _ => descriptors::receive(&carrier, &mut [0]).map_err(ProtocolError::Io)?,
            };
            if !gathering.add(message, sockets)? {
                break;
            }
        }
        // Redis may have been away before the previous process ended.
        lose(workers, lost_for + gathering.away, Missing::Restart);
        Ok(gathering.sessions)
    }
}
