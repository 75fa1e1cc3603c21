//! Decodes a client's frames (RFC 6455 §5, §7, §8) into whole messages.
//!
//! A [`Reader`] keeps the bytes of an incomplete frame and the payload of an incomplete message; both go into a
//! session's snapshot. An idle reader owns no memory. tungstenite parses headers and checks close codes. Its context is
//! not used, because the unfinished message inside cannot move to another process. The test `agrees_with_tungstenite`
//! compares the two decoders. May not enter: sockets, what becomes of a message.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use crate::close::CloseReason;

/// A whole message or control frame of a client, unmasked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping and its payload, at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, solicited or not.
    Pong,
    /// A close frame and its code, if any.
    Close(Option<u16>),
}

/// Whether the caller wants the next message now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Yes.
    Continue,
    /// No: the reader keeps the bytes that follow, because the caller has no room for more messages.
    Pause,
    /// No: the bytes that follow are dropped (RFC 6455 §5.5.1).
    Stop,
    /// Only from the reader: [`FRAMES_PER_TURN`] frames were decoded, and other sessions have their turn first.
    Interrupt,
}

/// Capacity that the buffer of unread bytes may keep beyond its length, in bytes. Chosen: a page.
const KEPT_ROOM: usize = 4 << 10;

/// Frames decoded in one turn. Chosen: a read of the smallest frames holds eleven times as many. A turn takes some
/// 30 µs, or 200 µs when each frame is a message.
const FRAMES_PER_TURN: usize = 1_024;

/// A message whose last frame has not arrived.
#[derive(Debug, Default)]
struct Unfinished {
    is_text: bool,
    payload: Vec<u8>,
}

/// The reading side of a session between two reads.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    unread: Vec<u8>,
    /// Whether `unread` may begin with a whole frame, because a turn ended.
    was_interrupted: bool,
    unfinished: Option<Box<Unfinished>>,
}

impl Reader {
    /// Whether bytes wait that were received and not decoded.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Bytes of memory that the reader owns.
    pub(crate) fn memory(&self) -> usize {
        self.unread.capacity() + self.unfinished.as_ref().map_or(0, |message| message.payload.capacity())
    }

    /// Whether the last turn ended before the received bytes did: call [`Reader::feed`] again, without fresh bytes.
    pub(crate) fn was_interrupted(&self) -> bool {
        self.was_interrupted
    }

    /// For a snapshot: the bytes that were received and not decoded, and the unfinished message. Of the latter: whether
    /// it is a text message, and its payload so far.
    pub(crate) fn parts(&self) -> (&[u8], Option<(bool, &[u8])>) {
        (&self.unread, self.unfinished.as_ref().map(|message| (message.is_text, &*message.payload)))
    }

    /// A reader that continues from another's [`Reader::parts`].
    pub(crate) fn from_parts(unread: Vec<u8>, unfinished: Option<(bool, Vec<u8>)>) -> Self {
        let unfinished = unfinished.map(|(is_text, payload)| Box::new(Unfinished { is_text, payload }));
        Self { was_interrupted: !unread.is_empty(), unread, unfinished }
    }

    /// Decodes the bytes kept from before, then `fresh`, the bytes just received. Passes each whole message to `on`,
    /// until `on` returns [`Flow::Pause`] or [`Flow::Stop`]. Unmasks `fresh` in place. A message may have
    /// `max_message_bytes`.
    ///
    /// # Errors
    /// The reason to close the session with; the bytes that follow must not be read.
    pub(crate) fn feed(
        &mut self,
        fresh: &mut [u8],
        max_message_bytes: usize,
        mut on: impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<Flow, CloseReason> {
        self.was_interrupted = false;
        if self.unread.is_empty() {
            let (flow, used) = self.decode(fresh, max_message_bytes, &mut on)?;
            self.was_interrupted = flow == Flow::Interrupt;
            if flow != Flow::Stop {
                self.unread.extend_from_slice(fresh.get(used..).unwrap_or_default());
            }
            return Ok(flow);
        }
        let mut kept = std::mem::take(&mut self.unread);
        kept.extend_from_slice(fresh);
        let (flow, used) = self.decode(&mut kept, max_message_bytes, &mut on)?;
        self.was_interrupted = flow == Flow::Interrupt;
        if flow != Flow::Stop && used < kept.len() {
            kept.drain(..used);
            if kept.capacity() > 4 * kept.len() + KEPT_ROOM {
                // The capacity that a flood needed is not kept for the start of one frame.
                kept.shrink_to_fit();
            }
            self.unread = kept;
        }
        Ok(flow)
    }

    /// Decodes the frames in `bytes`; returns the number of bytes that they took.
    fn decode(
        &mut self,
        bytes: &mut [u8],
        max_message_bytes: usize,
        on: &mut impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<(Flow, usize), CloseReason> {
        let mut used = 0;
        for _ in 0..FRAMES_PER_TURN {
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
        Ok((Flow::Interrupt, used))
    }

    /// Checks a header before its payload has arrived; the header itself may be incomplete.
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
            return pass_on(data == Data::Text, payload, on);
        }
        let message = self
            .unfinished
            .get_or_insert_with(|| Box::new(Unfinished { is_text: data == Data::Text, payload: Vec::new() }));
        message.payload.extend_from_slice(payload);
        match frame.is_final.then(|| self.unfinished.take()).flatten() {
            Some(whole) => pass_on(whole.is_text, &whole.payload, on),
            None => Ok(Flow::Continue),
        }
    }
}

fn pass_on(is_text: bool, payload: &[u8], on: &mut impl FnMut(Incoming<'_>) -> Flow) -> Result<Flow, CloseReason> {
    if !is_text {
        return Ok(on(Incoming::Binary(payload)));
    }
    let text = std::str::from_utf8(payload).map_err(|_| CloseReason::InvalidText)?;
    Ok(on(Incoming::Text(text)))
}

/// A frame's header, checked without regard to the frames before.
struct Frame {
    opcode: OpCode,
    is_final: bool,
    mask: [u8; 4],
    header_bytes: usize,
    payload_bytes: usize,
}

/// The longest header of a client's frame: 2 bytes, a 64-bit length and the mask.
const MAX_HEADER_BYTES: usize = 14;

/// Parses a header of which at least two bytes have arrived, with zeros for missing bytes. So a fault is found as soon
/// as its bytes arrive: the length of a message that is too long comes before the mask. With a part of the header
/// missing, the payload is missing, too, so zeros never become a frame.
fn parse_header(bytes: &[u8]) -> Result<Option<Frame>, CloseReason> {
    if bytes.len() < 2 {
        return Ok(None);
    }
    let mut padded = [0; MAX_HEADER_BYTES];
    let header = if bytes.len() < MAX_HEADER_BYTES {
        padded.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
        &padded
    } else {
        bytes
    };
    let mut cursor = Cursor::new(header);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| CloseReason::ProtocolError)?;
    let Some((header, length)) = parsed else { return Ok(None) };
    // No extension is negotiated, so each RSV bit is a fault (§5.2); a client must mask (§5.1).
    let (false, Some(mask)) = (header.rsv1 || header.rsv2 || header.rsv3, header.mask) else {
        return Err(CloseReason::ProtocolError);
    };
    Ok(Some(Frame {
        opcode: header.opcode,
        is_final: header.is_final,
        mask,
        header_bytes: usize::try_from(cursor.position()).map_err(|_| CloseReason::TooBig)?,
        // Above isize::MAX the sum with the header's length could overflow; no endpoint allows such a message.
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

/// RFC 6455 §5.3. Eight bytes at a time, which the compiler turns into vector code.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::websocket::client_frame::client_frame as frame;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::io::{self, Read, Write};
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
    use tokio_tungstenite::tungstenite::{Error, Message};

    const MAX: usize = 1_000;
    const TEXT: u8 = 0x81;
    const BINARY: u8 = 0x82;
    const CLOSE: u8 = 0x88;
    const PING: u8 = 0x89;
    const PONG: u8 = 0x8a;
    const NOT_LAST: u8 = 0x7f;

    /// An [`Incoming`] that owns its payload.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Event {
        Text(String),
        Binary(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    /// The result of reading a whole stream.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum End {
        /// No fault; more bytes may follow.
        Open,
        Closed,
        Fault(CloseReason),
    }

    fn kept(incoming: &Incoming<'_>) -> Event {
        match incoming {
            Incoming::Text(text) => Event::Text((*text).to_owned()),
            Incoming::Binary(payload) => Event::Binary(payload.to_vec()),
            Incoming::Ping(payload) => Event::Ping(payload.to_vec()),
            Incoming::Pong => Event::Pong,
            Incoming::Close(code) => Event::Close(*code),
        }
    }

    /// Feeds `chunks`; after each message, `pauses` tells whether the reader pauses.
    fn read(chunks: &[Vec<u8>], mut pauses: impl FnMut() -> bool) -> (Vec<Event>, End) {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for chunk in chunks {
            let mut fresh = chunk.clone();
            loop {
                let flow = reader.feed(&mut fresh, MAX, |incoming| {
                    let event = kept(&incoming);
                    events.push(event.clone());
                    match event {
                        Event::Close(_) => Flow::Stop,
                        _ if pauses() => Flow::Pause,
                        _ => Flow::Continue,
                    }
                });
                match flow {
                    Ok(Flow::Continue) => break,
                    Ok(Flow::Pause | Flow::Interrupt) => fresh.clear(),
                    Ok(Flow::Stop) => return (events, End::Closed),
                    Err(reason) => return (events, End::Fault(reason)),
                }
            }
        }
        (events, End::Open)
    }

    fn read_whole(bytes: &[u8]) -> (Vec<Event>, End) {
        read(&[bytes.to_vec()], || false)
    }

    #[track_caller]
    fn assert_refused(frames: &[Vec<u8>], reason: CloseReason) {
        let bytes = frames.concat();
        assert_eq!(read_whole(&bytes), (vec![], End::Fault(reason)));
        // The same when the bytes arrive one by one.
        let single: Vec<_> = bytes.iter().map(|byte| vec![*byte]).collect();
        assert_eq!(read(&single, || false), (vec![], End::Fault(reason)));
    }

    #[test]
    fn whole_messages_come_out_and_an_idle_reader_owns_nothing() {
        let mut reader = Reader::default();
        let mut bytes = [
            frame(TEXT, b"a"),
            frame(TEXT & NOT_LAST, "z\u{fc}".as_bytes().split_at(2).0),
            frame(PING, b"p"),
            frame(0x80, "z\u{fc}".as_bytes().split_at(2).1),
            frame(BINARY, b"\xff"),
            frame(PONG, b""),
            frame(TEXT, b""),
        ]
        .concat();
        let mut events = Vec::new();
        let flow = reader.feed(&mut bytes, MAX, |incoming| {
            events.push(kept(&incoming));
            Flow::Continue
        });
        let text = |text: &str| Event::Text(text.to_owned());
        let binary = Event::Binary(b"\xff".to_vec());
        let expected = [text("a"), Event::Ping(b"p".to_vec()), text("z\u{fc}"), binary, Event::Pong, text("")];
        assert_eq!((flow, &events[..]), (Ok(Flow::Continue), &expected[..]));
        assert!(!reader.has_unread() && reader.unread.capacity() == 0 && reader.unfinished.is_none());
    }

    #[test]
    fn what_breaks_the_framing_is_a_protocol_error() {
        let faults = [
            // RSV bits without an extension, §5.2.
            vec![frame(TEXT | 0x40, b"x")],
            vec![frame(TEXT | 0x20, b"x")],
            vec![frame(TEXT | 0x10, b"x")],
            // Reserved opcodes.
            vec![frame(0x83, b"x")],
            vec![frame(0x87, b"x")],
            vec![frame(0x8b, b"x")],
            vec![frame(0x8f, b"x")],
            // Unmasked, §5.1.
            vec![vec![TEXT, 1, b'x']],
            // Control frames are whole and short, §5.5.
            vec![frame(PING & NOT_LAST, b"x")],
            vec![frame(CLOSE & NOT_LAST, b"")],
            vec![frame(PING, &[b'x'; 126])],
            // Fragments, §5.4.
            vec![frame(0x80, b"x")],
            vec![frame(0x00, b"x")],
            vec![frame(TEXT & NOT_LAST, b"x"), frame(TEXT, b"x")],
            vec![frame(TEXT & NOT_LAST, b"x"), frame(BINARY & NOT_LAST, b"x")],
            // Close, §5.5.1 and §7.4.
            vec![frame(CLOSE, b"x")],
            vec![frame(CLOSE, &999_u16.to_be_bytes())],
            vec![frame(CLOSE, &1004_u16.to_be_bytes())],
            vec![frame(CLOSE, &1005_u16.to_be_bytes())],
            vec![frame(CLOSE, &1006_u16.to_be_bytes())],
            vec![frame(CLOSE, &1015_u16.to_be_bytes())],
            vec![frame(CLOSE, &2999_u16.to_be_bytes())],
            vec![frame(CLOSE, &5000_u16.to_be_bytes())],
        ];
        for fault in faults {
            assert_refused(&fault, CloseReason::ProtocolError);
        }
    }

    #[test]
    fn a_text_that_is_not_utf8_is_invalid() {
        assert_refused(&[frame(TEXT, b"\xff")], CloseReason::InvalidText);
        assert_refused(&[frame(TEXT, b"\xed\xa0\x80")], CloseReason::InvalidText);
        assert_refused(&[frame(TEXT, b"\xe4\xb8")], CloseReason::InvalidText);
        assert_refused(&[frame(TEXT & NOT_LAST, b"\xe4\xb8"), frame(0x80, b"x")], CloseReason::InvalidText);
        assert_refused(&[frame(CLOSE, b"\x03\xe8\xff")], CloseReason::InvalidText);
    }

    #[test]
    fn a_message_that_is_too_big_is_refused_before_it_arrives() {
        // As soon as the length has arrived, which is before the mask.
        assert_refused(&[frame(TEXT, &[b'x'; MAX + 1])[..4].to_vec()], CloseReason::TooBig);
        assert_refused(&[frame(BINARY, &[b'x'; MAX + 1])[..4].to_vec()], CloseReason::TooBig);
        let half = frame(TEXT & NOT_LAST, &[b'x'; MAX / 2]);
        assert_refused(&[half.clone(), frame(0x80, &[b'x'; MAX / 2 + 1])[..4].to_vec()], CloseReason::TooBig);
        let most = frame(TEXT & NOT_LAST, &[b'x'; MAX - 10]);
        assert_refused(&[most, frame(0x80, &[b'x'; 11])[..2].to_vec()], CloseReason::TooBig);
        for length in [u64::MAX, 1 << 63, (1 << 63) - 1, 0x7fff_ffff, 1 << 32, MAX as u64 + 1] {
            assert_refused(&[[&[TEXT, 0xff][..], &length.to_be_bytes()].concat()], CloseReason::TooBig);
        }
        let (events, end) = read_whole(&[half, frame(0x80, &[b'x'; MAX / 2])].concat());
        assert_eq!((events, end), (vec![Event::Text("x".repeat(MAX))], End::Open));
    }

    #[test]
    fn a_fault_in_the_first_two_bytes_is_found_when_they_arrive() {
        for bytes in [[TEXT | 0x40, 0x81], [0x83, 0x80], [TEXT, 1], [PING & NOT_LAST, 0x80], [0x80, 0x80], [0x00, 0xfe]]
        {
            assert_refused(&[bytes.to_vec()], CloseReason::ProtocolError);
        }
        // A control frame whose length is not in its second byte is too long.
        assert_refused(&[vec![PING, 0xfe, 0, 126]], CloseReason::ProtocolError);
        assert_refused(&[vec![CLOSE, 0xff, 0, 0, 0, 0, 0, 0, 1, 0]], CloseReason::ProtocolError);
    }

    #[test]
    fn nothing_is_read_behind_a_close_frame() {
        let code = |code: u16| [frame(CLOSE, &code.to_be_bytes()), frame(0xff, b"garbage")].concat();
        for good in [1000, 1001, 1003, 1007, 1011, 1013, 3000, 4999] {
            assert_eq!(read_whole(&code(good)), (vec![Event::Close(Some(good))], End::Closed), "{good}");
        }
        assert_eq!(read_whole(&frame(CLOSE, b"")), (vec![Event::Close(None)], End::Closed));
        assert_eq!(read_whole(&frame(CLOSE, b"\x03\xe8bye")), (vec![Event::Close(Some(1000))], End::Closed));
    }

    #[test]
    fn a_pause_keeps_every_byte_that_follows() {
        let mut reader = Reader::default();
        let mut bytes = [frame(TEXT, b"1"), frame(TEXT, b"2"), frame(TEXT, b"3")].concat();
        let rest = bytes.split_off(bytes.len() - 3);
        let mut texts = Vec::new();
        let mut one = |reader: &mut Reader, fresh: &mut [u8]| {
            reader.feed(fresh, MAX, |incoming| {
                texts.push(kept(&incoming));
                Flow::Pause
            })
        };
        assert_eq!(one(&mut reader, &mut bytes), Ok(Flow::Pause));
        assert!(reader.has_unread());
        assert_eq!(one(&mut reader, &mut []), Ok(Flow::Pause));
        // The third message is incomplete.
        assert_eq!(one(&mut reader, &mut []), Ok(Flow::Continue));
        assert_eq!(one(&mut reader, &mut rest.clone()), Ok(Flow::Pause));
        assert!(!reader.has_unread());
        assert_eq!(texts, ["1", "2", "3"].map(|text| Event::Text(text.to_owned())));
    }

    /// What tungstenite found.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Theirs {
        Open,
        Closed,
        Protocol,
        Utf8,
        Capacity,
    }

    /// A stream that gives the chunks one by one, and takes everything that is written.
    struct Chunks(VecDeque<Vec<u8>>);

    impl Read for Chunks {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(mut chunk) = self.0.pop_front() else { return Err(io::ErrorKind::WouldBlock.into()) };
            let rest = chunk.split_off(chunk.len().min(buffer.len()));
            buffer[..chunk.len()].copy_from_slice(&chunk);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            Ok(chunk.len())
        }
    }

    impl Write for Chunks {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What tungstenite decodes from `chunks`, and then from `more`.
    fn read_by_tungstenite(chunks: &[Vec<u8>], more: &[u8]) -> (Vec<Event>, Theirs, Theirs) {
        let config = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
        let mut context = WebSocketContext::new(Role::Server, Some(config));
        let mut stream = Chunks(chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect());
        let mut events = Vec::new();
        let mut end = |events: &mut Vec<Event>, stream: &mut Chunks| loop {
            events.push(match context.read(stream) {
                Ok(Message::Text(text)) => Event::Text(text.as_str().to_owned()),
                Ok(Message::Binary(payload)) => Event::Binary(payload.to_vec()),
                Ok(Message::Ping(payload)) => Event::Ping(payload.to_vec()),
                Ok(Message::Pong(_)) => Event::Pong,
                Ok(Message::Close(close)) => {
                    events.push(Event::Close(close.map(|close| close.code.into())));
                    return Theirs::Closed;
                }
                Ok(Message::Frame(_)) => unreachable!("never read"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Theirs::Open,
                Err(Error::Protocol(_)) => return Theirs::Protocol,
                Err(Error::Utf8(_)) => return Theirs::Utf8,
                Err(Error::Capacity(_)) => return Theirs::Capacity,
                Err(other) => panic!("{other}"),
            });
        };
        let first = end(&mut events, &mut stream);
        let mut second = first;
        if first == Theirs::Open {
            stream.0.push_back(more.to_vec());
            // Messages that it decodes from the filling behind the frame do not count.
            second = end(&mut Vec::new(), &mut stream);
        }
        (events, first, second)
    }

    /// One or several frames that belong together.
    fn step() -> impl Strategy<Value = Vec<u8>> {
        let text = || "[a-z\u{e4}\u{4e2d}\u{1f600}]{0,40}";
        let payload = || {
            prop_oneof![
                4 => text().prop_map(String::into_bytes),
                1 => (MAX - 3..MAX + 3).prop_map(|length| vec![b'x'; length]),
                1 => vec(any::<u8>(), 0..200),
            ]
        };
        let control =
            || (prop_oneof![Just(PING), Just(PONG)], vec(any::<u8>(), 0..130)).prop_map(|(o, p)| frame(o, &p));
        let fragmented =
            (prop_oneof![Just(TEXT), Just(BINARY)], payload(), vec((0..400_usize, 0..3_u8, control()), 1..4)).prop_map(
                |(opcode, payload, cuts)| {
                    let mut out = Vec::new();
                    let mut rest = &payload[..];
                    let mut first = opcode & NOT_LAST;
                    for (cut, controls, control) in cuts {
                        let (piece, after) = rest.split_at(cut.min(rest.len()));
                        out.extend(frame(first, piece));
                        (0..controls).for_each(|_| out.extend(&control));
                        (first, rest) = (0x00, after);
                    }
                    out.extend(frame(0x80, rest));
                    out
                },
            );
        let close = prop_oneof![
            Just(Vec::new()),
            (prop_oneof![Just(1000_u16), 990..1020_u16, any::<u16>()], text()).prop_map(|(code, reason)| [
                &code.to_be_bytes()[..],
                reason.as_bytes()
            ]
            .concat()),
            vec(any::<u8>(), 0..4),
        ];
        prop_oneof![
            8 => payload().prop_map(|payload| frame(TEXT, &payload)),
            3 => payload().prop_map(|payload| frame(BINARY, &payload)),
            6 => fragmented,
            3 => control(),
            1 => close.prop_map(|payload| frame(CLOSE, &payload)),
            1 => (any::<u8>(), payload()).prop_map(|(first, payload)| frame(first, &payload)),
        ]
    }

    /// A client's bytes: mostly valid, sometimes with some bits turned over.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let damage = prop_oneof![3 => Just(vec![]), 1 => vec((any::<prop::sample::Index>(), 0..8_u8), 1..3)];
        (vec(step(), 1..8), damage).prop_map(|(steps, damage)| {
            let mut bytes = steps.concat();
            for (index, bit) in damage {
                let at = index.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            bytes
        })
    }

    fn cut(bytes: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut rest = bytes;
        let mut sizes = sizes.iter().cycle();
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(sizes.next().copied().unwrap_or(1).min(rest.len()));
            chunks.push(chunk.to_vec());
            rest = after;
        }
        chunks
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Both decoders find the same messages and end in the same way, except for these differences:
        ///
        /// - This reader refuses a header when it arrives, tungstenite when the payload has arrived, too. So
        ///   tungstenite gets filling for the frame that this reader has refused.
        /// - A control frame or a wrong fragment that is also too long is a protocol error here, and too big for
        ///   tungstenite, which checks the length first.
        /// - tungstenite checks the UTF-8 of each fragment, this reader checks the whole message.
        /// - A close frame with a forbidden code is a fault here; tungstenite passes it on as 1002.
        #[test]
        fn agrees_with_tungstenite(
            bytes in stream(),
            sizes in prop_oneof![Just(vec![1]), vec(1..50_usize, 1..5), Just(vec![100_000])],
            pauses in vec(any::<bool>(), 1..5),
        ) {
            let chunks = cut(&bytes, &sizes);
            let mut pauses = pauses.iter().cycle();
            let (ours, end) = read(&chunks, || pauses.next().is_some_and(|pauses| *pauses));
            let (mut theirs, at_first, with_filling) = read_by_tungstenite(&chunks, &[0; MAX + 200]);
            match (end, at_first) {
                (_, Theirs::Utf8) if end != End::Fault(CloseReason::InvalidText) || ours != theirs => {
                    // tungstenite found the fault in a fragment. Until that message ends, only control frames come
                    // here.
                    prop_assert!(ours.starts_with(&theirs), "{ours:?} {theirs:?}");
                    let rest = &ours[theirs.len()..];
                    let is_control = |event: &Event| !matches!(event, Event::Text(_) | Event::Binary(_));
                    prop_assert!(rest.iter().all(is_control), "{rest:?} in a text that is not UTF-8");
                }
                (End::Fault(CloseReason::ProtocolError), Theirs::Closed) => {
                    prop_assert_eq!(theirs.pop(), Some(Event::Close(Some(1002))));
                    prop_assert_eq!(ours, theirs);
                }
                (End::Fault(reason), _) => {
                    prop_assert_eq!(ours, theirs);
                    let agrees = match reason {
                        CloseReason::ProtocolError => matches!(with_filling, Theirs::Protocol | Theirs::Capacity),
                        CloseReason::InvalidText => with_filling == Theirs::Utf8,
                        CloseReason::TooBig => with_filling == Theirs::Capacity,
                        _ => false,
                    };
                    prop_assert!(agrees, "{:?} {:?}", reason, with_filling);
                }
                (End::Open, _) => prop_assert_eq!((ours, Theirs::Open), (theirs, at_first)),
                (End::Closed, _) => prop_assert_eq!((ours, Theirs::Closed), (theirs, at_first)),
            }
        }
    }
}
