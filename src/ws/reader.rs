//! Judges what a client sends (RFC 6455 §5, §7, §8) and hands over whole messages.
//!
//! A [`Reader`] is the portable half of a session's reading side: the bytes of a frame
//! that is not complete, and the payload of a message that is not complete. An idle
//! reader owns no memory. tungstenite parses the headers and knows the close codes; its
//! context is not used, because the unfinished message inside it could not be moved
//! to another process. That both judge alike is shown by `agrees_with_tungstenite`.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::close::CloseReason;

/// What a client sent, whole and unmasked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message: nobody's business on a text bridge.
    Binary,
    /// A ping and its payload, at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong,
    /// A close frame and its code, when it has one.
    Close(Option<u16>),
}

/// Whether the caller wants the next message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Go on.
    Continue,
    /// Keep what follows for later: there is no room for it now.
    Pause,
    /// Nothing that follows is to be read (RFC 6455 §5.5.1).
    Stop,
}

/// A message whose last frame has not come.
#[derive(Debug, Default)]
struct Unfinished {
    is_text: bool,
    payload: Vec<u8>,
}

/// The reading side of a session between two reads.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    unread: Vec<u8>,
    unfinished: Option<Box<Unfinished>>,
}

impl Reader {
    /// Whether bytes wait that were read and not judged.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Judges `fresh`, the bytes just read, after those kept from before, and hands each
    /// whole message to `on` until it says [`Flow::Pause`] or [`Flow::Stop`].
    /// `fresh` is unmasked in place. Messages may have `max_message_bytes`.
    ///
    /// # Errors
    /// The reason to close the session with; what follows in the stream must not be read.
    pub(crate) fn feed(
        &mut self,
        fresh: &mut [u8],
        max_message_bytes: usize,
        mut on: impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<Flow, CloseReason> {
        if self.unread.is_empty() {
            let (flow, used) = self.judge(fresh, max_message_bytes, &mut on)?;
            if flow != Flow::Stop {
                self.unread.extend_from_slice(fresh.get(used..).unwrap_or_default());
            }
            return Ok(flow);
        }
        let mut kept = std::mem::take(&mut self.unread);
        kept.extend_from_slice(fresh);
        let (flow, used) = self.judge(&mut kept, max_message_bytes, &mut on)?;
        if flow != Flow::Stop && used < kept.len() {
            kept.drain(..used);
            self.unread = kept;
        }
        Ok(flow)
    }

    /// Judges the frames in `bytes`; returns how many bytes they took.
    fn judge(
        &mut self,
        bytes: &mut [u8],
        max_message_bytes: usize,
        on: &mut impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<(Flow, usize), CloseReason> {
        let mut used = 0;
        loop {
            let rest = bytes.get_mut(used..).unwrap_or_default();
            let Some(frame) = parse_header(rest)? else { return Ok((Flow::Continue, used)) };
            self.check(&frame, max_message_bytes)?;
            let end = frame.header_bytes + frame.payload_bytes;
            let Some(payload) = rest.get_mut(frame.header_bytes..end) else {
                return Ok((Flow::Continue, used));
            };
            unmask(payload, frame.mask);
            used += end;
            match self.accept(&frame, payload, on)? {
                Flow::Continue => {}
                other => return Ok((other, used)),
            }
        }
    }

    /// What can be said before the payload is there.
    fn check(&self, frame: &Frame, max_message_bytes: usize) -> Result<(), CloseReason> {
        match frame.opcode {
            OpCode::Control(_) if !frame.is_final || frame.payload_bytes > 125 => Err(CloseReason::ProtocolError),
            OpCode::Control(_) => Ok(()),
            OpCode::Data(data) => {
                let is_continuation = data == Data::Continue;
                if is_continuation != self.unfinished.is_some() {
                    return Err(CloseReason::ProtocolError);
                }
                let before = self.unfinished.as_ref().map_or(0, |message| message.payload.len());
                if frame.payload_bytes > max_message_bytes.saturating_sub(before) {
                    return Err(CloseReason::TooBig);
                }
                Ok(())
            }
        }
    }

    fn accept(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        on: &mut impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<Flow, CloseReason> {
        let data = match frame.opcode {
            OpCode::Control(Control::Ping) => return Ok(on(Incoming::Ping(payload))),
            OpCode::Control(Control::Close) => return Ok(on(Incoming::Close(close_code(payload)?))),
            OpCode::Control(_) => return Ok(on(Incoming::Pong)),
            OpCode::Data(data) => data,
        };
        if data != Data::Continue && frame.is_final {
            return hand_over(data == Data::Text, payload, on);
        }
        let message = self
            .unfinished
            .get_or_insert_with(|| Box::new(Unfinished { is_text: data == Data::Text, payload: Vec::new() }));
        // Of a binary message only the length matters: it is not handed on.
        message.payload.extend_from_slice(payload);
        match frame.is_final.then(|| self.unfinished.take()).flatten() {
            Some(whole) => hand_over(whole.is_text, &whole.payload, on),
            None => Ok(Flow::Continue),
        }
    }
}

fn hand_over(is_text: bool, payload: &[u8], on: &mut impl FnMut(Incoming<'_>) -> Flow) -> Result<Flow, CloseReason> {
    if !is_text {
        return Ok(on(Incoming::Binary));
    }
    let text = std::str::from_utf8(payload).map_err(|_| CloseReason::InvalidText)?;
    Ok(on(Incoming::Text(text)))
}

/// A frame's header, checked as far as it can be alone.
struct Frame {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    header_bytes: usize,
    payload_bytes: usize,
}

fn parse_header(bytes: &[u8]) -> Result<Option<Frame>, CloseReason> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CloseReason::ProtocolError)?;
    let Some((header, length)) = parsed else { return Ok(None) };
    // No extension was agreed on, so every RSV bit is a fault (§5.2); a client masks (§5.1).
    let (false, Some(mask)) = (header.rsv1 || header.rsv2 || header.rsv3, header.mask) else {
        return Err(CloseReason::ProtocolError);
    };
    Ok(Some(Frame {
        opcode: header.opcode,
        is_final: header.is_final,
        mask,
        header_bytes: usize::try_from(cursor.position()).map_err(|_| CloseReason::TooBig)?,
        // Above isize::MAX the sum with the header could overflow; nothing that long is allowed.
        payload_bytes: isize::try_from(length).map_err(|_| CloseReason::TooBig)?.unsigned_abs(),
    }))
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseReason> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !CloseCode::from(code).is_allowed() {
                return Err(CloseReason::ProtocolError);
            }
            std::str::from_utf8(reason).map_err(|_| CloseReason::InvalidText)?;
            Ok(Some(code))
        }
        [_] => Err(CloseReason::ProtocolError),
    }
}

/// RFC 6455 §5.3. Eight bytes at a time: the compiler makes vector code of it.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}
