//! A session as bytes for another process: everything but its socket. Times are ages in
//! milliseconds, for the other process has another clock.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Phase, Session};
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::protocol::encoding::Wire;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::Outbound;
use crate::protocol::websocket::reader::Reader;

/// What a session is between two reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Portable {
    /// The path of its endpoint.
    pub(crate) endpoint: String,
    pub(crate) channel: ByteBuf,
    wire: Wire,
    /// Why it is being closed, if it is.
    #[serde(default)]
    closing: Option<Closing>,
    /// Bytes that were read and not judged.
    #[serde(default)]
    unread: ByteBuf,
    /// A message whose last frame has not come.
    #[serde(default)]
    unfinished: Option<Unfinished>,
    /// Bytes that were not sent, and how many of them belong to a frame that has begun to leave.
    #[serde(default)]
    unsent: ByteBuf,
    #[serde(default)]
    begun_frame_bytes: usize,
    #[serde(default)]
    progress_ago: Millis,
    heard_ago: Millis,
    pinged_ago: Millis,
    alive_ago: Millis,
    /// Since when there was no progress with its texts.
    #[serde(default)]
    unpublished_ago: Millis,
    #[serde(default)]
    is_paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Closing {
    /// A label of [`CloseReason`].
    reason: String,
    left: Millis,
    /// Whether the client's close frame is to come.
    awaits_reply: bool,
    /// Whether our FIN is sent.
    is_ending: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unfinished {
    is_text: bool,
    payload: ByteBuf,
}

/// Why a session cannot be made of what came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotASession {
    #[error("its channel's name is shorter than the prefix that it has on the wire")]
    Wire,
    #[error("more of a frame is to be sent than there is")]
    Unsent,
}

impl Portable {
    /// Bytes of memory, more or less.
    pub(crate) fn size(&self) -> usize {
        let unfinished = self.unfinished.as_ref().map_or(0, |message| message.payload.len());
        size_of::<Self>() + self.channel.len() + self.unread.len() + unfinished + self.unsent.len()
    }
}

impl Session {
    /// What it is now, its texts that wait for the broker apart; `None` while its handshake is not over.
    pub(crate) fn portable(&self, now: Millis) -> Option<Portable> {
        let ago = |at: Millis| now.saturating_sub(at);
        let closing = match self.phase {
            Phase::Opening => return None,
            Phase::Open => None,
            Phase::Closing { reason, until, awaits_reply } => Some((reason, until, awaits_reply, false)),
            Phase::Ending { reason, until } => Some((reason, until, false, true)),
        };
        let closing = closing.map(|(reason, until, awaits_reply, is_ending)| Closing {
            reason: reason.row().label.to_owned(),
            left: until.saturating_sub(now),
            awaits_reply,
            is_ending,
        });
        let (unread, unfinished) = self.reader.parts();
        let unfinished = unfinished.map(|(is_text, payload)| Unfinished { is_text, payload: ByteBuf::from(payload) });
        let (unsent, begun_frame_bytes) = self.outbound.as_ref().map(|queue| queue.parts()).unwrap_or_default();
        Some(Portable {
            endpoint: self.endpoint.config.path.clone(),
            channel: ByteBuf::from(&*self.channel),
            wire: self.wire.portable(),
            closing,
            unread: ByteBuf::from(unread),
            unfinished,
            unsent: ByteBuf::from(unsent),
            begun_frame_bytes,
            progress_ago: self.outbound.as_ref().map_or(0, |queue| ago(queue.progress_at)),
            heard_ago: ago(self.heard_at),
            pinged_ago: ago(self.pinged_at),
            alive_ago: ago(self.alive_at),
            unpublished_ago: ago(self.unpublished_since),
            is_paused: self.is_paused,
        })
    }

    /// Goes on with what another process had; its texts follow ([`Session::adopt_text`]).
    ///
    /// # Errors
    /// When that contradicts itself.
    pub(crate) fn adopt(
        portable: Portable,
        endpoint: Rc<Endpoint>,
        socket: OwnedFd,
        now: Millis,
    ) -> Result<Self, NotASession> {
        let at = |ago: Millis| now.saturating_sub(ago);
        let channel = Channel::from(portable.channel.into_vec());
        if matches!(portable.wire, Wire::Lua { name_at } if name_at > channel.len()) {
            return Err(NotASession::Wire);
        }
        if portable.begun_frame_bytes > portable.unsent.len() {
            return Err(NotASession::Unsent);
        }
        let wire = portable.wire.adopted(endpoint.config.not_utf8);
        let mut session = Self::new(endpoint, channel, wire, now);
        session.socket = Some(socket);
        session.phase = match portable.closing {
            None => Phase::Open,
            Some(Closing { reason, left, awaits_reply, is_ending }) => {
                let is_it = |known: &CloseReason| known.row().label == reason;
                // A newer version may know more reasons than this one.
                let reason = CloseReason::ALL.into_iter().find(is_it).unwrap_or(CloseReason::Internal);
                let until = now.saturating_add(left);
                if is_ending { Phase::Ending { reason, until } } else { Phase::Closing { reason, until, awaits_reply } }
            }
        };
        let unfinished = portable.unfinished.map(|message| (message.is_text, message.payload.into_vec()));
        session.reader = Reader::from_parts(portable.unread.into_vec(), unfinished);
        if !portable.unsent.is_empty() {
            let unsent = Bytes::from(portable.unsent.into_vec());
            let queue = Outbound::from_parts(unsent, portable.begun_frame_bytes, at(portable.progress_ago));
            session.outbound = Some(Box::new(queue));
        }
        session.heard_at = at(portable.heard_ago);
        session.pinged_at = at(portable.pinged_ago);
        session.alive_at = at(portable.alive_ago);
        session.unpublished_since = at(portable.unpublished_ago);
        session.is_paused = portable.is_paused;
        Ok(session)
    }

    /// One of its texts waits for the broker, and counts for so many bytes.
    pub(crate) fn adopt_text(&mut self, bytes: usize) {
        self.unpublished_texts += 1;
        self.unpublished_bytes += bytes;
    }

    /// It was not read for so long, through no fault of its client.
    pub(crate) fn rested(&mut self, time: Millis) {
        self.alive_at += time;
        self.unpublished_since += time;
        if let Some(queue) = &mut self.outbound {
            queue.progress_at += time;
        }
        if let Phase::Closing { until, .. } | Phase::Ending { until, .. } = &mut self.phase {
            *until = until.saturating_add(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BinaryPolicy, EndpointConfig, NotUtf8Policy};
    use crate::protocol::outbound::Batch;
    use crate::protocol::session::{Message, Outcome, Queued, Scratch};
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const NOW: Millis = 100_000;

    fn endpoint() -> Rc<Endpoint> {
        Rc::new(Endpoint::new(EndpointConfig::default()))
    }

    /// An endpoint whose clients may publish binary messages.
    fn plain() -> Rc<Endpoint> {
        let config = EndpointConfig { binary: BinaryPolicy::Publish, ..EndpointConfig::plain() };
        Rc::new(Endpoint::new(config))
    }

    /// A session of a client, who gets the other end.
    fn open(now: Millis) -> (Session, UnixStream) {
        open_at(endpoint(), Wire::Lua { name_at: 5 }, now)
    }

    fn open_at(endpoint: Rc<Endpoint>, wire: Wire, now: Millis) -> (Session, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut session = Session::new(endpoint, Channel::from_static(b"chat:a"), wire, now);
        assert_eq!(session.attach(ours.into(), b"101", now), Outcome::Stay);
        (session, theirs)
    }

    /// What it would be in another process, whose clock shows something else.
    fn moved(session: &mut Session, now: Millis, there: Millis) -> Session {
        let words = rmp_serde::to_vec_named(&session.portable(now).unwrap()).unwrap();
        let portable = rmp_serde::from_slice(&words).unwrap();
        let moved = Session::adopt(portable, session.endpoint.clone(), session.socket.take().unwrap(), there).unwrap();
        assert_eq!(moved.portable(there), session.portable(now), "nothing is lost on the way");
        moved
    }

    /// A masked frame, RFC 6455 §5.2, of less than 126 bytes; the mask is zero.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        [&[first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0], payload].concat()
    }

    proptest! {
        /// Wherever it is cut, each half read by another process, the same messages come out.
        #[test]
        fn what_a_client_sends_is_read_on_byte_by_byte(cut in 0_usize..78) {
            let stream = [
                frame(0x01, b"one, "),
                frame(0x89, b"ping"),
                frame(0x80, "zwei é".as_bytes()),
                frame(0x81, b"3"),
                frame(0x02, b"\xff\x00"),
                frame(0x00, b""),
                frame(0x80, b"\xfe"),
                frame(0x82, b"\xe4"),
            ];
            let stream = stream.concat();
            let (mut session, mut client) = open_at(plain(), Wire::Plain, NOW);
            let mut messages = Vec::new();
            let mut scratch = Scratch::default();
            let (before, behind) = stream.split_at(cut.min(stream.len()));
            for part in [before, behind] {
                client.write_all(part).unwrap();
                let mut keep = |_: &Channel, message: Message<'_>| {
                    messages.push(match message {
                        Message::Text(text) => ("text", text.to_vec()),
                        Message::Binary(bytes) => ("binary", bytes.to_vec()),
                        other => panic!("{other:?}"),
                    });
                    Queued::NOTHING
                };
                // What it brought comes first, and has a turn of its own.
                let mut outcome = session.on_readable(&mut scratch, false, NOW, &mut keep);
                if outcome == Outcome::Again {
                    outcome = session.on_readable(&mut scratch, false, NOW, &mut keep);
                }
                prop_assert_eq!(outcome, Outcome::Stay);
                session = moved(&mut session, NOW, NOW);
            }
            let expected = [("text", "one, zwei é".as_bytes()), ("text", b"3"), ("binary", b"\xff\x00\xfe"), ("binary", b"\xe4")];
            prop_assert_eq!(messages, expected.map(|(kind, bytes)| (kind, bytes.to_vec())));
        }

        /// The decoder takes any bytes.
        #[test]
        fn hostile_words_are_refused_or_make_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..400, flip in any::<u8>()) {
            let (session, _client) = open(NOW);
            let mut words = rmp_serde::to_vec_named(&session.portable(NOW).unwrap()).unwrap();
            if let Some(byte) = words.get_mut(at) {
                *byte ^= flip;
            }
            for words in [&words[..], &bytes, words.get(..at).unwrap_or_default()] {
                let Ok(portable) = rmp_serde::from_slice::<Portable>(words) else { continue };
                let (ours, _theirs) = UnixStream::pair().unwrap();
                ours.set_nonblocking(true).unwrap();
                if let Ok(mut session) = Session::adopt(portable, endpoint(), ours.into(), 7) {
                    session.on_tick(NOW);
                    session.on_writable(NOW);
                    session.judge(&mut [], NOW, &mut |_, _| Queued::NOTHING);
                    session.next_due();
                }
            }
        }
    }

    #[test]
    fn what_a_client_has_not_read_is_sent_on_from_the_byte_where_it_stopped() {
        let (mut session, mut client) = open(NOW);
        let mut expected = b"101".to_vec();
        for n in 0..30 {
            let mut batch = bytes::BytesMut::new();
            session.wire.encode(b"chat:a", &vec![b'0' + n; 50_000], &mut batch);
            expected.extend_from_slice(&batch);
            session.deliver(&mut Batch::new(&batch), NOW);
        }
        assert!(session.outbound.is_some(), "the socket takes it all");
        let mut there = moved(&mut session, NOW + 5, 50_000);
        assert_eq!(there.outbound.as_ref().unwrap().progress_at, 50_000 - 5);
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            client.read_to_end(&mut read).unwrap();
            read
        });
        while there.outbound.is_some() {
            assert_eq!(there.on_writable(50_000), Outcome::Stay);
            std::thread::yield_now();
        }
        drop(there);
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn its_clock_and_its_closing_go_on() {
        let (mut session, mut client) = open(NOW);
        let due = session.next_due() - NOW;
        let mut there = moved(&mut session, NOW + 1_000, 3_000_000);
        assert_eq!(there.next_due() - 3_000_000, due - 1_000, "no second ping clock");
        assert_eq!(there.close(CloseReason::Gap, 3_000_000), Outcome::Closing);
        let again = moved(&mut there, 3_000_200, 9_000_000);
        assert_eq!((again.is_closing(), again.next_due()), (true, 9_000_000 + CLOSE_WAIT_LEFT));
        drop(again);
        let mut read = Vec::new();
        client.read_to_end(&mut read).unwrap();
        assert!(read.starts_with(b"101\x88") && read[5..].starts_with(&1012_u16.to_be_bytes()), "{read:?}");
    }

    /// What is left of the second that a reply is waited for.
    const CLOSE_WAIT_LEFT: Millis = 800;

    #[test]
    fn an_older_and_a_newer_version_are_understood() {
        #[derive(Serialize)]
        struct Other {
            endpoint: &'static str,
            channel: ByteBuf,
            wire: Wire,
            heard_ago: Millis,
            pinged_ago: Millis,
            alive_ago: Millis,
            mood: Vec<&'static str>,
        }
        let other = Other {
            endpoint: "/webws",
            channel: ByteBuf::from("chat:a"),
            wire: Wire::Plain,
            heard_ago: 1,
            pinged_ago: Millis::MAX,
            alive_ago: 1,
            mood: vec!["unheard", "of"],
        };
        let portable: Portable = rmp_serde::from_slice(&rmp_serde::to_vec_named(&other).unwrap()).unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let session = Session::adopt(portable, endpoint(), ours.into(), NOW).unwrap();
        assert!(session.is_open() && session.pinged_at == 0 && session.heard_at == NOW - 1);
    }

    #[test]
    fn how_what_is_not_utf8_looks_follows_the_endpoint_of_the_process_that_goes_on() {
        let replace =
            Rc::new(Endpoint::new(EndpointConfig { not_utf8: NotUtf8Policy::Replace, ..EndpointConfig::plain() }));
        for (from, wire, to, adopted) in [
            (plain(), Wire::Plain, replace.clone(), Wire::PlainText),
            (replace.clone(), Wire::PlainText, plain(), Wire::Plain),
            (replace.clone(), Wire::PlainText, replace.clone(), Wire::PlainText),
            // An open session keeps the wire of its handshake.
            (endpoint(), Wire::Lua { name_at: 5 }, replace, Wire::Lua { name_at: 5 }),
        ] {
            let (mut session, _client) = open_at(from, wire, NOW);
            let words = rmp_serde::to_vec_named(&session.portable(NOW).unwrap()).unwrap();
            let portable = rmp_serde::from_slice(&words).unwrap();
            let there = Session::adopt(portable, to, session.socket.take().unwrap(), NOW).unwrap();
            assert_eq!(there.wire, adopted);
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (session, _client) = open(NOW);
        let sound = session.portable(NOW).unwrap();
        let adopt = |portable| {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            Session::adopt(portable, endpoint(), ours.into(), NOW).err()
        };
        assert_eq!(adopt(sound.clone()), None);
        assert_eq!(adopt(Portable { wire: Wire::Lua { name_at: 7 }, ..sound.clone() }), Some(NotASession::Wire));
        assert_eq!(adopt(Portable { begun_frame_bytes: 1, ..sound }), Some(NotASession::Unsent));
    }
}
