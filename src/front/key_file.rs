//! A file of keys, read again after a change: keys are rotated without a reload.
//!
//! A file that cannot be read, or is malformed, leaves the keys as they were: an editor may be in the middle of a save.
//! May not enter: what a key verifies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::os;
use crate::throttle::Throttle;

/// How often the file is looked at, at most, when a request needs its keys. Chosen: one system call a second.
const PATIENCE: Duration = Duration::from_secs(1);

/// A longer file has no keys.
const MAX_BYTES: u64 = 1 << 20;

/// What begins the name of a credential of systemd.
const CREDENTIAL: &str = "credential:";

/// Why a file yields no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyFault {
    #[error("systemd passes no credential '{0}' (LoadCredential= in the unit)")]
    NoCredential(String),
    #[error("{path} cannot be read: {source}; the user that webws runs as must be able to read it")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path}: {why}")]
    Malformed { path: PathBuf, why: String },
}

/// What a file looked like when it was read.
type Stamp = (u64, u64, u64, i64, i64);

/// A file, and what was made of its text.
#[derive(Debug)]
pub(super) struct KeyFile<K> {
    path: PathBuf,
    parse: fn(&str) -> Result<K, String>,
    looked_at: Cell<Option<Instant>>,
    stamp: Cell<Option<Stamp>>,
    keys: RefCell<Option<K>>,
}

impl<K> KeyFile<K> {
    /// A file by its path, or a credential of systemd: `credential:NAME`.
    pub(super) fn new(path: PathBuf, parse: fn(&str) -> Result<K, String>) -> Self {
        Self { path, parse, looked_at: Cell::new(None), stamp: Cell::new(None), keys: RefCell::new(None) }
    }

    /// What is wrong with the file now.
    pub(super) fn fault(&self) -> Option<KeyFault> {
        load(&self.path, self.parse).err()
    }

    /// Gives `f` the keys, after a look at the file. `None` when there were never any.
    pub(super) fn read<R>(&self, f: impl FnOnce(&K) -> R) -> Option<R> {
        if self.looked_at.get().is_none_or(|at| at.elapsed() >= PATIENCE) {
            self.looked_at.set(Some(Instant::now()));
            self.look();
        }
        self.keys.borrow().as_ref().map(f)
    }

    fn look(&self) {
        static FAILED: Throttle = Throttle::per_minute();
        let stamp = located(&self.path).ok().and_then(|path| stamp(&path));
        if stamp.is_some() && stamp == self.stamp.get() {
            return;
        }
        match load(&self.path, self.parse) {
            Ok(keys) => {
                if self.keys.replace(Some(keys)).is_some() {
                    tracing::info!(file = %self.path.display(), "read changed keys from {}", self.path.display());
                }
                self.stamp.set(stamp);
            }
            Err(fault) if FAILED.allows() => {
                tracing::error!(%fault, "keys cannot be read, so those read before still count: {fault}");
            }
            Err(_) => {}
        }
    }
}

fn located(path: &Path) -> Result<PathBuf, KeyFault> {
    match path.to_str().and_then(|path| path.strip_prefix(CREDENTIAL)) {
        Some(name) => os::systemd::credential(name).ok_or_else(|| KeyFault::NoCredential(name.to_owned())),
        None => Ok(path.to_owned()),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

fn load<K>(path: &Path, parse: fn(&str) -> Result<K, String>) -> Result<K, KeyFault> {
    let path = located(path)?;
    let read = || {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(std::fs::File::open(&path)?, MAX_BYTES + 1), &mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| KeyFault::Unreadable { path: path.clone(), source })?;
    let parsed = if text.len() as u64 > MAX_BYTES { Err("it is longer than 1 MiB".to_owned()) } else { parse(&text) };
    parsed.map_err(|why| KeyFault::Malformed { path, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Result<u32, String> {
        text.trim().parse().map_err(|_| "no number".to_owned())
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let file = KeyFile::new(path.clone(), number);
        let keys = || {
            file.looked_at.set(None);
            file.read(|number| *number)
        };
        assert_eq!(keys(), None);
        assert!(file.fault().unwrap().to_string().contains("cannot be read"));
        for (text, expected) in [("1", 1), ("22", 22), ("x", 22), ("", 22), ("333", 333)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(keys(), Some(expected), "{text}");
        }
        assert!(file.fault().is_none());
        std::fs::write(&path, "x").unwrap();
        assert!(file.fault().unwrap().to_string().contains("no number"));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(keys(), Some(333));
        // Replaced as a whole, which gives it another inode.
        std::fs::write(dir.path().join("new"), "444").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(keys(), Some(444));
        std::fs::write(&path, "1".repeat(2 << 20)).unwrap();
        assert!(file.fault().unwrap().to_string().contains("longer than"));
    }

    #[test]
    fn a_file_is_looked_at_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "1").unwrap();
        let file = KeyFile::new(path.clone(), number);
        assert_eq!(file.read(|number| *number), Some(1));
        let before = file.looked_at.get();
        file.looked_at.set(Some(Instant::now()));
        std::fs::write(&path, "22").unwrap();
        if before.unwrap().elapsed() < PATIENCE {
            assert_eq!(file.read(|number| *number), Some(1));
        }
    }

    #[test]
    fn a_credential_that_systemd_does_not_pass_is_a_fault() {
        let fault = KeyFile::new("credential:channel-keys".into(), number).fault().unwrap().to_string();
        assert!(fault.contains("'channel-keys'") && fault.contains("LoadCredential="), "{fault}");
    }
}
