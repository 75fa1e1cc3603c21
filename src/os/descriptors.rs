//! Sends and receives descriptors (unix(7), SCM_RIGHTS), and takes those that exec(2) left open. May not enter: what a
//! descriptor is for.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// The most that one message can carry (the kernel's SCM_MAX_FD; 254 are refused with EINVAL).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// A descriptor's number. The owner keeps the descriptor open meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lent(RawFd);

impl Lent {
    /// The owner of `descriptor` must keep it open until the number has been used.
    pub(crate) fn from(descriptor: &OwnedFd) -> Self {
        Self(descriptor.as_raw_fd())
    }
}

/// Sends all of `bytes`. The descriptors arrive with the first byte.
///
/// # Errors
/// When the other end is gone, or more than [`MAX_DESCRIPTORS`] are sent.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[Lent]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(|Lent(number)| *number).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let mut sent = 0;
    while sent < bytes.len() {
        let rest = [IoSlice::new(bytes.get(sent..).unwrap_or_default())];
        let control = if sent == 0 { control } else { &[] };
        match sendmsg::<UnixAddr>(stream.as_raw_fd(), &rest, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(step) => sent += step,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether the other end of `stream` is closed in all processes.
pub(crate) fn is_abandoned(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let is_told = poll(&mut polled, PollTimeout::ZERO).is_ok();
    let [polled] = polled;
    is_told && polled.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// A file in memory.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// Fills `buffer`, and returns the descriptors that arrived with it.
///
/// # Errors
/// When the other end is closed, or silent for the stream's timeout, or the descriptor limit of this process is
/// reached.
#[expect(unsafe_code, reason = "descriptors arrive as numbers")]
pub(crate) fn receive(mut stream: &UnixStream, buffer: &mut [u8]) -> io::Result<Vec<OwnedFd>> {
    let mut control = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut descriptors = Vec::new();
    let step = loop {
        let mut room = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut room, Some(&mut control), flags) {
            Ok(message) => message,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other("this process may not have so many descriptors (LimitNOFILE=, ulimit -n)"));
        }
        for received in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = received {
                // SAFETY: the kernel has just opened these for us, and no other code knows them.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        break message.bytes;
    };
    if step == 0 && !buffer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(buffer.get_mut(step..).unwrap_or_default())?;
    Ok(descriptors)
}

/// Checks that descriptor `number` is open and was passed through exec(2). Every descriptor that this process opens is
/// CLOEXEC; one that was passed through exec(2) is not.
///
/// # Errors
/// Why the descriptor cannot have been passed to this process.
#[expect(unsafe_code, reason = "a descriptor arrives as a number")]
pub(crate) fn check_inherited(number: RawFd) -> io::Result<()> {
    if number <= 2 {
        return Err(io::Error::other(format!("{number} is not a descriptor that can be handed over")));
    }
    // SAFETY: the number is not negative, and the descriptor is only inspected.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD)
        .map_err(|_| io::Error::other(format!("no descriptor {number} was handed over")))?;
    if FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC) {
        return Err(io::Error::other(format!("descriptor {number} was not handed over, it is this process' own")));
    }
    Ok(())
}

/// Takes the stream that was passed through exec(2) as `number`.
///
/// # Errors
/// When `number` is no such stream.
///
/// Call it once: each call takes ownership of the same descriptor.
#[expect(unsafe_code, reason = "a descriptor arrives as a number")]
pub(crate) fn inherited(number: RawFd) -> io::Result<UnixStream> {
    check_inherited(number)?;
    // SAFETY: the descriptor is open (checked above), and only inspected.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if nix::sys::socket::getsockopt(&borrowed, nix::sys::socket::sockopt::SockType)?
        != nix::sys::socket::SockType::Stream
    {
        return Err(io::Error::other(format!("descriptor {number} is not a stream socket")));
    }
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the descriptor is open (checked above), and this call takes ownership.
    Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(number) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let all = vec![Lent::from(&writer); MAX_DESCRIPTORS];
        send(&ours, b"first", &all).unwrap();
        send(&ours, b"second", &[]).unwrap();
        let mut bytes = [0; 5];
        let mut received = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((&bytes, received.len()), (b"first", MAX_DESCRIPTORS));
        drop(writer);
        File::from(received.pop().unwrap()).write_all(b"x").unwrap();
        let mut through = [0];
        reader.read_exact(&mut through).unwrap();
        assert_eq!(&through, b"x");
        let mut bytes = [0; 6];
        assert_eq!((receive(&theirs, &mut bytes).unwrap().len(), &bytes), (0, b"second"));
        assert!(!is_abandoned(&theirs));
        drop(ours);
        assert!(is_abandoned(&theirs));
        assert_eq!(receive(&theirs, &mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    #[test]
    fn only_a_descriptor_that_came_through_exec_is_taken() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        for number in [-1, RawFd::MIN, 0, 2, RawFd::MAX, ours.as_raw_fd()] {
            assert!(inherited(number).is_err(), "{number}");
            assert!(check_inherited(number).is_err(), "{number}");
        }
        // As exec(2) leaves it.
        fcntl(&ours, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        check_inherited(ours.as_raw_fd()).unwrap();
        let reader = std::io::pipe().unwrap().0;
        fcntl(&reader, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        assert!(inherited(reader.as_raw_fd()).is_err(), "a pipe is taken for a socket");
    }
}
