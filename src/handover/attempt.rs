//! The program that is to take over, and one attempt at it, which may be broken off from elsewhere.
//!
//! May not enter: what the two processes say to each other.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::deadlines::{ENDING, STEP};
use super::error::GiveError;
use crate::os::process::Grandchild;

/// What is started: the binary at the path it was started from, whatever stands there now.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// The binary that runs, with its arguments. Asked for at the start: later, its file may be another.
    ///
    /// # Errors
    /// When the system does not say where it is.
    pub(crate) fn own() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        // As it was called, if that says where it is: a link may lead elsewhere by then.
        let called = arguments.next().map(PathBuf::from).filter(|path| path.is_absolute());
        let path = called.map_or_else(std::env::current_exe, Ok)?;
        Ok(Self { path, arguments: arguments.collect() })
    }
}

/// An attempt that may be broken off from elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt(Arc<Mutex<Breakable>>);

#[derive(Debug, Default)]
struct Breakable {
    program: Option<Grandchild>,
    is_broken_off: bool,
    is_committed: bool,
}

/// Breaks an attempt off when whoever waits for it does not any more.
#[derive(Debug)]
pub(crate) struct BreakOff(pub(crate) Attempt);

impl Drop for BreakOff {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

impl Attempt {
    /// Whether it was ended from elsewhere.
    pub(super) fn is_broken_off(&self) -> bool {
        self.lock().is_broken_off
    }

    /// Ends it, and all goes on here; unless it is nearly done: then it is waited for.
    pub(crate) fn break_off(&self) {
        let mut this = self.lock();
        this.is_broken_off = true;
        if !this.is_committed {
            this.program.iter_mut().for_each(Grandchild::end);
        }
    }

    /// From here on it is not broken off.
    pub(super) fn commit(&self) -> Result<(), GiveError> {
        let mut this = self.lock();
        this.is_committed = !this.is_broken_off;
        if this.is_committed { Ok(()) } else { Err(GiveError::Here("it was broken off".to_owned())) }
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

    /// Ends the new process; returns how it ended, if it did so by itself.
    pub(super) fn end(&self) -> Option<ExitStatus> {
        let mut program = self.lock().program.take()?;
        // It may be about to end, and its status says more than that it was killed.
        let by_itself = ended_within(&mut program, ENDING);
        if by_itself.is_none() {
            program.end();
            ended_within(&mut program, STEP);
            program.let_go();
        }
        by_itself
    }
}

fn ended_within(program: &mut Grandchild, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match program.status() {
            None if Instant::now() < deadline => rest(Duration::from_millis(5)),
            status => return status,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread serves nobody")]
pub(super) fn rest(time: Duration) {
    std::thread::sleep(time);
}
