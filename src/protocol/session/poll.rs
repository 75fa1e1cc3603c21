//! A session whose client polls: it waits as any session does, is answered once, and its connection ends with that.
//!
//! The answer is the session's last unit, so it has the place of a close frame. Its client repeats the request with the
//! position of the answer. May not enter: what an answer looks like (`encoding/poll.rs`).

use std::io::{self, IoSlice};

use bytes::Bytes;

use super::action::Action;
use super::polled::{Begin, Polled};
use super::send::Unsent;
use super::state::{Phase, Session};
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::position::Position;
use crate::protocol::encoding::poll::{AnswerHead, CLOSE};
use crate::protocol::outbound::{Batch, Outbound};
use crate::protocol::socket::Socket;

impl Session {
    /// Whether the client polls.
    pub(crate) fn is_poll(&self) -> bool {
        self.poll().is_some()
    }

    /// `elements` are what the client gets, up to the position that `polled` names. Without any, it waits.
    pub(crate) fn on_polled(
        &mut self,
        polled: Polled,
        elements: &[u8],
        socket: &mut impl Socket,
        now: Millis,
    ) -> Action {
        debug_assert!(matches!(self.phase, Phase::Subscribing { .. }), "a session recovers once, before it opens");
        let Some(poll) = self.rare.as_mut().and_then(|rare| rare.poll.as_mut()) else { return Action::Stay };
        poll.since = Some(polled.next);
        self.phase = Phase::Opening;
        let has_gap = polled.has_gap || poll.begin == Begin::Gap;
        if (has_gap || poll.begin == Begin::Position || !elements.is_empty())
            && let Err(unsent) = self.send_answer(Polled { has_gap, ..polled }, &mut Batch::new(elements), socket, now)
        {
            return self.on_unsent(unsent, socket, now);
        }
        Action::Upgrade
    }

    /// Something was published while the client waits.
    pub(super) fn on_batch(&mut self, elements: &mut Batch<'_>, socket: &mut impl Socket, now: Millis) -> Action {
        if self.has_answer() {
            // It is the last unit.
            return Action::Stay;
        }
        let Some(next) = elements.end() else { return self.let_repeat(socket, now) };
        let sent = self.send_answer(Polled { next, is_up_to_date: true, has_gap: false }, elements, socket, now);
        self.on_answered(sent, socket, now)
    }

    /// The client has waited long enough. `tail` is its position now, if it is sure that it has missed nothing.
    pub(crate) fn on_waited(&mut self, tail: Option<Position>, socket: &mut impl Socket, now: Millis) -> Action {
        let (Some(next), Some(poll)) = (tail, self.poll()) else { return self.let_repeat(socket, now) };
        if !self.is_open() || self.has_answer() {
            return Action::Stay;
        }
        let head = AnswerHead { next: Some(next), is_up_to_date: true, has_gap: false, page: poll.page.as_deref() };
        let answer = head.no_content();
        self.close_with(CloseReason::Answered, &answer.into(), socket, now)
    }

    /// Publications may be missing, or it is not known where they end: the client is to show its position once more.
    pub(super) fn let_repeat(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        match self.poll() {
            Some(poll) if self.is_open() && !self.has_answer() => {
                let answer = poll.repeat();
                self.close_with(CloseReason::Answered, &answer.into(), socket, now)
            }
            Some(poll) if self.phase == Phase::Opening && !self.has_answer() => {
                let answer = poll.repeat();
                let pushed = self.push(&mut Batch::new(&answer), socket, now);
                self.on_answered(pushed, socket, now)
            }
            _ => Action::Stay,
        }
    }

    /// Whether the answer is on its way, or has left.
    fn has_answer(&self) -> bool {
        self.outbound.is_some() || self.is_closing()
    }

    /// The session has its socket: if its answer is there already, the answer ends the session.
    pub(super) fn on_opened(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        debug_assert!(self.is_open());
        if self.outbound.is_none() {
            return Action::Stay;
        }
        let sent = self.drain(socket, now);
        self.on_answered(sent, socket, now)
    }

    /// An answer was sent or queued, which ends the session; in the handshake it waits for the socket.
    fn on_answered(&mut self, sent: Result<(), Unsent>, socket: &mut impl Socket, now: Millis) -> Action {
        match sent {
            Err(unsent) => self.on_unsent(unsent, socket, now),
            Ok(()) if self.is_in_handshake() => Action::Stay,
            Ok(()) => self.close_behind(CloseReason::Answered, socket, now),
        }
    }

    /// Sends an answer with `elements`, or queues what the socket does not take; all sessions share the elements.
    fn send_answer(
        &mut self,
        polled: Polled,
        elements: &mut Batch<'_>,
        socket: &mut impl Socket,
        now: Millis,
    ) -> Result<(), Unsent> {
        let Some(poll) = self.poll() else { return Ok(()) };
        let Polled { next, is_up_to_date, has_gap } = polled;
        // Behind the first comma.
        let inside = elements.bytes().get(1..).unwrap_or_default();
        let head = AnswerHead { next: Some(next), is_up_to_date, has_gap, page: poll.page.as_deref() };
        let head = head.ok(inside.len());
        let mut sent = 0;
        if !self.is_in_handshake() {
            let parts = [head.as_slice(), inside, CLOSE];
            let total: usize = parts.iter().map(|part| part.len()).sum();
            sent = match socket.send_slices(&parts.map(IoSlice::new)) {
                Ok(sent) if sent == total => return Ok(()),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Unsent::Gone),
            };
        }
        let inside = if inside.is_empty() { Bytes::new() } else { elements.share().slice(1..) };
        let parts = [Bytes::from(head), inside, Bytes::from_static(CLOSE)];
        self.outbound = Some(Box::new(Outbound::with_units(parts, sent, self.encoding, now)));
        Ok(())
    }

    /// An answer of any length leaves, as long as its client takes some of it: else the client would ask for the same
    /// once more, without end. `None` when nothing is on its way, or the client has stalled.
    pub(super) fn continue_answer(&mut self, socket: &mut impl Socket, now: Millis) -> Option<Action> {
        if !self.is_poll() || self.outbound.is_none() {
            return None;
        }
        // The kernel may not have told that the socket takes bytes (`on_tick_while_open`).
        if let Err(unsent) = self.drain(socket, now) {
            return Some(self.on_unsent(unsent, socket, now));
        }
        let stalled_at = self.stalled_at();
        match &mut self.phase {
            Phase::Closing { until, .. } if stalled_at > now && stalled_at < Millis::MAX => {
                *until = stalled_at;
                Some(Action::Stay)
            }
            Phase::Ending { .. } => Some(Action::Stay),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::polled::Poll;
    use super::super::stage::{SUBSCRIBER, Stage};
    use super::*;
    use crate::config::{EndpointConfig, NotUtf8Policy};
    use crate::position::{Milestone, MilestoneId, Token};
    use crate::protocol::encoding::Encoding;

    const POLL: Encoding = Encoding::Poll { not_utf8: NotUtf8Policy::Binary };
    const PAGE: &str = "https://a.example";

    fn position(count: u32) -> Position {
        Position { milestone: Milestone { id: MilestoneId(1), log: None }, count }
    }

    /// A session that has its subscription.
    fn subscribed(begin: Begin) -> Stage {
        let config = EndpointConfig { poll_timeout: Duration::from_secs(7), ..EndpointConfig::default() };
        let mut stage = Stage::subscribing(config, POLL);
        stage.session.rare.get_or_insert_default().poll = Some(Poll::new(begin, Some(PAGE.into())));
        assert_eq!(stage.session.on_subscribed(SUBSCRIBER), Action::Recover);
        stage
    }

    /// What its client missed is found; then it opens.
    fn open(stage: &mut Stage, elements: &[u8], has_gap: bool) -> Action {
        let polled = Polled { next: position(3), is_up_to_date: true, has_gap };
        assert_eq!(stage.session.on_polled(polled, elements, &mut stage.socket, stage.now), Action::Upgrade);
        stage.session.open(b"", &mut stage.socket, stage.now)
    }

    /// A session that waits from position 3 on.
    fn waiting() -> Stage {
        let mut stage = subscribed(Begin::Wait);
        assert_eq!((open(&mut stage, b"", false), stage.sent().len()), (Action::Stay, 0));
        stage
    }

    fn deliver(stage: &mut Stage, elements: &[u8], end: Option<Position>) -> Action {
        let Stage { session, socket, now, .. } = stage;
        session.deliver(&mut Batch::new(elements).ending_at(end), socket, *now)
    }

    /// The status, the position if it is told, whether the client is up to date, and the body.
    fn answer(stage: &mut Stage) -> (String, String, bool, String) {
        let sent = String::from_utf8(stage.sent()).unwrap();
        let (head, body) = sent.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{sent:?}"));
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        assert_eq!(field("Access-Control-Allow-Origin"), PAGE);
        if !body.is_empty() {
            assert_eq!(field("Content-Length"), body.len().to_string());
        }
        (
            head.lines().next().unwrap().to_owned(),
            field("Stream-Next-Offset"),
            field("Stream-Up-To-Date") == "true",
            body.to_owned(),
        )
    }

    fn ok(count: u32, body: &str) -> (String, String, bool, String) {
        ("HTTP/1.1 200 OK".to_owned(), Token::from(position(count)).to_string(), true, body.to_owned())
    }

    fn no_content(count: u32, is_up_to_date: bool) -> (String, String, bool, String) {
        let token = Token::from(position(count)).to_string();
        ("HTTP/1.1 204 No Content".to_owned(), token, is_up_to_date, String::new())
    }

    const ANSWERED: Action = Action::Close(CloseReason::Answered);

    #[test]
    fn a_client_is_answered_at_once_or_by_the_next_batch_and_its_connection_ends() {
        for (begin, elements, has_gap, body) in [
            (Begin::Wait, &b",\"a\",\"b\""[..], false, "[\"a\",\"b\"]\n"),
            (Begin::Position, b"", false, "[]\n"),
            (Begin::Gap, b"", false, "[]\n"),
            (Begin::Wait, b"", true, "[]\n"),
        ] {
            let mut stage = subscribed(begin);
            assert_eq!(open(&mut stage, elements, has_gap), ANSWERED);
            assert_eq!((answer(&mut stage), stage.socket.is_finished), (ok(3, body), true));
            assert_eq!(deliver(&mut stage, b",\"late\"", Some(position(9))), Action::Stay);
            assert_eq!((stage.sent(), stage.hang_up()), (vec![], Action::End(CloseReason::Answered)));
        }
        let mut stage = waiting();
        assert_eq!(deliver(&mut stage, b",\"a\"", Some(position(4))), ANSWERED);
        assert_eq!((answer(&mut stage), stage.socket.is_finished), (ok(4, "[\"a\"]\n"), true));
        // Between its position and its socket.
        let mut stage = subscribed(Begin::Wait);
        let polled = Polled { next: position(3), is_up_to_date: true, has_gap: false };
        assert_eq!(stage.session.on_polled(polled, b"", &mut stage.socket, stage.now), Action::Upgrade);
        assert_eq!(deliver(&mut stage, b",\"a\"", Some(position(4))), Action::Stay);
        assert_eq!(deliver(&mut stage, b",\"b\"", Some(position(5))), Action::Stay, "it has its answer");
        assert_eq!(stage.session.open(b"", &mut stage.socket, stage.now), ANSWERED);
        assert_eq!(answer(&mut stage), ok(4, "[\"a\"]\n"));
    }

    #[test]
    fn what_is_not_sure_lets_the_client_repeat_from_where_it_was() {
        for act in [
            |stage: &mut Stage| deliver(stage, b",\"a\"", None),
            |stage: &mut Stage| stage.session.on_gap("away", &mut stage.socket, stage.now),
            |stage: &mut Stage| stage.session.on_waited(None, &mut stage.socket, stage.now),
        ] {
            let mut stage = waiting();
            assert_eq!((act(&mut stage), answer(&mut stage)), (ANSWERED, no_content(3, false)));
        }
        for reason in [CloseReason::GoingAway, CloseReason::SubscriptionLost] {
            let mut stage = waiting();
            assert_eq!((stage.close(reason), answer(&mut stage)), (Action::Close(reason), no_content(3, false)));
        }
    }

    #[test]
    fn a_client_that_has_waited_gets_its_position_and_needs_no_other_timer() {
        let mut stage = waiting();
        assert_eq!(stage.session.next_due(), stage.now + 7_000);
        assert_eq!(stage.read(b"GET / HTTP/1.1\r\n\r\n"), Action::Stay);
        assert_eq!((stage.pass(6_999), stage.pass(1)), (Action::Stay, Action::Answer));
        assert_eq!(stage.session.on_waited(Some(position(8)), &mut stage.socket, stage.now), ANSWERED);
        assert_eq!(answer(&mut stage), no_content(8, true));
        assert_eq!(stage.session.on_waited(Some(position(9)), &mut stage.socket, stage.now), Action::Stay);
    }

    #[test]
    fn a_long_answer_leaves_for_as_long_as_its_client_takes_some() {
        let mut stage = waiting();
        stage.socket.room = 10;
        let elements = format!(",\"{}\"", "x".repeat(5_000));
        assert_eq!(deliver(&mut stage, elements.as_bytes(), Some(position(4))), ANSWERED);
        for _ in 0..10 {
            assert_eq!(stage.pass(9_000), Action::Stay);
            assert_eq!(stage.writable(100), Action::Stay);
        }
        assert_eq!(stage.pass(10_001), Action::End(CloseReason::Answered), "it has stalled");
        let mut stage = waiting();
        stage.socket.room = 10;
        assert_eq!(deliver(&mut stage, elements.as_bytes(), Some(position(4))), ANSWERED);
        assert_eq!(stage.writable(10_000), Action::Stay);
        assert_eq!((answer(&mut stage), stage.socket.is_finished), (ok(4, &format!("[{}]\n", &elements[1..])), true));
    }

    #[test]
    fn a_poll_waits_on_in_another_process() {
        for room in [usize::MAX, 10] {
            let mut stage = waiting();
            if room == 10 {
                stage.socket.room = room;
                assert_eq!(deliver(&mut stage, b",\"a\"", Some(position(4))), ANSWERED);
            }
            let bytes = rmp_serde::to_vec_named(&stage.session.snapshot(stage.now).unwrap()).unwrap();
            let snapshot = rmp_serde::from_slice(&bytes).unwrap();
            stage.session = Session::adopt(snapshot, stage.session.endpoint.clone(), stage.now).unwrap();
            if room == 10 {
                assert_eq!(stage.writable(10_000), Action::Stay);
            } else {
                assert_eq!(stage.session.next_due(), stage.now + 7_000);
                assert_eq!(deliver(&mut stage, b",\"a\"", Some(position(4))), ANSWERED);
            }
            assert_eq!((answer(&mut stage), stage.socket.is_finished), (ok(4, "[\"a\"]\n"), true));
        }
    }
}
