//! The program that takes over, and one attempt at a hand-over, which another task may break off.
//!
//! May not enter: the messages of the two processes.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::deadlines::{ENDING, STEP};
use super::error::GiveError;
use crate::os::process::Grandchild;

/// The program to start: the file that is now at the path from which this process was started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// This process' program and arguments. For a call at the start: later, another file may have replaced the program.
    ///
    /// # Errors
    /// When the system does not tell the program's path.
    pub(crate) fn own() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        // An absolute path as called is kept, so that a symbolic link is followed again at each hand-over.
        let called = arguments.next().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = called.map_or_else(std::env::current_exe, Ok)?;
        Ok(Self { path, arguments: arguments.collect() })
    }
}

/// A hand-over under way, which another task may break off.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt(Arc<Mutex<Breakable>>);

#[derive(Debug, Default)]
struct Breakable {
    program: Option<Grandchild>,
    is_broken_off: bool,
    is_committed: bool,
}

/// Breaks an attempt off when dropped: when the task that waits for the attempt is cancelled.
#[derive(Debug)]
pub(crate) struct BreakOff(pub(crate) Attempt);

impl Drop for BreakOff {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

impl Attempt {
    /// Whether another task has broken the attempt off.
    pub(super) fn is_broken_off(&self) -> bool {
        self.lock().is_broken_off
    }

    /// Ends the new process, so that this one resumes. Without effect on it once the attempt is committed.
    pub(crate) fn break_off(&self) {
        let mut this = self.lock();
        this.is_broken_off = true;
        if !this.is_committed {
            this.program.iter_mut().for_each(Grandchild::end);
        }
    }

    /// Passes the point after which the attempt is not broken off.
    pub(super) fn commit(&self) -> Result<(), GiveError> {
        let mut this = self.lock();
        this.is_committed = !this.is_broken_off;
        if this.is_committed { Ok(()) } else { Err(GiveError::Here("the hand-over was broken off".to_owned())) }
    }

    fn lock(&self) -> MutexGuard<'_, Breakable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn started(&self, mut program: Grandchild) {
        let mut this = self.lock();
        if this.is_broken_off {
            program.end();
        }
        this.program = Some(program);
    }

    pub(super) fn let_go(&self) {
        if let Some(program) = self.lock().program.take() {
            program.let_go();
        }
    }

    /// Ends the new process; returns its exit status, if it ended by itself.
    pub(super) fn end(&self) -> Option<ExitStatus> {
        let mut program = self.lock().program.take()?;
        // A process about to end gets some time: its own exit status says more than a kill.
        let by_itself = program.await_end(ENDING);
        if by_itself.is_none() {
            program.end();
            program.await_end(STEP);
            program.let_go();
        }
        by_itself
    }
}
