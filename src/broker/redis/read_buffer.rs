//! What was read from a stream and not decoded yet: a buffer that grows for a value of any length, and is small again
//! behind it. Values are decoded in place. May not enter: what the bytes mean.

use std::ops::Range;

/// Bytes read at once, and the buffer that is kept. Measured: with some 2 kB at a time, as the redis crate reads, 64
/// publications of 9,000 channels took seven system calls.
pub(super) const READ_BYTES: usize = 64 << 10;

/// A part of the buffer, valid until the next [`ReadBuffer::room`].
pub(crate) type Part = Range<usize>;

/// Bytes that were read, of which the first are decoded.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    buffer: Vec<u8>,
    unread: Part,
}

impl ReadBuffer {
    /// Where the next bytes go; never empty.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.unread.is_empty() {
            self.unread = 0..0;
            if self.buffer.len() != READ_BYTES {
                // The first buffer, or one that a large value left.
                self.buffer = vec![0; READ_BYTES];
            }
        } else if self.unread.end == self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.unread.end > self.buffer.len() / 2 {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        self.buffer.get_mut(self.unread.end..).expect("the unread bytes end in the buffer")
    }

    /// `len` bytes were written to [`ReadBuffer::room`].
    pub(super) fn filled(&mut self, len: usize) {
        self.unread.end += len;
        assert!(self.unread.end <= self.buffer.len(), "more bytes than there was room for");
    }

    /// The bytes that are not decoded.
    pub(super) fn unread(&self) -> &[u8] {
        self.bytes(&self.unread)
    }

    /// Where the unread bytes start.
    pub(super) fn start(&self) -> usize {
        self.unread.start
    }

    /// The first `len` of the unread bytes are decoded.
    pub(super) fn consume(&mut self, len: usize) {
        self.unread.start += len;
        debug_assert!(self.unread.start <= self.unread.end, "more bytes are decoded than were read");
    }

    /// The bytes of a part.
    pub(super) fn bytes(&self, part: &Part) -> &[u8] {
        self.buffer.get(part.clone()).expect("parts are of the buffer until more is read")
    }

    /// The memory that the buffer has.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.buffer.len()
    }
}
