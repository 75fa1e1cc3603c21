//! A journald that only keeps what it is sent, in a mount namespace of its own, and webws that takes it for the
//! real one. Needs the right to mount (root, or user namespaces).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::program::Variables;
use super::{Process, START, holds_within, read_log};

/// An entry's fields by name.
pub(crate) type Entry = BTreeMap<String, String>;

#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Journal {
    pub(crate) fn new() -> Journal {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        let socket = UnixDatagram::bind(dir.path().join("journal/socket")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Journal { socket, dir }
    }

    /// webws with `arguments`, whose stderr is this journal's, as far as it can tell.
    pub(crate) fn spawn(&self, arguments: &[&str], environment: Variables<'_>) -> Process {
        let stderr = OpenOptions::new().create(true).append(true).open(self.stderr()).unwrap();
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal \
            && mount --bind \"$JOURNAL\" /run/systemd/journal \
            && export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_webws")]);
        command.args(arguments).envs(environment.iter().copied()).env("JOURNAL", self.dir.path().join("journal"));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Process::spawn(&mut command, Signal::SIGKILL, "apt-get install util-linux")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What was written to stderr beside the journal.
    pub(crate) fn stderr(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// The entries that are there, in order.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut buffer = vec![0; 1 << 20];
        let mut entries = Vec::new();
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if length > 0 {
                entries.push(parse(&buffer[..length]));
            }
        }
        entries
    }

    /// Waits until webws accepts on a socket.
    pub(crate) async fn accepts(&self, socket: &Path) {
        let accepts = holds_within(START, || async { tokio::net::UnixStream::connect(socket).await.is_ok() }).await;
        assert!(accepts, "webws did not start: {}\n{:?}", read_log(&self.stderr()), self.entries());
    }
}

/// The form with lengths of the journal's native protocol.
fn parse(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let name = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = u64::from_le_bytes(bytes[end + 1..end + 9].try_into().unwrap());
        let length = usize::try_from(length).unwrap();
        let value = &bytes[end + 9..end + 9 + length];
        assert_eq!(bytes[end + 9 + length], b'\n', "a value does not end where it says");
        entry.insert(name, String::from_utf8(value.to_vec()).unwrap());
        bytes = &bytes[end + 10 + length..];
    }
    entry
}
