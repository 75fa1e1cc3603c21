//! What a worker hands over, in messages that are not too large.
//!
//! May not enter: when it is sent.

use std::time::Duration;

use super::deadlines::STEP;
use super::error::{GiveError, out_of_turn};
use super::protocol::{FULL_BYTES, Line, MAX_SESSIONS, Message};
use crate::clock::millis;
use crate::os::descriptors::Lent;
use crate::protocol::session::snapshot::SessionSnapshot;
use crate::worker::{Collected, MessageSnapshot};

/// Says a worker's sessions, so many at a time that few descriptors are under way: unread ones count
/// against the limit of open files (unix(7), ETOOMANYREFS).
pub(super) fn say_worker(line: &Line, worker: usize, collected: Collected) -> Result<(), GiveError> {
    for (sessions, sockets) in batches(collected.sessions) {
        line.say(&Message::Sessions { worker, sessions }, &sockets, STEP)?;
        match line.hear(STEP)? {
            (Message::Taken, _) => {}
            (other, _) => return Err(out_of_turn(&other)),
        }
    }
    for message in texts_of(worker, collected.texts, collected.away) {
        line.say(&message, &[], STEP)?;
    }
    Ok(())
}

/// A worker's texts as messages: one at least, which completes the worker.
pub(super) fn texts_of(worker: usize, texts: Vec<MessageSnapshot>, away: Duration) -> impl Iterator<Item = Message> {
    let away_ms = millis(away);
    let none = texts.is_empty().then(|| Message::Texts { worker, texts: Vec::new(), has_more: false, away_ms });
    let some = parts(texts, MessageSnapshot::size);
    none.into_iter().chain(some.map(move |(texts, has_more)| Message::Texts { worker, texts, has_more, away_ms }))
}

/// What a name counts for in a message beside its bytes.
pub(super) const NAME_COST: usize = 16;

/// `items` in parts that are a message each, of about [`FULL_BYTES`], and whether more follow.
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

/// Sessions in parts that are a message each.
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
