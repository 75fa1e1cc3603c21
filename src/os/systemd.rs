//! The interfaces of systemd: sockets (sd_listen_fds(3)), notifications such as READY, STOPPING, WATCHDOG and FDSTORE
//! (sd_notify(3)), credentials (systemd.exec(5), LoadCredential=). May not enter: when to notify systemd.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;

use super::descriptors;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_DESCRIPTOR: RawFd = 3;

/// The descriptors that systemd passed, with their names: listening sockets, and those from the descriptor store.
///
/// # Errors
/// When `LISTEN_PID`, `LISTEN_FDS` or `LISTEN_FDNAMES` is invalid, or a descriptor was not passed.
///
/// Call it once: each call takes ownership of the same descriptors.
#[expect(unsafe_code, reason = "descriptors arrive as numbers")]
pub(crate) fn take_descriptors() -> io::Result<Vec<(OwnedFd, String)>> {
    let (Some(owner), Some(count)) = (number("LISTEN_PID")?, number("LISTEN_FDS")?) else { return Ok(Vec::new()) };
    // sd-notify takes names without sockets for a fault; a parent's variables can leave such names.
    if owner != u64::from(std::process::id()) || count == 0 {
        return Ok(Vec::new());
    }
    let end = RawFd::try_from(count).ok().and_then(|count| FIRST_DESCRIPTOR.checked_add(count));
    let end = end.ok_or_else(|| io::Error::other(format!("LISTEN_FDS={count} is more than a process can have")))?;
    for descriptor in FIRST_DESCRIPTOR..end {
        let checked = descriptors::check_inherited(descriptor);
        checked.map_err(|error| io::Error::other(format!("LISTEN_FDS={count}, but {error}")))?;
    }
    let received = sd_notify::listen_fds_with_names().map_err(|_| {
        io::Error::other(format!("LISTEN_FDNAMES must have {count} names with ':' between, as LISTEN_FDS={count} says"))
    })?;
    Ok(received
        .map(|(raw, name)| {
            // SAFETY: the descriptor is open and came through exec (checked above; LISTEN_PID is ours), so no other
            // code in the process owns it.
            (unsafe { OwnedFd::from_raw_fd(raw) }, name)
        })
        .collect())
}

/// A variable's number. Empty is unset.
fn number(name: &str) -> io::Result<Option<u64>> {
    match variable(name) {
        None => Ok(None),
        Some(text) => match text.to_str().and_then(|text| text.parse().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(io::Error::other(format!("{name}={} is not a number", text.display()))),
        },
    }
}

/// A variable's value. Empty is unset.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|text| !text.is_empty())
}

/// Faults in variables from systemd that no other code reports.
pub(crate) fn oddities() -> Vec<String> {
    let mut oddities = Vec::new();
    for name in ["WATCHDOG_USEC", "WATCHDOG_PID"] {
        if let Err(error) = number(name) {
            oddities.push(format!("{error}: webws does not notify the watchdog"));
        }
    }
    if let Some(directory) = variable("CREDENTIALS_DIRECTORY")
        && let Err(error) = std::fs::metadata(&directory)
    {
        oddities.push(format!(
            "CREDENTIALS_DIRECTORY={} cannot be used: {error}; no password is read there",
            directory.display()
        ));
    }
    oddities
}

/// How long to wait for a manager that does not read, when the notification must reach it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells systemd that the sidecar serves.
pub(crate) fn notify_ready(status: &str) {
    let Some(socket) = variable("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&[NotifyState::Ready, NotifyState::Status(status)], Some(PATIENCE)) {
        let socket = socket.display();
        tracing::warn!(%error, "NOTIFY_SOCKET={socket} cannot be used ({error}): systemd does not learn that webws is ready");
    }
}

/// Tells systemd that another process is the service's main one from now on.
pub(crate) fn notify_main_process(pid: u32) {
    notify(&[NotifyState::MainPid(pid)]);
}

/// Stores `descriptor` with systemd, which keeps it until this service is started again or is stopped
/// (`FileDescriptorStoreMax=`).
///
/// # Errors
/// When the notification cannot be sent.
pub(crate) fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // Without FDPOLL=0, systemd drops a socket as soon as its other end is closed.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[descriptor])
}

/// Removes the descriptors called `name` from systemd's store.
pub(crate) fn forget(name: &str) {
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

/// Waits until systemd has processed all notifications (sd_notify_barrier(3)). False when `limit` passes first, or when
/// there is no systemd.
pub(crate) fn has_heard(limit: Duration) -> bool {
    let Ok((reading, writing)) = io::pipe() else { return false };
    if variable("NOTIFY_SOCKET").is_none()
        || sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[writing.as_fd()]).is_err()
    {
        return false;
    }
    drop(writing);
    let mut polled = [PollFd::new(reading.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    // systemd answers by closing its copy of the pipe.
    poll(&mut polled, limit).is_ok_and(|ready| ready > 0)
}

/// Sends systemd a new status line; never waits.
///
/// # Errors
/// When the notification cannot be sent: `WouldBlock` when systemd does not read at the moment.
pub(crate) fn renew_status(status: &str) -> io::Result<()> {
    send(&[NotifyState::Status(status)], None)
}

/// Tells systemd that the sidecar drains.
pub(crate) fn notify_stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells the watchdog that all workers make progress; never waits.
pub(crate) fn notify_watchdog() {
    // A manager that does not read now finds earlier notifications when it reads again.
    if let Err(error) = send(&[NotifyState::Watchdog], None) {
        tracing::debug!(%error, "systemd's watchdog cannot be notified: {error}");
    }
}

/// The longest time between two notifications that the watchdog accepts (`WatchdogSec=`).
pub(crate) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The file of the credential called `name`, if systemd passed that credential.
pub(crate) fn credential(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(variable("CREDENTIALS_DIRECTORY")?).join(name);
    // A file that cannot be inspected counts as present: reading the file reports the reason.
    path.try_exists().unwrap_or(true).then_some(path)
}

fn notify(state: &[NotifyState<'_>]) {
    // A manager that does not listen is no reason to stop; `notify_ready` has logged the fault.
    if let Err(error) = send(state, Some(PATIENCE)) {
        tracing::debug!(%error, "systemd cannot be notified: {error}");
    }
}

/// Sends notifications as sd-notify's own `notify` does, but does not wait forever for a manager that does not read.
fn send(state: &[NotifyState<'_>], patience: Option<Duration>) -> io::Result<()> {
    let Some(path) = variable("NOTIFY_SOCKET") else { return Ok(()) };
    let message: String = state.iter().map(|state| format!("{state}\n")).collect();
    let socket = UnixDatagram::unbound()?;
    match patience {
        None => socket.set_nonblocking(true)?,
        patience => socket.set_write_timeout(patience)?,
    }
    // A name that begins with "@" is in the abstract namespace (unix(7)).
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}
