//! The last buffer that was read, with its decoded payloads: the subscribers of a channel mostly read the same bytes.
//!
//! Comparing 9 kB costs a fraction of parsing the 64 frames in them, so the load generator stays cheaper than servers
//! that frame once per channel. Every byte of every receiver is still compared, and other bytes are parsed.
//! May not enter: the ledger.

use crate::clock::Micros;
use crate::payload::Header;

/// A buffer of whole text frames: successive payloads of one sender.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    channel: u32,
    pub(crate) sender: u32,
    /// The first payload's sequence, and how many there are.
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The intended times of sending, with the number of payloads for each.
    pub(crate) sent: Vec<(Micros, u32)>,
    /// The publications' numbers.
    pub(crate) numbers: Vec<u32>,
    /// Receivers that got these payloads and are not reported yet.
    pub(crate) receivers: u32,
}

impl Batch {
    /// Whether a subscriber of `channel` got exactly this.
    pub(crate) fn is(&self, channel: u32, bytes: &[u8]) -> bool {
        self.channel == channel && self.count > 0 && self.bytes == bytes
    }

    /// Keeps the payloads in `bytes` if they are successive payloads of one sender; else keeps nothing.
    pub(crate) fn learn(&mut self, channel: u32, bytes: &[u8], headers: &[Header]) {
        self.count = 0;
        let successive = |pair: &[Header]| match pair {
            [a, b] => a.sender == b.sender && a.sequence.checked_add(1) == Some(b.sequence),
            _ => false,
        };
        let (Some(first), Ok(count)) = (headers.first(), u32::try_from(headers.len())) else { return };
        if !headers.windows(2).all(successive) {
            return;
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        (self.channel, self.sender, self.first, self.count, self.receivers) =
            (channel, first.sender, first.sequence, count, 0);
        self.sent.clear();
        self.numbers.clear();
        for header in headers {
            self.numbers.push(header.number);
            match self.sent.last_mut() {
                Some((sent, count)) if *sent == header.sent => *count += 1,
                _ => self.sent.push((header.sent, 1)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(sender: u32, sequence: u32, sent: Micros) -> Header {
        Header { run: 0, sender, sequence, sent, number: sequence }
    }

    #[test]
    fn the_same_bytes_on_the_same_channel_are_the_same() {
        let mut batch = Batch::default();
        assert!(!batch.is(0, b""));
        batch.learn(3, b"xyz", &[header(1, 7, 100), header(1, 8, 100), header(1, 9, 105)]);
        assert!(batch.is(3, b"xyz") && !batch.is(3, b"xyy") && !batch.is(3, b"xy") && !batch.is(2, b"xyz"));
        assert_eq!((batch.sender, batch.first, batch.count), (1, 7, 3));
        assert_eq!((&batch.sent[..], &batch.numbers[..]), (&[(100, 2), (105, 1)][..], &[7, 8, 9][..]));
    }

    #[test]
    fn what_is_not_successive_is_not_learned() {
        let mut batch = Batch::default();
        for headers in [&[header(1, 7, 0), header(1, 9, 0)][..], &[header(1, 7, 0), header(2, 8, 0)], &[]] {
            batch.learn(0, b"xyz", headers);
            assert!(!batch.is(0, b"xyz"), "{headers:?}");
        }
    }
}
