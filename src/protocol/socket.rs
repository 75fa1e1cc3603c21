//! A session's socket as the protocol sees it: a byte stream that never blocks.
//!
//! The worker implements [`Socket`] over a descriptor, tests and the simulator in memory. Calls are direct and
//! monomorphised: a delivery is one `send`. May not enter: system calls, readiness.

#[cfg(any(test, feature = "internals"))]
pub(crate) mod memory;

use std::io::{self, IoSlice};

/// A stream socket that does not block.
pub(crate) trait Socket {
    /// Sends a prefix of `bytes` and returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; `Interrupted`; else the connection is gone.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// As [`Socket::send`], for several slices in order.
    ///
    /// # Errors
    /// As [`Socket::send`].
    fn send_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Receives into `buffer`; 0 is the peer's FIN.
    ///
    /// # Errors
    /// `WouldBlock` when no byte has arrived; `Interrupted`; else the connection is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// The number of sent bytes that the peer has not taken.
    fn untaken_bytes(&self) -> usize;

    /// Sends FIN.
    fn finish_sending(&mut self);
}
