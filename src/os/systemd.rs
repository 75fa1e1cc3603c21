//! What systemd hands over and wants to hear: sockets (sd_listen_fds(3)), READY,
//! STOPPING and WATCHDOG (sd_notify(3)), credentials (systemd.exec(5), LoadCredential=).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;

/// The listening sockets handed over, with the names from `FileDescriptorName=`.
///
/// # Errors
/// When `LISTEN_PID` or `LISTEN_FDS` makes no sense or a descriptor is not open.
///
/// Call it once: each call takes ownership of the same descriptors.
#[expect(unsafe_code, reason = "descriptors arrive as numbers")]
pub(crate) fn take_listeners() -> io::Result<Vec<(OwnedFd, String)>> {
    // sd-notify takes names without sockets for a fault; a parent's variables leave that behind.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    let received = sd_notify::listen_fds_with_names()?;
    Ok(received
        .map(|(raw, name)| {
            // SAFETY: systemd opened this descriptor for us (LISTEN_PID is ours, and setting
            // CLOEXEC on it succeeded), and nothing else in the process owns it.
            (unsafe { OwnedFd::from_raw_fd(raw) }, name)
        })
        .collect())
}

/// Tells systemd that the sidecar serves.
pub(crate) fn notify_ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that another process is the service's main one from now on.
pub(crate) fn notify_main_process(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// Tells systemd that the sidecar drains.
pub(crate) fn notify_stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the watchdog that all workers make progress.
pub(crate) fn notify_watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often the watchdog wants to hear from us at the latest (`WatchdogSec=`).
pub(crate) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The file of the credential called `name`, when systemd passed any.
pub(crate) fn credential(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}

fn notify(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing; a manager that does not listen is no reason to stop.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not notified");
    }
}
