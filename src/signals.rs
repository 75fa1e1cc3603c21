//! What signals mean to a service: to stop, or to hand over. All that others send without meaning either is
//! ignored.
//!
//! May not enter: what is done then.

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

/// What SIGHUP means when the terminal is gone that the process was started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// Nothing special: a service outlives the shell of whoever started it.
    HandOver,
    /// To end: nothing else would end what a developer tried out in a closed window.
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
    /// Takes all signals that may be taken. Those that nothing is done about are ignored from now on, and by all
    /// processes that are started.
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
                _ = self.user1.recv() => tracing::debug!("SIGUSR1 is ignored: webws has no log file to open again"),
            }
        }
    }

    /// The next one that asks to stop.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Wanted::Stop {
            tracing::debug!("a signal to hand over is ignored: this process stops");
        }
    }

    fn hung_up(&self) -> Wanted {
        // A terminal that is gone is none any more.
        let has_lost_terminal = self.had_terminal && !io::stderr().is_terminal();
        if has_lost_terminal && self.on_hang_up == HangUp::Stop { Wanted::Stop } else { Wanted::HandOver }
    }
}
