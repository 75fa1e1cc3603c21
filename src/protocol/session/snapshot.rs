//! A session as data for another process: everything but its socket.
//!
//! Times are ages in milliseconds, because the other process has another clock. May not enter: the hand-over's
//! messages.

use std::rc::Rc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::grant::{Claims, Grant};
use super::polled::Poll;
use super::state::{Phase, Session};
use super::subscription::Rights;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::position::Token;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::Outbound;
use crate::protocol::websocket::reader::Reader;

/// A session between two reads, as data. Other versions read these names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionSnapshot {
    /// The path of the session's endpoint.
    pub(crate) endpoint: String,
    pub(crate) channel: ByteBuf,
    #[serde(rename = "wire")]
    encoding: Encoding,
    /// The close under way, if any.
    #[serde(default)]
    closing: Option<Closing>,
    /// Bytes that were received and not decoded.
    #[serde(default)]
    unread: ByteBuf,
    /// A message whose last frame has not arrived.
    #[serde(default)]
    unfinished: Option<Unfinished>,
    /// The backlog, and how many of its bytes belong to a frame whose first byte has left.
    #[serde(default)]
    unsent: ByteBuf,
    #[serde(default)]
    begun_frame_bytes: usize,
    #[serde(default)]
    progress_ago: Millis,
    heard_ago: Millis,
    pinged_ago: Millis,
    alive_ago: Millis,
    /// How long ago the broker last made progress with the session's messages.
    #[serde(default)]
    unpublished_ago: Millis,
    #[serde(default)]
    is_paused: bool,
    /// Of a client that polls.
    #[serde(default)]
    poll: Option<PollSnapshot>,
    /// The client that claims have named, and what they allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claims: Option<Claimed>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PollSnapshot {
    /// A token.
    since: String,
    page: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claimed {
    user: String,
    /// The time until the session is closed; none for no end.
    left: Option<Millis>,
    may_receive: bool,
    may_publish: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Closing {
    /// A label of [`CloseReason`].
    reason: String,
    left: Millis,
    /// Whether the client's close frame has not come.
    awaits_reply: bool,
    /// Whether our FIN has been sent.
    is_ending: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unfinished {
    is_text: bool,
    payload: ByteBuf,
}

/// Why a snapshot is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotASession {
    #[error("the channel's name is shorter than the prefix that the encoding leaves out")]
    Encoding,
    #[error("the backlog is not the rest of a frame and whole frames")]
    Unsent,
    #[error("a client that polls has no position, or another client has one")]
    Poll,
}

impl SessionSnapshot {
    /// The snapshot's memory, approximately, in bytes.
    pub(crate) fn size(&self) -> usize {
        let unfinished = self.unfinished.as_ref().map_or(0, |message| message.payload.len());
        let user = self.claims.as_ref().map_or(0, |claims| claims.user.len());
        size_of::<Self>() + user + self.channel.len() + self.unread.len() + unfinished + self.unsent.len()
    }
}

impl Session {
    /// The session as data, without its messages in the outbox; `None` during the handshake.
    pub(crate) fn snapshot(&self, now: Millis) -> Option<SessionSnapshot> {
        let ago = |at: Millis| now.saturating_sub(at);
        let closing = match self.phase {
            Phase::Subscribing { .. } | Phase::Opening => return None,
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
        debug_assert_eq!(self.subscriptions.len(), 1, "a snapshot has one channel");
        let rights = self.subscriptions.first().map(|subscription| subscription.rights);
        let claims = self.identity().zip(rights).map(|(identity, rights)| Claimed {
            user: identity.user.to_string(),
            left: Some(identity.expires_at).filter(|at| *at < Millis::MAX).map(|at| at.saturating_sub(now)),
            may_receive: rights.may_receive,
            may_publish: rights.may_publish,
        });
        Some(SessionSnapshot {
            endpoint: self.endpoint.config.path.clone(),
            channel: ByteBuf::from(&**self.channel()),
            encoding: self.encoding.snapshot(),
            closing,
            unread: ByteBuf::from(unread),
            unfinished,
            unsent: ByteBuf::from(unsent),
            begun_frame_bytes,
            progress_ago: self.outbound.as_ref().map_or(0, |queue| ago(queue.progress_at)),
            heard_ago: ago(self.heard_at),
            pinged_ago: ago(self.pinged_at),
            alive_ago: ago(self.alive_at),
            unpublished_ago: ago(self.waiting.since),
            is_paused: self.waiting.is_paused,
            poll: self.poll().and_then(|poll| {
                let page = poll.page.as_deref().map(ToOwned::to_owned);
                Some(PollSnapshot { since: Token::from(poll.since?).to_string(), page })
            }),
            claims,
        })
    }

    /// Makes a session of another process' snapshot. The session's messages follow ([`Session::adopt_message`]).
    ///
    /// # Errors
    /// When the snapshot contradicts itself.
    pub(crate) fn adopt(snapshot: SessionSnapshot, endpoint: Rc<Endpoint>, now: Millis) -> Result<Self, NotASession> {
        let at = |ago: Millis| now.saturating_sub(ago);
        let channel = Channel::from(snapshot.channel.into_vec());
        if snapshot.encoding.name(&channel).is_none() {
            return Err(NotASession::Encoding);
        }
        let encoding = snapshot.encoding.adopted(endpoint.config.not_utf8);
        let mut grant = Grant::of(endpoint, channel, encoding);
        if let Some(Claimed { user, left, may_receive, may_publish }) = snapshot.claims {
            grant = grant.claimed(Claims { user: user.into(), time_left: left }, Rights { may_receive, may_publish });
        }
        let mut session = Self::new(grant, now, now);
        session.phase = match snapshot.closing {
            None => Phase::Open,
            Some(Closing { reason, left, awaits_reply, is_ending }) => {
                let is_it = |known: &CloseReason| known.row().label == reason;
                // A newer version may know more reasons than this one.
                let reason = CloseReason::ALL.into_iter().find(is_it).unwrap_or(CloseReason::Internal);
                let until = now.saturating_add(left);
                if is_ending { Phase::Ending { reason, until } } else { Phase::Closing { reason, until, awaits_reply } }
            }
        };
        let unfinished = snapshot.unfinished.map(|message| (message.is_text, message.payload.into_vec()));
        session.reader = Reader::from_parts(snapshot.unread.into_vec(), unfinished);
        let is_ending = matches!(session.phase, Phase::Ending { .. });
        if snapshot.unsent.is_empty() && snapshot.begun_frame_bytes > 0 || is_ending && !snapshot.unsent.is_empty() {
            return Err(NotASession::Unsent);
        }
        if !snapshot.unsent.is_empty() {
            let unsent = Bytes::from(snapshot.unsent.into_vec());
            let queue = Outbound::from_parts(unsent, snapshot.begun_frame_bytes, encoding, at(snapshot.progress_ago));
            session.outbound = Some(Box::new(queue.ok_or(NotASession::Unsent)?));
        }
        session.heard_at = at(snapshot.heard_ago);
        session.pinged_at = at(snapshot.pinged_ago);
        session.alive_at = at(snapshot.alive_ago);
        session.waiting.since = at(snapshot.unpublished_ago);
        session.waiting.is_paused = snapshot.is_paused;
        if session.encoding.is_poll() != snapshot.poll.is_some() {
            return Err(NotASession::Poll);
        }
        if let Some(PollSnapshot { since, page }) = snapshot.poll {
            let since = since.parse().map_err(|_| NotASession::Poll)?;
            session.rare.get_or_insert_default().poll = Some(Poll::waiting(since, page.map(Into::into)));
        }
        Ok(session)
    }

    /// Counts a message in the outbox, with a cost of `bytes`.
    pub(crate) fn adopt_message(&mut self, bytes: usize) {
        self.waiting.messages += 1;
        self.waiting.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{BINARY, CHANNEL, LUA, PING, Stage, TEXT, encoded, frame, plain};
    use super::super::{Action, Payload, Publish, Queued, Rejected};
    use super::*;
    use crate::config::{EndpointConfig, NotUtf8Policy};
    use crate::protocol::socket::memory::MemorySocket;
    use proptest::prelude::*;

    const NOW: Millis = 1_000_000;

    fn endpoint(config: EndpointConfig) -> Rc<Endpoint> {
        Rc::new(Endpoint::new(config))
    }

    /// Moves the session to another process, whose clock shows `there`.
    fn moved(stage: &mut Stage, there: Millis) {
        let snapshot = stage.session.snapshot(stage.now).unwrap();
        let bytes = rmp_serde::to_vec_named(&snapshot).unwrap();
        let session =
            Session::adopt(rmp_serde::from_slice(&bytes).unwrap(), stage.session.endpoint.clone(), there).unwrap();
        assert_eq!(session.snapshot(there), Some(snapshot), "nothing is lost on the way");
        (stage.session, stage.now) = (session, there);
    }

    /// An outbox that takes everything.
    struct Nowhere;

    impl Publish for Nowhere {
        fn publish(&mut self, _: &Channel, _: Payload<'_>) -> Queued {
            Queued { bytes: 0, allowance: usize::MAX }
        }

        fn reject(&mut self, _: Rejected) {}
    }

    proptest! {
        /// The stream is cut anywhere, and another process reads the second part: the same messages come out.
        #[test]
        fn what_a_client_sends_is_read_on_byte_by_byte(cut in 0_usize..78) {
            let stream = [
                frame(0x01, b"one, "),
                frame(PING, b"ping"),
                frame(0x80, "zwei é".as_bytes()),
                frame(TEXT, b"3"),
                frame(0x02, b"\xff\x00"),
                frame(0x00, b""),
                frame(0x80, b"\xfe"),
                frame(BINARY, b"\xe4"),
            ];
            let stream = stream.concat();
            let mut stage = Stage::open(plain(), Encoding::Plain);
            let (before, behind) = stream.split_at(cut.min(stream.len()));
            for part in [before, behind] {
                // Bytes from the snapshot come first, in a turn of their own.
                let mut action = stage.read(part);
                if action == Action::ReadAgain {
                    action = stage.read(b"");
                }
                prop_assert_eq!(action, Action::Stay);
                moved(&mut stage, NOW);
            }
            let expected = [("text", "one, zwei é".as_bytes()), ("text", b"3"), ("binary", b"\xff\x00\xfe"), ("binary", b"\xe4")];
            prop_assert_eq!(stage.outbox.messages, expected.map(|(kind, bytes)| (kind, bytes.to_vec())));
        }

        /// The decoder takes any bytes.
        #[test]
        fn hostile_bytes_are_refused_or_make_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..400, flip in any::<u8>()) {
            let mut stage = Stage::lua();
            stage.socket.room = 3;
            assert_eq!(stage.deliver(b"half sent"), Action::Stay);
            let mut bent = rmp_serde::to_vec_named(&stage.session.snapshot(NOW).unwrap()).unwrap();
            if let Some(byte) = bent.get_mut(at) {
                *byte ^= flip;
            }
            for bytes in [&bent[..], &bytes, bent.get(..at).unwrap_or_default()] {
                let Ok(snapshot) = rmp_serde::from_slice::<SessionSnapshot>(bytes) else { continue };
                if let Ok(mut session) = Session::adopt(snapshot, endpoint(EndpointConfig::default()), 7) {
                    let mut socket = MemorySocket::roomy();
                    session.next_due();
                    let ticked = session.on_tick(&mut socket, NOW);
                    let sent = session.on_writable(&mut socket, NOW);
                    let decoded = session.decode(&mut [], &mut socket, NOW, &mut Nowhere);
                    assert!([ticked, sent, decoded].iter().all(|action| *action != Action::Upgrade));
                    session.next_due();
                }
            }
        }
    }

    #[test]
    fn a_backlog_is_sent_from_the_byte_where_the_other_process_stopped() {
        let mut stage = Stage::lua();
        stage.socket.room = 70_000;
        let mut expected = Vec::new();
        for n in 0..10 {
            let payload = vec![b'0' + n; 50_000];
            expected.extend(encoded(LUA, &payload));
            assert_eq!(stage.deliver(&payload), Action::Stay);
        }
        assert!(stage.session.has_unsent());
        stage.now += 5;
        moved(&mut stage, 50_000);
        assert_eq!(stage.session.outbound.as_ref().unwrap().progress_at, 50_000 - 5);
        let mut room = 1;
        while stage.session.has_unsent() {
            assert_eq!(stage.writable(room), Action::Stay);
            moved(&mut stage, 50_000);
            room = room * 3 + 1;
        }
        assert!(stage.sent() == expected);
    }

    #[test]
    fn timers_and_a_close_continue_in_the_other_process() {
        let mut stage = Stage::lua();
        let due = stage.session.next_due() - NOW;
        stage.now += 1_000;
        moved(&mut stage, 3_000_000);
        assert_eq!(stage.session.next_due() - 3_000_000, due - 1_000, "no second ping clock");
        assert_eq!(stage.close(CloseReason::Gap), Action::Close(CloseReason::Gap));
        stage.now += 200;
        moved(&mut stage, 9_000_000);
        assert_eq!((stage.session.is_closing(), stage.session.next_due()), (true, 9_000_000 + CLOSE_WAIT_LEFT));
        assert!(stage.sent()[2..].starts_with(&1012_u16.to_be_bytes()));
    }

    #[test]
    fn the_user_the_rights_and_the_end_of_claims_move_and_no_new_right_is_gained() {
        for time_left in [None, Some(7_000)] {
            let claims = Claims { user: "u1".into(), time_left };
            let allowed = Rights { may_receive: true, may_publish: false };
            let grant = Grant::of(endpoint(EndpointConfig::default()), Channel::from_static(CHANNEL), LUA);
            let mut stage = Stage::lua();
            stage.session = Session { phase: Phase::Open, ..Session::new(grant.claimed(claims, allowed), NOW, NOW) };
            stage.now += 1_000;
            moved(&mut stage, 5_000_000);
            let identity = stage.session.identity().unwrap();
            assert_eq!((&*identity.user, stage.session.subscriptions[0].rights), ("u1", allowed));
            assert_eq!(identity.expires_at, time_left.map_or(Millis::MAX, |left| 5_000_000 + left - 1_000));
        }
    }

    /// What is left of the second that a reply is waited for.
    const CLOSE_WAIT_LEFT: Millis = 800;

    #[test]
    fn a_handshake_has_no_snapshot() {
        let mut stage = Stage::subscribing(EndpointConfig::default(), LUA);
        assert_eq!(stage.session.snapshot(NOW), None);
        assert_eq!(stage.session.on_subscribed(super::super::stage::SUBSCRIBER), Action::Upgrade);
        assert_eq!(stage.session.snapshot(NOW), None);
    }

    #[test]
    fn an_older_and_a_newer_version_are_understood() {
        #[derive(Serialize)]
        enum Wire {
            Lua { name_at: usize },
            Plain,
        }
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
        for (wire, encoding) in [(Wire::Plain, Encoding::Plain), (Wire::Lua { name_at: 5 }, LUA)] {
            let other = Other {
                endpoint: "/webws",
                channel: ByteBuf::from(CHANNEL),
                wire,
                heard_ago: 1,
                pinged_ago: Millis::MAX,
                alive_ago: 1,
                mood: vec!["unheard", "of"],
            };
            let snapshot = rmp_serde::from_slice(&rmp_serde::to_vec_named(&other).unwrap()).unwrap();
            let session = Session::adopt(snapshot, endpoint(EndpointConfig::default()), NOW).unwrap();
            assert!(session.is_open() && session.pinged_at == 0 && session.heard_at == NOW - 1);
            assert_eq!((session.encoding, &**session.channel()), (encoding, CHANNEL));
        }
    }

    #[test]
    fn how_what_is_not_utf8_looks_follows_the_endpoint_of_the_process_that_goes_on() {
        let replace = || EndpointConfig { not_utf8: NotUtf8Policy::Replace, ..EndpointConfig::plain() };
        for (from, encoding, to, adopted) in [
            (plain(), Encoding::Plain, replace(), Encoding::PlainText),
            (replace(), Encoding::PlainText, plain(), Encoding::Plain),
            (replace(), Encoding::PlainText, replace(), Encoding::PlainText),
            // An open session keeps the encoding of its handshake.
            (EndpointConfig::default(), LUA, replace(), LUA),
        ] {
            let stage = Stage::open(from, encoding);
            let bytes = rmp_serde::to_vec_named(&stage.session.snapshot(NOW).unwrap()).unwrap();
            let mut there = Session::adopt(rmp_serde::from_slice(&bytes).unwrap(), endpoint(to), NOW).unwrap();
            assert_eq!((there.encoding, there.next_to_join().unwrap().encoding), (adopted, adopted));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mut stage = Stage::lua();
        stage.socket.room = 3;
        assert_eq!(stage.deliver(b"half sent"), Action::Stay);
        let sound = stage.session.snapshot(NOW).unwrap();
        let adopt = |snapshot| Session::adopt(snapshot, endpoint(EndpointConfig::default()), NOW).err();
        assert_eq!(adopt(sound.clone()), None);
        let short = SessionSnapshot { encoding: Encoding::Lua { name_at: 7 }, ..sound.clone() };
        assert_eq!(adopt(short), Some(NotASession::Encoding));
        for begun_frame_bytes in [0, 1, sound.begun_frame_bytes - 1, sound.begun_frame_bytes + 1] {
            assert_eq!(adopt(SessionSnapshot { begun_frame_bytes, ..sound.clone() }), Some(NotASession::Unsent));
        }
        let closing = Closing { reason: "gap".to_owned(), left: 1, awaits_reply: false, is_ending: true };
        assert_eq!(adopt(SessionSnapshot { closing: Some(closing), ..sound }), Some(NotASession::Unsent));
    }
}
