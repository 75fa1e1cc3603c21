//! Starts a process that can outlive this one: as a grandchild, so that a service manager gets it for
//! its own child as soon as the one between is gone, and not when we are.
//!
//! systemd takes a main process that is nobody's child of its own for an alien: it kills it right behind
//! SIGTERM, and does not wait for it (`main_pid_alien` in its src/core/service.c; seen with systemd 252).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program, and who stands between it and us.
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

/// In the process between: the program.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

impl Grandchild {
    /// Spawns `command` with `stream` open under its number here. When this thread ends, so does the
    /// program, until it is let go.
    ///
    /// # Errors
    /// When the program cannot be started.
    #[expect(unsafe_code, reason = "what runs between fork and exec must be async-signal-safe")]
    pub(crate) fn spawn(command: &mut Command, stream: &UnixStream) -> io::Result<Self> {
        let number = stream.as_raw_fd();
        let split = move || -> io::Result<()> {
            // SAFETY: system calls, and no allocation. fork(2) is async-signal-safe, and this process
            // has one thread.
            unsafe {
                let program = check(libc::fork())?;
                if program != 0 {
                    stand_between(program);
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

    /// How the program ended, if it did.
    pub(crate) fn status(&mut self) -> Option<std::process::ExitStatus> {
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

/// Waits for `program`, and ends as it does; SIGTERM ends it.
#[expect(unsafe_code, reason = "nothing but system calls is allowed here")]
fn stand_between(program: libc::pid_t) -> ! {
    PROGRAM.store(program, Ordering::Relaxed);
    // SAFETY: system calls; nobody in this process uses a descriptor any more.
    unsafe {
        let end_program: extern "C" fn(libc::c_int) = end_program;
        libc::signal(libc::SIGTERM, end_program as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
        // Among them is the pipe by which the parent is told of the exec.
        if libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) < 0 {
            // Linux before 5.9, or a filter.
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

#[expect(unsafe_code, reason = "a signal handler may do nothing but system calls")]
extern "C" fn end_program(_: libc::c_int) {
    // SAFETY: a system call without memory.
    unsafe { libc::kill(PROGRAM.load(Ordering::Relaxed), libc::SIGKILL) };
}
