//! The RESP reader of a subscribing link. It parses publications and confirmations in place, and finds answers to
//! commands whole (<https://redis.io/docs/latest/develop/reference/protocol-spec/>). RESP2 has arrays where RESP3 has
//! pushes; the reader tells them apart by their first element.
//!
//! Nothing is copied: an [`Item`] names ranges of the buffer, valid until the next [`Reader::room`]. May not enter:
//! what a publication or an answer means.

use super::read_buffer::{Part, ReadBuffer};

/// The version of Redis' protocol on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Resp2,
    Resp3,
}

/// The starts of the pushes that the reader parses, behind their first byte: three elements, and the kind. Publications
/// come first, because nearly all pushes are publications.
const KINDS: [(&[u8], Kind); 6] = [
    (b"3\r\n$7\r\nmessage\r\n", Kind::Publication),
    (b"3\r\n$8\r\nsmessage\r\n", Kind::Publication),
    (b"3\r\n$9\r\nsubscribe\r\n", Kind::Confirmation(Confirmation::Subscribed)),
    (b"3\r\n$10\r\nssubscribe\r\n", Kind::Confirmation(Confirmation::Subscribed)),
    (b"3\r\n$11\r\nunsubscribe\r\n", Kind::Confirmation(Confirmation::Unsubscribed)),
    (b"3\r\n$12\r\nsunsubscribe\r\n", Kind::Confirmation(Confirmation::ShardUnsubscribed)),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Publication,
    Confirmation(Confirmation),
}

/// What a push says about a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// The channel is subscribed, sharded or not.
    Subscribed,
    Unsubscribed,
    /// A sharded channel is no longer subscribed: an answer, or unasked when its slot moves.
    ShardUnsubscribed,
}

/// The next item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Publication {
        channel: Part,
        payload: Part,
    },
    Confirmation(Confirmation, Part),
    /// A push of another kind.
    Push,
    /// The answer to a command.
    Answer(Part),
}

/// What breaks RESP3, of which RESP2 is a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A stream, as far as it was read.
#[derive(Debug)]
pub(crate) struct Reader {
    protocol: Protocol,
    buffer: ReadBuffer,
}

impl Reader {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, buffer: ReadBuffer::default() }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Where the next bytes go; never empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buffer.room()
    }

    /// `len` bytes were written to [`Reader::room`].
    pub(crate) fn filled(&mut self, len: usize) {
        self.buffer.filled(len);
    }

    /// Takes the next item; `None` while it is not whole.
    ///
    /// # Errors
    /// The stream is not RESP.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, Malformed> {
        let next = next(self.buffer.unread(), self.protocol, self.buffer.start())?;
        let Some((item, len)) = next else { return Ok(None) };
        self.buffer.consume(len);
        Ok(Some(item))
    }

    /// The bytes of a part of the last item.
    pub(crate) fn bytes(&self, part: &Part) -> &[u8] {
        self.buffer.bytes(part)
    }

    /// Whether the unread bytes begin with a publication that is not whole yet.
    pub(crate) fn is_in_publication(&self) -> bool {
        let publications = KINDS.iter().filter(|(_, kind)| *kind == Kind::Publication);
        self.buffer.unread().split_first().is_some_and(|(first, rest)| {
            *first == push_byte(self.protocol) && publications.into_iter().any(|(head, _)| rest.starts_with(head))
        })
    }
}

/// What a push starts with.
fn push_byte(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Resp2 => b'*',
        Protocol::Resp3 => b'>',
    }
}

/// The item at the start of `bytes`, and its length; `start` is their place in the buffer.
fn next(bytes: &[u8], protocol: Protocol, start: usize) -> Result<Option<(Item, usize)>, Malformed> {
    let Some((first, behind)) = bytes.split_first() else { return Ok(None) };
    if *first == push_byte(protocol) {
        for (head, kind) in &KINDS {
            if let Some(rest) = behind.strip_prefix(*head) {
                return push(*kind, rest, bytes.len(), start);
            }
            if head.starts_with(behind) {
                return Ok(None);
            }
        }
    }
    let Some(len) = reply_len(bytes)? else { return Ok(None) };
    let item = if *first == b'>' { Item::Push } else { Item::Answer(start..start + len) };
    Ok(Some((item, len)))
}

/// A push of which `rest` follows its kind, in `total` bytes from `start` on.
fn push(kind: Kind, rest: &[u8], total: usize, start: usize) -> Result<Option<(Item, usize)>, Malformed> {
    let at = |behind: &[u8]| start + total - behind.len();
    let Kind::Confirmation(confirmation) = kind else {
        let Some((channel, rest)) = bulk(rest)? else { return Ok(None) };
        let channel = at(rest) - 2 - channel.len()..at(rest) - 2;
        let Some((payload, rest)) = bulk(rest)? else { return Ok(None) };
        let payload = at(rest) - 2 - payload.len()..at(rest) - 2;
        return Ok(Some((Item::Publication { channel, payload }, total - rest.len())));
    };
    if !rest.is_empty() && !rest.starts_with(b"$") || rest.starts_with(b"$-") {
        // UNSUBSCRIBE of all channels, without any: its channel is null. No command of ours.
        let (Some(channel), Some(count)) = (line(rest), line(rest).and_then(|(_, rest)| line(rest))) else {
            return Ok(None);
        };
        return if channel.0 == b"_" || channel.0 == b"$-1" {
            Ok(Some((Item::Push, total - count.1.len())))
        } else {
            Err(Malformed)
        };
    }
    let Some((channel, rest)) = bulk(rest)? else { return Ok(None) };
    let channel = at(rest) - 2 - channel.len()..at(rest) - 2;
    let Some((count, rest)) = line(rest) else { return Ok(None) };
    if count.first() != Some(&b':') {
        return Err(Malformed);
    }
    Ok(Some((Item::Confirmation(confirmation, channel), total - rest.len())))
}

/// A part of a stream, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// The line at the start of `bytes`, and what follows it; `None` while it is not whole.
fn line(bytes: &[u8]) -> Option<Split<'_>> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    Some((bytes.get(..end)?, bytes.get(end + 2..)?))
}

fn number(digits: &[u8]) -> Result<usize, Malformed> {
    if digits.is_empty() {
        return Err(Malformed);
    }
    digits.iter().try_fold(0_usize, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(Malformed)?;
        number.checked_mul(10).and_then(|number| number.checked_add(digit.into())).ok_or(Malformed)
    })
}

/// The bulk string at the start of `bytes`, and what follows it; `None` while it is not whole.
fn bulk(bytes: &[u8]) -> Result<Option<Split<'_>>, Malformed> {
    let Some((kind, digits)) = bytes.split_first() else { return Ok(None) };
    if *kind != b'$' {
        return Err(Malformed);
    }
    let mut len = 0_usize;
    for (at, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                let digit = usize::from(byte - b'0');
                len = len.checked_mul(10).and_then(|len| len.checked_add(digit)).ok_or(Malformed)?;
            }
            b'\r' if at > 0 => {
                let split = || {
                    let rest = digits.get(at + 2..)?;
                    Some((rest.get(..len)?, rest.get(len.checked_add(2)?..)?))
                };
                return Ok(split());
            }
            _ => return Err(Malformed),
        }
    }
    Ok(None)
}

/// The length of the reply at the start of `bytes`; `None` while it is not whole.
///
/// # Errors
/// The bytes are not RESP.
pub(crate) fn reply_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut rest = bytes;
    // The number of values that are still to come.
    let mut missing = 1_usize;
    while missing > 0 {
        let Some((head, behind)) = line(rest) else { return Ok(None) };
        let (kind, head) = head.split_first().ok_or(Malformed)?;
        missing -= 1;
        rest = behind;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            // Nulls in RESP2.
            b'$' | b'*' if head == b"-1" => {}
            b'$' | b'!' | b'=' => {
                let end = number(head)?.checked_add(2).ok_or(Malformed)?;
                let Some(behind) = rest.get(end..) else { return Ok(None) };
                rest = behind;
            }
            b'*' | b'~' | b'>' => missing = number(head)?.checked_add(missing).ok_or(Malformed)?,
            // An attribute precedes its value.
            b'%' | b'|' => {
                let values = number(head)?.checked_mul(2).ok_or(Malformed)?;
                missing = values.checked_add(missing + usize::from(*kind == b'|')).ok_or(Malformed)?;
            }
            _ => return Err(Malformed),
        }
    }
    Ok(Some(bytes.len() - rest.len()))
}

/// What a stream has: its publications' payloads, and all else; up to what is cut or broken.
#[cfg(feature = "internals")]
pub(crate) fn split(stream: &[u8]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    let (mut payloads, mut others) = (Vec::new(), Vec::new());
    let mut start = 0;
    while let Some(unread) = stream.get(start..)
        && let Ok(Some((item, len))) = next(unread, Protocol::Resp3, start)
    {
        match item {
            Item::Publication { payload, .. } => payloads.push(stream.get(payload).unwrap_or_default()),
            _ => others.push(stream.get(start..start + len).unwrap_or_default()),
        }
        start += len;
    }
    (payloads, others)
}
