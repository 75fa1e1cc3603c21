//! Datagram sockets on which nginx hands off clients: a message is a request's head, the client's socket (SCM_RIGHTS)
//! and the sender's identity (SCM_CREDENTIALS, unix(7)).
//!
//! May not enter: the choice of trusted senders, the content of a request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc::{self, linger};
use nix::sys::socket::{SockType, setsockopt, sockopt};

/// A received message. All its descriptors are here, so that they are closed with it.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// The length of the request's head.
    pub(crate) len: usize,
    /// None only when the kernel did not say.
    pub(crate) sender: Option<Sender>,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Whether bytes or descriptors did not fit.
    pub(crate) is_cut: bool,
}

/// The user and the group of the process that sent a message, as the kernel gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// Whether `socket` carries datagrams between processes of this machine.
pub(crate) fn is_handoff(socket: BorrowedFd<'_>) -> bool {
    !super::socket::is_tcp(socket) && nix::sys::socket::getsockopt(&socket, sockopt::SockType) == Ok(SockType::Datagram)
}

/// Makes `socket` non-blocking, and has the kernel name the sender of each message.
///
/// # Errors
/// When the descriptor is no Unix socket.
pub(crate) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_nonblocking(socket)?;
    Ok(setsockopt(&socket, sockopt::PassCred, &true)?)
}

/// Receives one message; its bytes are the first of `buffer`.
///
/// # Errors
/// `WouldBlock` when none waits.
#[expect(
    unsafe_code,
    reason = "nix gives no descriptors of a message that is cut, and rustix no sender without a process"
)]
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Handoff> {
    let mut control = [0; CONTROL_BYTES / size_of::<usize>()];
    let mut room = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all its fields are numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut room, 1);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), CONTROL_BYTES);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the header's pointers are to `buffer` and `control`, with their lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let is_cut = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    let mut handoff = Handoff { len, sender: None, descriptors: Vec::new(), is_cut };
    let control: Vec<u8> = control.iter().flat_map(|word: &usize| word.to_ne_bytes()).collect();
    let mut rest = control.get(..header.msg_controllen).unwrap_or_default();
    while let Some(Part { kind, data, behind }) = Part::first_of(rest) {
        let mut numbers = data.chunks_exact(4).filter_map(|four| Some(i32::from_ne_bytes(four.try_into().ok()?)));
        match kind {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                // SAFETY: the kernel has just opened these for us, and no other code knows them.
                handoff.descriptors.extend(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // The process comes first, and is 0 outside of this one's namespace.
                let user_and_group = (numbers.nth(1), numbers.next());
                if let (Some(user), Some(group)) = user_and_group {
                    handoff.sender = Some(Sender { user: user.cast_unsigned(), group: group.cast_unsigned() });
                }
            }
            _ => {}
        }
        rest = behind;
    }
    Ok(handoff)
}

/// Room for the sender, and for two descriptors, so that a message with more than the one is noticed (cmsg(3)).
const CONTROL_BYTES: usize = 2 * HEADER_BYTES + 16 + 8;

/// A `cmsghdr`: the length with the header, the level and the type.
const HEADER_BYTES: usize = size_of::<usize>() + 8;

/// A part of control bytes.
struct Part<'a> {
    /// The level and the type.
    kind: (i32, i32),
    data: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Part<'a> {
    fn first_of(control: &'a [u8]) -> Option<Self> {
        let (len, rest) = control.split_first_chunk()?;
        let (level, rest) = rest.split_first_chunk()?;
        let (kind, _) = rest.split_first_chunk()?;
        let len = usize::from_ne_bytes(*len);
        let data = control.get(HEADER_BYTES..len)?;
        let behind = control.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
        Some(Self { kind: (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind)), data, behind })
    }
}

/// Sets the options of a client's socket as those of an accepted one are. nginx shares the open file, and may have set
/// others (`reset_timedout_connection` sets SO_LINGER).
///
/// # Errors
/// When the descriptor is no connected TCP socket.
pub(crate) fn adopt(client: &OwnedFd) -> io::Result<()> {
    use nix::sys::socket::{SockaddrStorage, getpeername};
    getpeername::<SockaddrStorage>(client.as_raw_fd())?;
    setsockopt(client, sockopt::TcpNoDelay, &true)?;
    setsockopt(client, sockopt::KeepAlive, &true)?;
    setsockopt(client, sockopt::Linger, &linger { l_onoff: 0, l_linger: 0 })?;
    set_nonblocking(client.as_fd())
}

fn set_nonblocking(socket: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
    use std::io::IoSlice;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::RawFd;
    use std::os::unix::net::UnixDatagram;

    fn send(to: &UnixDatagram, bytes: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    }

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        prepare(ours.as_fd()).unwrap();
        assert!(is_handoff(ours.as_fd()));
        (ours, theirs)
    }

    #[test]
    fn a_message_has_its_bytes_its_sender_and_every_descriptor() {
        let (ours, theirs) = pair();
        let mut buffer = [0; 8];
        assert_eq!(receive(ours.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let own = Sender { user: nix::unistd::getuid().as_raw(), group: nix::unistd::getgid().as_raw() };
        let number = theirs.as_raw_fd();
        for (descriptors, is_cut) in [(0, false), (1, false), (2, false), (3, true)] {
            send(&theirs, b"head", &vec![number; descriptors]);
            let handoff = receive(ours.as_fd(), &mut buffer).unwrap();
            assert_eq!((handoff.len, handoff.sender, handoff.is_cut), (4, Some(own), is_cut), "{descriptors}");
            assert_eq!(handoff.descriptors.len(), descriptors.min(2));
        }
        send(&theirs, b"too long a head", &[]);
        assert!(receive(ours.as_fd(), &mut buffer).unwrap().is_cut);
    }

    #[test]
    fn a_clients_socket_gets_the_options_of_an_accepted_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = OwnedFd::from(listener.accept().unwrap().0);
        setsockopt(&accepted, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
        adopt(&accepted).unwrap();
        assert!(nix::sys::socket::getsockopt(&accepted, sockopt::TcpNoDelay).unwrap());
        assert!(nix::sys::socket::getsockopt(&accepted, sockopt::KeepAlive).unwrap());
        assert_eq!(nix::sys::socket::getsockopt(&accepted, sockopt::Linger).unwrap().l_onoff, 0);
        let mut bytes = [0];
        assert_eq!(
            super::super::socket::receive(accepted.as_fd(), &mut bytes).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert!(adopt(&listener.into()).is_err(), "a listener is no client");
        assert!(adopt(&UnixDatagram::pair().unwrap().0.into()).is_err());
        assert!(adopt(&std::os::unix::net::UnixStream::pair().unwrap().0.into()).is_err());
        assert!(adopt(&std::io::pipe().unwrap().0.into()).is_err());
    }
}
