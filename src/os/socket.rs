//! Stream sockets: accept, send, receive. All are CLOEXEC and non-blocking. Their files: `socket_file`. May not enter:
//! what the bytes mean.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, accept4, getpeername, getsockname, shutdown};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};

/// Makes a listener non-blocking. Sets `TCP_NODELAY` on a TCP listener, which its connections inherit on Linux.
///
/// # Errors
/// When the descriptor is not open.
pub(crate) fn prepare_listener(listener: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL)?);
    fcntl(listener, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    if is_tcp(listener) {
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::TcpNoDelay, &true)?;
    }
    Ok(())
}

/// Whether `socket` accepts connections.
pub(crate) fn is_listening(socket: BorrowedFd<'_>) -> bool {
    nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::AcceptConn).unwrap_or(false)
}

/// Whether `socket` is a TCP socket rather than a Unix socket.
pub(crate) fn is_tcp(socket: BorrowedFd<'_>) -> bool {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage};
    getsockname::<SockaddrStorage>(socket.as_raw_fd())
        .ok()
        .and_then(|address| address.family())
        .is_some_and(|family| family != AddressFamily::Unix)
}

/// Whether `socket` is a TCP socket rather than one of another protocol, or no socket.
pub(crate) fn is_tcp_stream(socket: BorrowedFd<'_>) -> bool {
    use nix::sys::socket::{SockType, getsockopt, sockopt};
    is_tcp(socket) && getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream)
}

/// A listener's address, in the notation of the configuration.
pub(crate) fn address(socket: BorrowedFd<'_>) -> String {
    use nix::sys::socket::SockaddrStorage;
    match getsockname::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(address) => match address.as_unix_addr() {
            Some(unix) => {
                let kind = if super::handoff::is_handoff(socket) { "handoff" } else { "unix" };
                format!("{kind}:{}", unix.path().unwrap_or(Path::new("?")).display())
            }
            None => format!("tcp:{address}"),
        },
        Err(error) => format!("? ({error})"),
    }
}

/// The file of a Unix socket; none when there is none.
pub(crate) fn file(socket: BorrowedFd<'_>) -> Option<PathBuf> {
    use nix::sys::socket::SockaddrStorage;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    address.as_unix_addr()?.path().map(Path::to_owned)
}

/// The peer's address, for a log line. Peers on a Unix socket have none.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> String {
    use nix::sys::socket::SockaddrStorage;
    match getpeername::<SockaddrStorage>(socket.as_raw_fd()) {
        Ok(address) if address.as_unix_addr().is_none() => address.to_string(),
        Ok(_) => "a peer on the Unix socket".to_owned(),
        Err(_) => "a peer that is gone".to_owned(),
    }
}

/// Accepts one connection.
///
/// # Errors
/// `WouldBlock` when none waits; `EMFILE` and the like as accept(2) says.
#[expect(unsafe_code, reason = "accept4 returns a number")]
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: accept4 succeeded, so this is a new descriptor that no other code owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Sends as much of `bytes` as the socket takes; returns the number of bytes.
///
/// # Errors
/// `WouldBlock` when the socket takes nothing now; else the connection is gone.
pub(crate) fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

/// Sends as much of `slices`, in order, as the socket takes; returns the number of bytes.
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
/// `WouldBlock` when no bytes have arrived; else the connection is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket, buffer, RecvFlags::DONTWAIT)?.0)
}

/// Bytes that were sent, and that the peer has not read (Unix) or its window has no room for (TCP). On TCP, bytes that
/// are not acknowledged say little: an acknowledgement may take 40 ms although the peer has read.
#[expect(
    unsafe_code,
    clippy::cast_possible_truncation,
    reason = "an ioctl without a safe wrapper; its number is small"
)]
pub(crate) fn untaken_bytes(socket: BorrowedFd<'_>) -> usize {
    use nix::libc::{TIOCOUTQ, c_int};
    use rustix::ioctl::{Getter, Opcode, ioctl};
    /// linux/sockios.h; tcp(7) has its like, SIOCOUTQ.
    const SIOCOUTQNSD: Opcode = 0x894b;
    let bytes = |answer: rustix::io::Result<c_int>| answer.ok().and_then(|bytes| usize::try_from(bytes).ok());
    // SAFETY: TIOCOUTQ (unix(7) and tcp(7) call it SIOCOUTQ) writes one int.
    let sent = unsafe { ioctl(socket, Getter::<{ TIOCOUTQ as Opcode }, c_int>::new()) };
    match bytes(sent).unwrap_or(0) {
        0 => 0,
        // SAFETY: SIOCOUTQNSD writes one int; a Unix socket does not know it.
        sent => bytes(unsafe { ioctl(socket, Getter::<SIOCOUTQNSD, c_int>::new()) }).unwrap_or(sent),
    }
}

/// Sends FIN.
pub(crate) fn finish_sending(socket: &OwnedFd) {
    // ENOTCONN: the peer closed first.
    if let Err(error) = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Write) {
        tracing::trace!(%error, "a socket cannot be shut down: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn bytes_that_the_peer_has_not_read_are_counted() {
        use std::io::Read;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(untaken_bytes(ours.as_fd()), 0);
        send_bytes(ours.as_fd(), b"unread").unwrap();
        assert!(untaken_bytes(ours.as_fd()) > 0);
        theirs.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(untaken_bytes(ours.as_fd()), 0);
    }

    #[test]
    fn bytes_that_a_tcp_peer_has_room_for_are_taken() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = accept(listener.as_fd()).unwrap();
        send_bytes(ours.as_fd(), b"unread").unwrap();
        assert_eq!(untaken_bytes(ours.as_fd()), 0);
        while send_bytes(ours.as_fd(), &[0; 65_536]).is_ok() {}
        assert!(untaken_bytes(ours.as_fd()) > 0);
    }

    #[test]
    fn connections_of_a_tcp_listener_send_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        prepare_listener(listener.as_fd()).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = accept(listener.as_fd()).unwrap();
        assert!(nix::sys::socket::getsockopt(&accepted, nix::sys::socket::sockopt::TcpNoDelay).unwrap());
    }
}
