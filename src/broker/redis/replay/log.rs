//! Decodes a replication log: the commands that a node executed, as RESP arrays, each byte with an offset
//! (<https://redis.io/docs/latest/operate/oss_and_stack/management/replication/>). Publications are yielded in place;
//! everything else is passed over as it arrives, and never held: a value of 500 MB costs no memory.
//!
//! PUBLISH and SPUBLISH stand in the log as they were executed, those of scripts and transactions between MULTI and
//! EXEC, and in the order in which subscribers received them. May not enter: sockets, what a publication means.

use crate::broker::redis::read_buffer::{Part, ReadBuffer};

/// The most digits of a length. Lengths of Redis have 10 at most.
const MAX_DIGITS: usize = 18;

/// The longest answer to PSYNC; a refusal may repeat arguments.
const MAX_ANSWER_BYTES: usize = 4 << 10;

/// A publication, in the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publication<'a> {
    pub(crate) channel: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// The offset of the command's last byte: the log's offset once it was executed.
    pub(crate) offset: u64,
}

/// Where a publication is in the decoder's buffer, until the next [`Decoder::room`].
#[derive(Debug)]
pub(super) struct Found {
    channel: Part,
    payload: Part,
    offset: u64,
}

/// The answer to PSYNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The log follows.
    Continue,
    /// All data of the node would follow.
    FullResync,
    Refused(String),
}

/// What is no replication log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A log, as far as it was read.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: ReadBuffer,
    /// The offset of the last byte that was decoded.
    offset: u64,
    /// Bytes of the present argument that are still to be passed over.
    skip: u64,
    /// Arguments behind the present one that are still to be passed over.
    arguments: u64,
}

/// What the unread bytes start with, at the start of a command or of an argument that is passed over.
enum Step {
    /// It is not whole.
    Incomplete,
    /// So many bytes were understood; the argument behind them and further ones are passed over.
    PassOver { len: usize, skip: u64, arguments: u64 },
    /// A publication, as parts of the unread bytes.
    Publication { channel: Part, payload: Part, len: usize },
}

impl Decoder {
    /// For a log of which the byte behind `offset` comes next.
    pub(super) fn new(offset: u64) -> Self {
        Self { buffer: ReadBuffer::default(), offset, skip: 0, arguments: 0 }
    }

    /// The offset of the last byte that was decoded.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The offset of the last byte that has arrived.
    pub(super) fn received(&self) -> u64 {
        self.offset + self.buffer.unread().len() as u64
    }

    /// Where the next bytes go; never empty.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.room()
    }

    /// So many bytes were written to [`Decoder::room`].
    pub(super) fn filled(&mut self, len: usize) {
        self.buffer.filled(len);
    }

    /// Takes the answer to PSYNC, which precedes the log and has no offset; `None` while it is not whole. Before it, a
    /// node that is busy sends line feeds.
    ///
    /// # Errors
    /// It is no answer.
    pub(super) fn answer(&mut self) -> Result<Option<Answer>, Malformed> {
        let line_feeds = self.buffer.unread().iter().take_while(|byte| **byte == b'\n').count();
        self.buffer.consume(line_feeds);
        let unread = self.buffer.unread();
        let Some(end) = unread.iter().position(|byte| *byte == b'\n') else {
            return if unread.len() < MAX_ANSWER_BYTES { Ok(None) } else { Err(Malformed) };
        };
        let line = String::from_utf8_lossy(unread.get(..end).unwrap_or_default());
        let line = line.trim_end();
        let answer = match line.split(' ').next() {
            Some("+CONTINUE") => Answer::Continue,
            Some("+FULLRESYNC") => Answer::FullResync,
            _ => Answer::Refused(line.strip_prefix('-').ok_or(Malformed)?.to_owned()),
        };
        self.buffer.consume(end + 1);
        Ok(Some(answer))
    }

    /// Takes the next publication; `None` while it is not whole.
    ///
    /// # Errors
    /// The bytes are no log.
    pub(super) fn next(&mut self) -> Result<Option<Found>, Malformed> {
        loop {
            self.pass_over();
            if self.skip > 0 {
                return Ok(None);
            }
            match step(self.buffer.unread(), self.arguments)? {
                Step::Incomplete => return Ok(None),
                Step::PassOver { len, skip, arguments } => {
                    self.consume(len);
                    (self.skip, self.arguments) = (skip, arguments);
                }
                Step::Publication { channel, payload, len } => {
                    let start = self.buffer.start();
                    self.consume(len);
                    let part = |part: Part| start + part.start..start + part.end;
                    return Ok(Some(Found { channel: part(channel), payload: part(payload), offset: self.offset }));
                }
            }
        }
    }

    /// The publication that was found last.
    pub(super) fn publication(&self, found: &Found) -> Publication<'_> {
        let Found { channel, payload, offset } = found;
        Publication { channel: self.buffer.bytes(channel), payload: self.buffer.bytes(payload), offset: *offset }
    }

    /// Drops what has come of an argument that is passed over.
    fn pass_over(&mut self) {
        let here = usize::try_from(self.skip).unwrap_or(usize::MAX).min(self.buffer.unread().len());
        self.consume(here);
        self.skip -= here as u64;
    }

    fn consume(&mut self, len: usize) {
        self.buffer.consume(len);
        self.offset += len as u64;
    }
}

/// Looks at the next bytes: `arguments` of a command are still to be passed over, or a command starts.
fn step(unread: &[u8], arguments: u64) -> Result<Step, Malformed> {
    if let Some(arguments) = arguments.checked_sub(1) {
        return Ok(match header(unread, b'$')? {
            Some((bytes, len)) => Step::PassOver { len, skip: bytes + 2, arguments },
            None => Step::Incomplete,
        });
    }
    let Some((count, len)) = header(unread, b'*')? else { return Ok(Step::Incomplete) };
    // The command's name decides, unless it has another number of arguments than PUBLISH.
    let pass_over = Step::PassOver { len, skip: 0, arguments: count };
    if count != 3 {
        return Ok(pass_over);
    }
    let Some((name, at)) = bulk(unread, len, |len| [b"PUBLISH".len(), b"SPUBLISH".len()].contains(&len))? else {
        return Ok(Step::Incomplete);
    };
    let name = name.and_then(|name| unread.get(name)).unwrap_or_default();
    if !name.eq_ignore_ascii_case(b"PUBLISH") && !name.eq_ignore_ascii_case(b"SPUBLISH") {
        return Ok(pass_over);
    }
    let Some((Some(channel), at)) = bulk(unread, at, |_| true)? else { return Ok(Step::Incomplete) };
    let Some((Some(payload), len)) = bulk(unread, at, |_| true)? else { return Ok(Step::Incomplete) };
    Ok(Step::Publication { channel, payload, len })
}

/// The bulk string at `start` if its length is of interest, and where it ends; `None` while it is not whole.
fn bulk(
    bytes: &[u8],
    start: usize,
    is_of_interest: impl FnOnce(usize) -> bool,
) -> Result<Option<(Option<Part>, usize)>, Malformed> {
    let Some((len, head)) = header(bytes.get(start..).unwrap_or_default(), b'$')? else { return Ok(None) };
    let (len, start) = (usize::try_from(len).map_err(|_| Malformed)?, start + head);
    if !is_of_interest(len) {
        return Ok(Some((None, start)));
    }
    let end = start + len;
    match bytes.get(end..end + 2) {
        Some(b"\r\n") => Ok(Some((Some(start..end), end + 2))),
        Some(_) => Err(Malformed),
        None => Ok(None),
    }
}

/// The number behind `kind`, and the length of its line; `None` while that is not whole.
fn header(bytes: &[u8], kind: u8) -> Result<Option<(u64, usize)>, Malformed> {
    let Some((first, digits)) = bytes.split_first() else { return Ok(None) };
    if *first != kind {
        return Err(Malformed);
    }
    let mut number = 0;
    for (at, byte) in digits.iter().enumerate().take(MAX_DIGITS + 1) {
        match byte {
            b'0'..=b'9' if at < MAX_DIGITS => number = 10 * number + u64::from(byte - b'0'),
            b'\r' if at > 0 => {
                return match digits.get(at + 1) {
                    Some(b'\n') => Ok(Some((number, at + 3))),
                    Some(_) => Err(Malformed),
                    None => Ok(None),
                };
            }
            _ => return Err(Malformed),
        }
    }
    Ok(None)
}

/// The payloads of the publications in a log that arrives in pieces of `piece` bytes, up to what is cut or broken.
#[cfg(feature = "internals")]
pub(crate) fn publications(log: &[u8], piece: usize, mut on_payload: impl FnMut(&[u8])) {
    let mut decoder = Decoder::new(0);
    for mut piece in log.chunks(piece.max(1)) {
        while !piece.is_empty() {
            let room = decoder.room();
            let (now, later) = piece.split_at(room.len().min(piece.len()));
            room.iter_mut().zip(now).for_each(|(room, byte)| *room = *byte);
            decoder.filled(now.len());
            piece = later;
            loop {
                match decoder.next() {
                    Ok(Some(found)) => on_payload(decoder.publication(&found).payload),
                    Ok(None) => break,
                    Err(Malformed) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
