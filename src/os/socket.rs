//! Stream sockets: bind, accept, send, receive. All are CLOEXEC and non-blocking.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, getsockname, listen, shutdown,
    socket,
};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

/// Connections that may wait to be accepted; beyond, a Unix client gets EAGAIN at once and
/// nginx answers 502. Chosen: `somaxconn`'s default, the most the kernel grants.
const BACKLOG: i32 = 4096;

/// What stands at a socket's path.
#[derive(Debug, PartialEq, Eq)]
enum Occupant {
    Nothing,
    DeadSocket,
    LiveSocket,
    OtherFile,
}

/// The identity of a socket file we made, so that only ours is removed at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Binds a Unix socket at `path` with permissions `mode` and, if given, the group of that
/// name. A socket file that a dead process left is taken over.
///
/// # Errors
/// With a sentence that says what stands in the way: a live process, another kind of file,
/// a missing directory, an unknown group, missing rights.
pub(crate) fn bind_unix(path: &Path, mode: u32, group: Option<&str>) -> io::Result<(OwnedFd, FileId)> {
    match occupant(path)? {
        Occupant::Nothing => {}
        Occupant::DeadSocket => std::fs::remove_file(path)?,
        Occupant::LiveSocket => return Err(refusal("another process listens on it: stop that one first")),
        Occupant::OtherFile => return Err(refusal("a file that is no socket stands there: remove or rename it")),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody can connect before listen(), so there is no moment with wrong permissions.
    let granted = grant(path, mode, group);
    if granted.is_err() {
        // Nobody else would.
        drop(std::fs::remove_file(path));
    }
    granted?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok((listener, file_id(path)?))
}

fn occupant(path: &Path) -> io::Result<Occupant> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => return Ok(Occupant::OtherFile),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Occupant::DeadSocket),
        // EAGAIN is a full backlog: somebody listens.
        Ok(_) => Ok(Occupant::LiveSocket),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Occupant::LiveSocket),
        Err(error) => Err(error),
    }
}

fn refusal(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, what.to_owned())
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let file = std::fs::symlink_metadata(path)?;
    if !file.file_type().is_socket() {
        return Err(io::Error::other("no socket"));
    }
    Ok(FileId { device: file.dev(), inode: file.ino() })
}

/// Gives the socket file at `path` permissions and, if wanted, the group of that name.
///
/// # Errors
/// When there is no such group, or we may not.
pub(crate) fn grant(path: &Path, mode: u32, group: Option<&str>) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    if let Some(name) = group {
        let group = nix::unistd::Group::from_name(name)?
            .ok_or_else(|| refusal(&format!("there is no group '{name}' (socket_group)")))?;
        nix::unistd::chown(path, None, Some(group.gid))?;
    }
    Ok(())
}

/// Removes the socket file at `path` if nobody listens on it.
pub(crate) fn remove_dead(path: &Path) {
    if matches!(occupant(path), Ok(Occupant::DeadSocket)) {
        // It may be gone by now.
        drop(std::fs::remove_file(path));
    }
}

/// Removes the socket file at `path` if it is still the one called `id`.
pub(crate) fn remove_own(path: &Path, id: FileId) {
    if file_id(path).is_ok_and(|found| found == id)
        && let Err(error) = std::fs::remove_file(path)
    {
        let path = path.display();
        tracing::debug!(%error, %path, "the socket file {path} cannot be removed: {error}");
    }
}

/// Makes a listener that came from elsewhere non-blocking, and its connections, when they are of
/// TCP, send at once: on Linux they inherit `TCP_NODELAY`.
///
/// # Errors
/// When it is no open descriptor.
pub(crate) fn prepare_listener(listener: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL)?);
    fcntl(listener, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    if is_tcp(listener) {
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::TcpNoDelay, &true)?;
    }
    Ok(())
}

/// Whether the system knows a group of that name.
pub(crate) fn has_group(name: &str) -> bool {
    nix::unistd::Group::from_name(name).is_ok_and(|group| group.is_some())
}

/// Whether `socket` accepts connections.
pub(crate) fn is_listening(socket: BorrowedFd<'_>) -> bool {
    nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::AcceptConn).unwrap_or(false)
}

/// Whether `socket` is of the TCP family rather than a Unix socket.
pub(crate) fn is_tcp(socket: BorrowedFd<'_>) -> bool {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage};
    getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .ok()
        .and_then(|address| address.family())
        .is_some_and(|family| family != AddressFamily::Unix)
}

/// Where a listener listens, in the notation of the configuration.
pub(crate) fn address(socket: BorrowedFd<'_>) -> String {
    use nix::sys::socket::SockaddrStorage;
    match getsockname::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(address) => match address.as_unix_addr() {
            Some(unix) => format!("unix:{}", unix.path().unwrap_or(Path::new("?")).display()),
            None => format!("tcp:{address}"),
        },
        Err(error) => format!("? ({error})"),
    }
}

/// Accepts one connection.
///
/// # Errors
/// `WouldBlock` when none waits; `EMFILE` and the like as accept(2) says.
#[expect(unsafe_code, reason = "accept4 returns a number")]
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends what the socket takes of `bytes`.
///
/// # Errors
/// `WouldBlock` when it takes nothing now; else the connection is gone.
pub(crate) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// Sends what the socket takes of `slices`, in order.
///
/// # Errors
/// As [`send_bytes`].
pub(crate) fn send_slices(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags)?)
}

/// Receives into `buffer`; 0 is the peer's FIN.
///
/// # Errors
/// `WouldBlock` when nothing is there; else the connection is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket, buffer, RecvFlags::DONTWAIT)?.0)
}

/// Bytes that were sent and that the other end has not read (Unix) or not acknowledged (TCP).
#[expect(
    unsafe_code,
    clippy::cast_possible_truncation,
    reason = "an ioctl without a safe wrapper; its number is small"
)]
pub(crate) fn untaken_bytes(socket: BorrowedFd<'_>) -> usize {
    use nix::libc::{TIOCOUTQ, c_int};
    use rustix::ioctl::{Getter, Opcode, ioctl};
    // SAFETY: TIOCOUTQ (unix(7) and tcp(7) call it SIOCOUTQ) writes one int.
    let answer = unsafe { ioctl(socket, Getter::<{ TIOCOUTQ as Opcode }, c_int>::new()) };
    answer.ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
}

/// Sends FIN.
pub(crate) fn finish_sending(socket: &OwnedFd) {
    // ENOTCONN: the peer was faster.
    if let Err(error) = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write) {
        tracing::trace!(%error, "a socket cannot be shut down: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_sockets_file_is_taken_over_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (live, id) = bind_unix(&path, 0o600, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind_unix(&path, 0o600, None).unwrap_err().to_string().contains("another process"));
        drop(live);
        remove_own(&path, id);
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(bind_unix(&path, 0o600, None).unwrap_err().to_string().contains("no socket"));
        remove_own(&path, id);
        assert!(path.exists(), "a file that is not ours is not removed");
    }

    #[test]
    fn what_the_other_end_has_not_read_is_known() {
        use std::io::Read;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(untaken_bytes(ours.as_fd()), 0);
        send_bytes(ours.as_fd(), b"unread").unwrap();
        assert!(untaken_bytes(ours.as_fd()) > 0);
        theirs.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(untaken_bytes(ours.as_fd()), 0);
    }

    #[test]
    fn connections_of_a_tcp_listener_send_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        prepare_listener(listener.as_fd()).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = accept(listener.as_fd()).unwrap();
        assert!(nix::sys::socket::getsockopt(&accepted, nix::sys::socket::sockopt::TcpNoDelay).unwrap());
    }

    #[test]
    fn an_unknown_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind_unix(&dir.path().join("s"), 0o600, Some("no-such-group")).unwrap_err();
        assert!(error.to_string().contains("no-such-group"), "{error}");
    }
}
