//! Starts a process that can outlive this one: as a grandchild.
//!
//! When the process in between ends, the service manager becomes the parent of the grandchild, while this process still
//! runs. systemd kills a main process that is not its child right after SIGTERM, and does not wait for its end
//! (`main_pid_alien` in systemd's src/core/service.c; seen with systemd 252). May not enter: the messages of a
//! hand-over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::PidfdFlags;

/// A program, and the process between the program and this process.
#[derive(Debug)]
pub(crate) struct Grandchild {
    between: Child,
}

/// Asks a process to end.
pub(crate) fn terminate(pid: u32) {
    if let Ok(pid) = pid.try_into() {
        // It may have ended by itself.
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
    }
}

/// In the process in between: the program's process id.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

impl Grandchild {
    /// Spawns `command` with `stream` open under the same descriptor number. When this thread ends, the program ends,
    /// too, until [`Grandchild::let_go`].
    ///
    /// # Errors
    /// When the program cannot be started.
    #[expect(unsafe_code, reason = "code between fork and exec must be async-signal-safe")]
    pub(crate) fn spawn(command: &mut Command, stream: &UnixStream) -> io::Result<Self> {
        let number = stream.as_raw_fd();
        let split = move || -> io::Result<()> {
            // SAFETY: system calls, and no allocation. fork(2) is async-signal-safe, and this process
            // has one thread.
            unsafe {
                let program = check(libc::fork())?;
                if program != 0 {
                    wait_in_between(program);
                }
                let stream = BorrowedFd::borrow_raw(number);
                fcntl(stream, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        };
        // SAFETY: see above.
        unsafe { command.pre_exec(split) };
        Ok(Self { between: command.spawn()? })
    }

    /// Waits for the program's end, at most `limit`; returns its exit status. Blocks; not for async code.
    pub(crate) fn await_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.between);
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // Readable when the process has ended (pidfd_open(2)). Linux before 5.3 has none: all of `limit` passes.
        let ending = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        let mut watched: Vec<_> = ending.iter().map(|ending| PollFd::new(ending.as_fd(), PollFlags::POLLIN)).collect();
        // After an error, the status is read at once.
        poll(&mut watched, limit).ok();
        self.between.try_wait().ok().flatten()
    }

    /// Ends the program.
    pub(crate) fn end(&mut self) {
        terminate(self.between.id());
    }

    /// Makes the program the service manager's child.
    pub(crate) fn let_go(mut self) {
        drop(self.between.kill());
        drop(self.between.wait());
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    Ok(Errno::result(result)?)
}

/// Waits for `program`, and ends with the same status. At SIGTERM, kills the program first.
#[expect(unsafe_code, reason = "only system calls are allowed after fork")]
fn wait_in_between(program: libc::pid_t) -> ! {
    PROGRAM.store(program, Ordering::Relaxed);
    // SAFETY: system calls; no code in this process uses a descriptor any more.
    unsafe {
        let end_program: extern "C" fn(libc::c_int) = end_program;
        libc::signal(libc::SIGTERM, end_program as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        // Closes all descriptors. An open copy of the pipe that tells the parent of the exec would block the parent.
        if libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) < 0 {
            // Linux before 5.9, or a seccomp filter.
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            (0..libc::c_int::try_from(limit.rlim_cur).unwrap_or(libc::c_int::MAX)).for_each(|fd| {
                libc::close(fd);
            });
        }
        let mut status = 0;
        while libc::waitpid(program, &raw mut status, 0) < 0 && Errno::last() == Errno::EINTR {}
        if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            libc::signal(signal, libc::SIG_DFL);
            libc::kill(libc::getpid(), signal);
        }
        libc::_exit(libc::WEXITSTATUS(status));
    }
}

#[expect(unsafe_code, reason = "a signal handler may only make system calls")]
extern "C" fn end_program(_: libc::c_int) {
    // SAFETY: a system call without memory.
    unsafe { libc::kill(PROGRAM.load(Ordering::Relaxed), libc::SIGKILL) };
}
