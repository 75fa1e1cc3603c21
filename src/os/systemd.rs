//! What systemd hands over and wants to hear: sockets (sd_listen_fds(3)), READY,
//! STOPPING, WATCHDOG and FDSTORE (sd_notify(3)), credentials (systemd.exec(5), LoadCredential=).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;

/// The descriptors handed over: listening sockets, and what was stored; with the names from `FileDescriptorName=`.
///
/// # Errors
/// When `LISTEN_PID` or `LISTEN_FDS` makes no sense or a descriptor is not open.
///
/// Call it once: each call takes ownership of the same descriptors.
#[expect(unsafe_code, reason = "descriptors arrive as numbers")]
pub(crate) fn take_descriptors() -> io::Result<Vec<(OwnedFd, String)>> {
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

/// Gives `descriptor` to systemd, which keeps it until this service is started again or has stopped for
/// good (`FileDescriptorStoreMax=`).
///
/// # Errors
/// When systemd cannot be told.
pub(crate) fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // Without FDPOLL=0 a socket is thrown away as soon as its other end is closed.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[descriptor])
}

/// Lets systemd forget what it keeps under a name.
pub(crate) fn forget(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Waits until systemd has dealt with everything that it was told (sd_notify_barrier(3)). False when it
/// does not, or when nobody listens.
pub(crate) fn has_heard(limit: Duration) -> bool {
    let Ok((reading, writing)) = io::pipe() else { return false };
    if std::env::var_os("NOTIFY_SOCKET").is_none()
        || sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[writing.as_fd()]).is_err()
    {
        return false;
    }
    drop(writing);
    let mut polled = [PollFd::new(reading.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // systemd closes its copy: that is the answer.
    poll(&mut polled, limit).is_ok_and(|ready| ready > 0)
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
        tracing::debug!(%error, "systemd cannot be notified: {error}");
    }
}
