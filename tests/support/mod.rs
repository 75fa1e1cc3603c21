//! What every test needs to start the real programs and to talk to them.
//!
//! Children live in temporary directories, on free ports or Unix sockets, and die with their handle.
//! Nothing here sleeps to synchronise: `until` and `holds_within` ask again until a deadline, `throughout` asks
//! for a while. `lasting` is for the length of a fault only.
//! No judgement about webws belongs here.

pub(crate) mod browser;
pub(crate) mod certificate;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod events;
pub(crate) mod frame;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod ledger;
pub(crate) mod nginx;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod webws;
pub(crate) mod witness;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

/// A program that has not started by then never will; generous because tests share two cores.
pub(crate) const START: Duration = Duration::from_secs(20);
/// Anything prompt (a reply, a frame) that is not here by then is missing.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// Whether `condition` came true before the deadline.
pub(crate) async fn holds_within<F: Future<Output = bool>>(
    deadline: Duration,
    mut condition: impl FnMut() -> F,
) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for `condition`; panics with `what` at the deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, deadline: Duration, condition: impl FnMut() -> F) {
    assert!(holds_within(deadline, condition).await, "not within {deadline:?}: {what}");
}

/// Asks again and again for `length`, and panics with `what` as soon as `condition` is false.
pub(crate) async fn throughout<F: Future<Output = bool>>(
    what: &str,
    length: Duration,
    mut condition: impl FnMut() -> F,
) {
    let start = Instant::now();
    while start.elapsed() < length {
        assert!(condition().await, "no longer after {:?} of {length:?}: {what}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for the length of a fault: a Redis that is down or frozen, a process that is stopped, a client that
/// reads nothing, a watchdog that has no reason to act. It is a part of the test's scenario, and never a way to
/// wait for a condition: that is `until`.
pub(crate) async fn lasting(length: Duration) {
    tokio::time::sleep(length).await;
}

/// A child process that does not outlive its handle.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    at_drop: Signal,
}

impl Process {
    /// Spawns `command`. A missing program panics with `remedy`, the line that installs it.
    pub(crate) fn spawn(command: &mut Command, at_drop: Signal, remedy: &str) -> Process {
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}; get it with: {remedy}", command.get_program().display()));
        Process { child, at_drop }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a pid is an i32"));
        kill(pid, signal).unwrap();
    }

    /// How it ended, or `None` while it lives.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it has ended by itself; else its log is shown.
    pub(crate) async fn wait_exit(&mut self, deadline: Duration, log: &Path) -> ExitStatus {
        let mut status = None;
        holds_within(deadline, || {
            status = self.exit_status();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap_or_else(|| panic!("it still runs after {deadline:?}:\n{}", read_log(log)))
    }

    /// Kills it without notice and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit_status().is_none() {
            self.signal(self.at_drop);
            self.child.wait().unwrap();
        }
    }
}

/// A TCP port on 127.0.0.1 that nobody listens on.
///
/// Below the ephemeral range (`ip_local_port_range`, from 32768), where no outgoing connection can
/// take it while a server is down between two starts.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() * 97 % u32::from(COUNT)).unwrap();
    (0..COUNT)
        .map(|_| FIRST + spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("no free port")
}

/// A captured log, as text; empty before the program has written any.
pub(crate) fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
