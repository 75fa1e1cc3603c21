//! A session's state between two calls. May not enter: transitions, which have files of their own.

use std::rc::Rc;

use smallvec::{SmallVec, smallvec};

use super::grant::Grant;
use super::polled::Poll;
use super::rate::Rate;
use super::subscription::Subscription;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::outbound::Outbound;
use crate::protocol::websocket::reader::Reader;

/// The phase of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The handshake waits, until `until`, for the broker to confirm the subscriptions.
    Subscribing { until: Millis },
    /// Subscribed; the 101 has not left. Publications are queued.
    Opening,
    /// Messages go both ways.
    Open,
    /// The close frame is sent or queued as the last unit. With `awaits_reply`, the client's close frame has not come.
    Closing { reason: CloseReason, until: Millis, awaits_reply: bool },
    /// FIN is sent, and the lingering close reads off the bytes that the client still sends. A close with unread bytes
    /// would reset the connection, and a reset can destroy the close frame on its way.
    Ending { reason: CloseReason, until: Millis },
}

/// A client's messages that the broker has not answered for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// The messages' cost.
    pub(super) bytes: usize,
    pub(super) messages: u32,
    /// Whether the socket is not read, because too many messages wait.
    pub(super) is_paused: bool,
    /// When the first of the messages arrived, or the broker last answered for one.
    pub(super) since: Millis,
}

/// The client that claims have named.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) user: Box<str>,
    /// When the session is closed.
    pub(super) expires_at: Millis,
}

/// What few sessions have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// Of a session whose client polls, and only of such a session.
    pub(super) poll: Option<Poll>,
    /// Of a session at an endpoint with claims.
    pub(super) identity: Option<Identity>,
    /// Of a session that has sent a message at an endpoint with a rate.
    pub(super) rate: Option<Rate>,
}

/// One browser connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) endpoint: Rc<Endpoint>,
    /// The encoding of pings and close frames on this connection.
    pub(super) encoding: Encoding,
    /// One per channel; a session has one channel.
    pub(super) subscriptions: SmallVec<[Subscription; 1]>,
    pub(super) phase: Phase,
    pub(super) reader: Reader,
    pub(super) outbound: Option<Box<Outbound>>,
    /// What most sessions do not have, so that it costs them one pointer.
    pub(super) rare: Option<Box<Rare>>,
    /// When the client last sent a byte, and when it was last pinged.
    pub(super) heard_at: Millis,
    pub(super) pinged_at: Millis,
    /// When the client last sent a byte, or took a byte of the backlog.
    pub(super) alive_at: Millis,
    pub(super) waiting: Waiting,
}

impl Session {
    /// A session whose handshake waits for its subscription until `until`. [`Session::begin`] follows.
    pub(crate) fn new(grant: Grant, until: Millis, now: Millis) -> Self {
        // The worker keeps the position until the session opens.
        let Grant { endpoint, channel, encoding, rights, since: _, poll, claims } = grant;
        let identity = claims.map(|claims| {
            let expires_at = claims.time_left.map_or(Millis::MAX, |left| now.saturating_add(left));
            Identity { user: claims.user, expires_at }
        });
        let poll = poll.map(|poll| *poll);
        let is_rare = poll.is_some() || identity.is_some();
        Self {
            endpoint,
            encoding,
            subscriptions: smallvec![Subscription::new(channel, encoding, rights)],
            phase: Phase::Subscribing { until },
            reader: Reader::default(),
            outbound: None,
            rare: is_rare.then(|| Box::new(Rare { poll, identity, rate: None })),
            heard_at: now,
            pinged_at: now,
            alive_at: now,
            waiting: Waiting { since: now, ..Waiting::default() },
        }
    }

    /// What the session has if its client polls.
    pub(super) fn poll(&self) -> Option<&Poll> {
        self.rare.as_ref()?.poll.as_ref()
    }

    /// The client, if claims have named it.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.rare.as_ref()?.identity.as_ref()
    }

    /// How fast the client sends, if that is counted.
    pub(super) fn rate(&self) -> Option<&Rate> {
        self.rare.as_ref()?.rate.as_ref()
    }

    /// The channel on which the client publishes.
    pub(crate) fn channel(&self) -> &Channel {
        let first = self.subscriptions.first();
        &first.expect("a session has a channel from its start, and drops none").channel
    }

    /// Whether messages go both ways.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the client misses what is not delivered from now on: its session is open, or queues publications.
    pub(crate) fn may_miss(&self) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Open)
    }

    /// Whether a close of ours or the client's is under way.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. } | Phase::Ending { .. })
    }

    /// Whether the handshake has not ended, so that nothing may be sent.
    pub(super) fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Subscribing { .. } | Phase::Opening)
    }

    /// The reason of the close that is under way, or `other`.
    pub(super) fn reason_or(&self, other: CloseReason) -> CloseReason {
        match self.phase {
            Phase::Closing { reason, .. } | Phase::Ending { reason, .. } => reason,
            Phase::Subscribing { .. } | Phase::Opening | Phase::Open => other,
        }
    }
}
