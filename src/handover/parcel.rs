//! Splits what a worker hands over (sessions, client messages, channel names) into messages of bounded size.
//!
//! May not enter: when a message is sent.

use std::time::Duration;

use super::deadlines::STEP;
use super::error::{GiveError, out_of_turn};
use super::protocol::{FULL_BYTES, Line, MAX_SESSIONS, Message};
use crate::clock::millis;
use crate::os::descriptors::Lent;
use crate::protocol::session::snapshot::SessionSnapshot;
use crate::worker::{Collected, MessageSnapshot};

/// Sends a worker's sessions, a bounded number at a time: descriptors that are sent and not received count against
/// the limit of open files (unix(7), ETOOMANYREFS).
pub(super) fn say_worker(line: &Line, worker: usize, collected: Collected) -> Result<(), GiveError> {
    for (sessions, sockets) in batches(collected.sessions) {
        line.say(&Message::Sessions { worker, sessions }, &sockets, STEP)?;
        match line.hear(STEP)? {
            (Message::Taken, _) => {}
            (other, _) => return Err(out_of_turn(&other)),
        }
    }
    for message in message_parts(worker, collected.messages, collected.away) {
        line.say(&message, &[], STEP)?;
    }
    Ok(())
}

/// A worker's client messages as [`Message::Messages`]: at least one, because the last one completes the worker.
pub(super) fn message_parts(
    worker: usize,
    messages: Vec<MessageSnapshot>,
    away: Duration,
) -> impl Iterator<Item = Message> {
    let away_ms = millis(away);
    let none =
        messages.is_empty().then(|| Message::Messages { worker, messages: Vec::new(), has_more: false, away_ms });
    let some = parts(messages, MessageSnapshot::size);
    none.into_iter().chain(some.map(move |(messages, has_more)| Message::Messages {
        worker,
        messages,
        has_more,
        away_ms,
    }))
}

/// Bytes that a channel name counts for in a message, beside its own.
pub(super) const NAME_COST: usize = 16;

/// Splits `items` into parts of about [`FULL_BYTES`], one message each; tells whether more parts follow.
pub(super) fn parts<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> impl Iterator<Item = (Vec<T>, bool)> {
    let mut items = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while bytes < FULL_BYTES
            && let Some(item) = items.next()
        {
            bytes += size(&item);
            part.push(item);
        }
        (!part.is_empty()).then(|| (part, items.peek().is_some()))
    })
}

/// Splits sessions into parts, one message each.
pub(super) fn batches(
    sessions: Vec<(SessionSnapshot, Lent)>,
) -> impl Iterator<Item = (Vec<SessionSnapshot>, Vec<Lent>)> {
    let mut sessions = sessions.into_iter().peekable();
    std::iter::from_fn(move || {
        sessions.peek()?;
        let (mut some, mut sockets, mut bytes) = (Vec::new(), Vec::new(), 0);
        while some.len() < MAX_SESSIONS
            && bytes < FULL_BYTES
            && let Some((session, socket)) = sessions.next()
        {
            bytes += session.size();
            some.push(session);
            sockets.push(socket);
        }
        Some((some, sockets))
    })
}
