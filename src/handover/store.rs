//! What a process leaves to the next one when there is a time without any: systemd keeps it, as three
//! descriptors. One is a file in memory with the words, the others are the two ends of a socket pair in
//! which all other sockets wait: an entry for each connection costs systemd the square of their number.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use super::error::GiveError;
use super::give::Site;
use super::parcel::{batches, texts_of};
use super::protocol::{self, Hello, Message, ProtocolError};
use super::take::{Gathering, lose};
use crate::os::{descriptors, systemd};
use crate::worker::{Mailbox, Missing};

/// The names under which systemd keeps them.
const WORDS: &str = "webws-words";
const SOCKETS: &str = "webws-sockets";
/// The end into which the sockets were put. Nobody needs it, but systemd throws away a socket whose other
/// end is closed (before 246 always).
const OTHER_END: &str = "webws-other-end";

/// What is older was meant for a process that never came: its clients have given up.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long systemd may take to take them.
const SYSTEMD: Duration = Duration::from_secs(5);

/// What was left.
#[derive(Debug)]
pub(crate) struct Legacy {
    words: OwnedFd,
    sockets: OwnedFd,
}

/// Nothing is kept any more.
fn forget() {
    [WORDS, SOCKETS, OTHER_END].into_iter().for_each(systemd::forget);
}

impl Site {
    /// Leaves all sessions to whoever is started next; returns how many. It waits; not for async code.
    ///
    /// # Errors
    /// Why that was not possible. Everything goes on here then.
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
        let mut words = descriptors::memory_file(c"webws-words").map_err(here)?;
        let (ours, theirs) = UnixStream::pair().map_err(here)?;
        // What does not fit there is an error, and nothing to wait for.
        ours.set_nonblocking(true).map_err(here)?;
        forget();
        self.quiesce()?;
        if self.deployment.is_none() {
            // What was published has to be heard.
            self.await_marker()?;
        }
        let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let left = Message::Left { hello: Hello::own(), at_ms: at_ms.try_into().unwrap_or(u64::MAX) };
        let mut write = |message: &Message, count| -> Result<(), GiveError> {
            words.write_all(&protocol::encode(message, count)?).map_err(here)
        };
        write(&left, 0)?;
        let mut count = 0;
        for (worker, mailbox) in self.workers.iter().enumerate() {
            let collected = self.collect(mailbox)?;
            for (sessions, sockets) in batches(collected.sessions) {
                count += sessions.len();
                write(&Message::Sessions { worker, sessions }, sockets.len())?;
                descriptors::send(&ours, b"s", &sockets)
                    .map_err(|error| GiveError::Here(format!("{count} sockets are too many to be kept: {error}")))?;
            }
            for message in texts_of(worker, collected.texts, collected.away) {
                write(&message, 0)?;
            }
        }
        write(&Message::End, 0)?;
        systemd::store(WORDS, words.as_fd()).map_err(here)?;
        systemd::store(SOCKETS, theirs.as_fd()).map_err(here)?;
        systemd::store(OTHER_END, ours.as_fd()).map_err(here)?;
        let has_heard = systemd::has_heard(SYSTEMD);
        // Heard is not kept: it keeps nothing where it was not told to (FileDescriptorStoreMax=).
        drop(theirs);
        if !has_heard || descriptors::is_abandoned(&ours) {
            return Err(GiveError::Here(
                "there is no systemd that keeps them (FileDescriptorStoreMax=4 in the unit)".to_owned(),
            ));
        }
        Ok(count)
    }
}

impl Legacy {
    /// What is among descriptors that systemd gave, taken out of them.
    pub(crate) fn among(given: &mut Vec<(OwnedFd, String)>) -> Option<Self> {
        let is_ours = |(_, name): &mut (OwnedFd, String)| [WORDS, SOCKETS, OTHER_END].contains(&name.as_str());
        let mut ours: Vec<_> = given.extract_if(.., is_ours).collect();
        let mut only = |wanted: &str| {
            let mut found = ours.extract_if(.., |(_, name)| name == wanted).map(|(descriptor, _)| descriptor);
            found.next().filter(|_| found.next().is_none())
        };
        match (only(WORDS), only(SOCKETS)) {
            (Some(words), Some(sockets)) => Some(Self { words, sockets }),
            (None, None) => None,
            _ => {
                tracing::error!(
                    "systemd has kept only a part of what the previous process left: its WebSockets are lost, and \
                     their clients connect again"
                );
                forget();
                None
            }
        }
    }

    /// Makes workers that rest what others were; returns how many sessions there are. It waits; not for
    /// async code.
    ///
    /// # Errors
    /// When it makes no sense.
    pub(crate) fn take(self, workers: &[Mailbox]) -> Result<usize, ProtocolError> {
        // Nobody else must get it.
        forget();
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
        if lost_for > MAX_AGE {
            return Err(ProtocolError::Nonsense(format!("it is {lost_for:.0?} old")));
        }
        let mut gathering = Gathering::new(workers);
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
        // Redis may have been away before.
        lose(workers, lost_for + gathering.away, Missing::Restart);
        Ok(gathering.sessions)
    }
}
