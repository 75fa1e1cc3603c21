//! Waits with tokio until a descriptor is readable. May not enter: the many sockets of sessions (`worker/reactor.rs`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that keep the descriptor they name open for as long as they live.
pub(crate) trait KeepsOpen: AsRawFd {}
impl KeepsOpen for OwnedFd {}
impl KeepsOpen for BorrowedFd<'_> {}
impl KeepsOpen for mio::Poll {}

/// Registers `inner` with the current runtime, for reading.
///
/// # Errors
/// When the kernel refuses, or epoll does not support the descriptor.
#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
pub(crate) fn readable<T: KeepsOpen>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: by its trait, `inner` keeps the descriptor open, and the AsyncFd keeps `inner`.
    let registered = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
