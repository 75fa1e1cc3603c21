//! The end of a session: our close frame, the client's close frame, FIN. May not enter: the reasons and their texts
//! (`crate::close`).

use bytes::Bytes;

use super::action::Action;
use super::state::{Phase, Session};
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::protocol::outbound::Batch;
use crate::protocol::socket::Socket;
use crate::protocol::websocket::reader::Reader;

/// How long a session waits for the client's close frame after its own, and then for the client's FIN after its own.
/// Chosen: a browser answers within a round trip; the wire contract allows 2.5 s in all.
const CLOSE_WAIT: Millis = 1_000;

impl Session {
    /// Closes the session, unless a close is under way: sends the close frame for `reason`, then FIN.
    pub(crate) fn close(&mut self, reason: CloseReason, socket: &mut impl Socket, now: Millis) -> Action {
        if self.is_closing() { Action::Stay } else { self.fault(reason, socket, now) }
    }

    /// As [`Session::close`]; but a session that is closing ends: its client breaks the protocol or stalls.
    pub(super) fn fault(&mut self, reason: CloseReason, socket: &mut impl Socket, now: Millis) -> Action {
        let row = reason.row();
        match (self.phase, row.code) {
            (Phase::Open, Some(code)) => {
                let frame = match self.poll() {
                    Some(poll) => poll.repeat().into(),
                    None => self.encoding.close(code, row.text),
                };
                self.close_with(reason, &frame, socket, now)
            }
            _ => Action::End(self.reason_or(reason)),
        }
    }

    /// The client's close frame has arrived.
    pub(super) fn on_client_close(&mut self, code: Option<u16>, socket: &mut impl Socket, now: Millis) -> Action {
        if let Phase::Closing { awaits_reply, .. } = &mut self.phase {
            *awaits_reply = false;
            self.finish_if_sent(socket, now);
            return Action::Stay;
        }
        let reply = self.encoding.close_reply(code);
        self.close_with(CloseReason::ClientClosed, &reply, socket, now)
    }

    /// Sends the last frame.
    pub(super) fn close_with(
        &mut self,
        reason: CloseReason,
        frame: &Bytes,
        socket: &mut impl Socket,
        now: Millis,
    ) -> Action {
        debug_assert!(self.is_open(), "a close frame is sent once");
        if matches!(
            reason,
            CloseReason::SlowConsumer | CloseReason::Memory | CloseReason::Stalled | CloseReason::ClientClosed
        ) && let Some(queue) = &mut self.outbound
        {
            // The client would not read the backlog. A frame whose first byte has left must be finished.
            queue.keep_begun_frame();
        }
        // The session does not wait for a client that broke the protocol (RFC 6455 §7.1.7), or only receives.
        let is_answered = !matches!(
            reason,
            CloseReason::ClientClosed | CloseReason::ProtocolError | CloseReason::InvalidText | CloseReason::TooBig
        );
        let awaits_reply = is_answered && !self.encoding.is_one_way();
        self.phase = Phase::Closing { reason, until: now + CLOSE_WAIT, awaits_reply };
        self.waiting.is_paused = false;
        if !awaits_reply {
            self.reader = Reader::default();
        }
        match self.push(&mut Batch::new(frame), socket, now) {
            Ok(()) => {
                self.finish_if_sent(socket, now);
                Action::Close(reason)
            }
            Err(_) => Action::End(reason),
        }
    }

    /// Closes the session behind its last unit, which was sent or queued.
    pub(super) fn close_behind(&mut self, reason: CloseReason, socket: &mut impl Socket, now: Millis) -> Action {
        debug_assert!(self.is_open(), "a last unit is sent once");
        self.phase = Phase::Closing { reason, until: now + CLOSE_WAIT, awaits_reply: false };
        self.waiting.is_paused = false;
        self.finish_if_sent(socket, now);
        Action::Close(reason)
    }

    /// Sends FIN when the close frame has left and no reply is awaited.
    pub(super) fn finish_if_sent(&mut self, socket: &mut impl Socket, now: Millis) {
        if let (Phase::Closing { reason, awaits_reply: false, .. }, None) = (self.phase, &self.outbound) {
            socket.finish_sending();
            self.phase = Phase::Ending { reason, until: now + CLOSE_WAIT };
        }
    }
}
