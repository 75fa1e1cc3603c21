//! The meaning of signals to a service: stop, or hand over. SIGUSR1 does nothing, and `os/signal.rs` ignores the
//! signals that would end or stop the process by accident. SIGTSTP and SIGXCPU keep their default.
//!
//! May not enter: the reaction to a signal.

use std::io::{self, IsTerminal};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::os;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// To drain and end: SIGTERM, SIGINT, SIGQUIT.
    Stop,
    /// To hand over to a new process: SIGUSR2, and SIGHUP, which means a reload everywhere.
    HandOver,
}

/// The meaning of SIGHUP when the terminal of the process was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// Hand over, as at any SIGHUP: a service outlives the shell that started the service.
    HandOver,
    /// Stop: nothing else would end a `webws dev` of a closed window.
    Stop,
}

/// The signals that arrive from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    term: Signal,
    interrupt: Signal,
    quit: Signal,
    user2: Signal,
    hang_up: Signal,
    user1: Signal,
    on_hang_up: HangUp,
    had_terminal: bool,
}

impl Signals {
    /// Handles all signals that a process can handle. From now on this process, and all processes that it starts,
    /// ignore the signals without a meaning.
    ///
    /// # Errors
    /// When the runtime cannot watch signals.
    pub(crate) fn try_new(on_hang_up: HangUp) -> io::Result<Self> {
        os::signal::ignore_bystanders();
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user2: signal(SignalKind::user_defined2())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            on_hang_up,
            had_terminal: io::stderr().is_terminal(),
        })
    }

    /// The next signal that asks for something.
    ///
    /// # Cancel safety
    /// A signal that was not returned is returned by the next call.
    pub(crate) async fn next(&mut self) -> Wanted {
        loop {
            tokio::select! {
                _ = self.term.recv() => return Wanted::Stop,
                _ = self.interrupt.recv() => return Wanted::Stop,
                _ = self.quit.recv() => return Wanted::Stop,
                _ = self.user2.recv() => return Wanted::HandOver,
                _ = self.hang_up.recv() => return self.hung_up(),
                _ = self.user1.recv() => tracing::debug!("SIGUSR1 is ignored: webws has no log file to reopen"),
            }
        }
    }

    /// The next one that asks to stop.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Wanted::Stop {
            tracing::debug!("a signal to hand over is ignored: this process is stopping");
        }
    }

    fn hung_up(&self) -> Wanted {
        // A closed terminal is no longer a terminal.
        let has_lost_terminal = self.had_terminal && !io::stderr().is_terminal();
        if has_lost_terminal && self.on_hang_up == HangUp::Stop { Wanted::Stop } else { Wanted::HandOver }
    }
}
