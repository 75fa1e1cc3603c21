//! A session as bytes for another process: everything but its socket. Times are ages in
//! milliseconds, for the other process has another clock.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Phase, Session};
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::endpoint::{Channel, Endpoint};
use crate::outbound::Outbound;
use crate::wire::Wire;
use crate::ws::reader::Reader;

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
            wire: self.wire,
            closing,
            unread: ByteBuf::from(unread),
            unfinished,
            unsent: ByteBuf::from(unsent),
            begun_frame_bytes,
            progress_ago: self.outbound.as_ref().map_or(0, |queue| ago(queue.progress_at)),
            heard_ago: ago(self.heard_at),
            pinged_ago: ago(self.pinged_at),
            alive_ago: ago(self.alive_at),
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
        let mut session = Self::new(endpoint, channel, portable.wire, now);
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
        session.is_paused = portable.is_paused;
        Ok(session)
    }

    /// One of its texts waits for the broker, of so many bytes, since `at`.
    pub(crate) fn adopt_text(&mut self, bytes: usize, at: Millis) {
        if self.unpublished_texts == 0 {
            self.unpublished_since = at;
        }
        self.count_text(bytes);
    }
}
