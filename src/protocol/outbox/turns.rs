//! Messages that wait for one node. The messages of one source keep their order; the sources take turns.
//!
//! Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) by bytes: in a round each source sends about
//! [`QUANTUM`] bytes. So a client that floods delays only itself, and a client that sends rarely waits for one round at
//! most. A source without messages owns no memory. May not enter: limits, messages in flight at the broker.

use std::collections::VecDeque;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use slab::Slab;

use crate::clock::Millis;
use crate::id::SessionKey;
use crate::message::{ClientMessage, Origin};

/// Bytes that a source may send in a round, as [`ClientMessage::cost`] counts them. Chosen: some thirty short messages,
/// so that a round of 300 floods takes Redis some 10 ms; a message of 64 kB waits for sixteen rounds.
const QUANTUM: usize = 4 << 10;

/// How many lines, and messages in one line, keep their memory for the next messages. Chosen: a batch to Redis has
/// some hundred messages; 256 empty lines are 60 kB.
const MAX_SPARE: usize = 256;
const MAX_SPARE_LINE: usize = 4;

/// The sender of a message. All [`crate::Publisher`]s take turns as one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Session(SessionKey),
    Publisher,
}

impl Source {
    fn of(message: &ClientMessage) -> Self {
        match message.origin {
            Origin::Session(key) => Self::Session(key),
            Origin::Publisher(_) => Self::Publisher,
        }
    }

    /// Not keyed, because clients do not choose the keys of their sessions. The factor is 2^64 over the golden ratio
    /// (Knuth, The Art of Computer Programming, volume 3, section 6.4).
    fn hash(self) -> u64 {
        let id = match self {
            Self::Session(key) => u64::from(key.index) + 1,
            Self::Publisher => 0,
        };
        id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// The waiting messages of one source; never empty.
#[derive(Debug)]
struct Line {
    source: Source,
    messages: VecDeque<ClientMessage>,
    /// Bytes that the source may still send in this round.
    credit: usize,
}

/// The end of an order at which a message or a line joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Front,
    Back,
}

/// The messages that wait for one node.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lines: Slab<Line>,
    /// The id of each source's line.
    ids: HashTable<usize>,
    /// The ids of all lines; the first has its turn.
    order: VecDeque<usize>,
    /// Empty queues, for new lines.
    spare: Vec<VecDeque<ClientMessage>>,
    len: usize,
    bytes: usize,
}

impl Turns {
    /// The number of waiting messages.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The total cost of the waiting messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All waiting messages; those of one source in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ClientMessage> {
        self.order.iter().filter_map(|id| self.lines.get(*id)).flat_map(|line| &line.messages)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ClientMessage> {
        self.lines.iter_mut().flat_map(|(_, line)| &mut line.messages)
    }

    /// Queues a message behind the others of its source.
    pub(super) fn push(&mut self, message: ClientMessage) {
        self.line(&message, End::Back).messages.push_back(message);
    }

    /// Queues a message before the others of its source. A source without a line gets the next turn.
    pub(super) fn push_first(&mut self, message: ClientMessage) {
        self.line(&message, End::Front).messages.push_front(message);
    }

    /// The line that `message` joins, counted in. A new line joins the order at `end`.
    fn line(&mut self, message: &ClientMessage, end: End) -> &mut Line {
        self.len += 1;
        self.bytes += message.cost();
        let Self { lines, ids, order, spare, .. } = self;
        let source = Source::of(message);
        let is_its = |id: &usize| lines.get(*id).is_some_and(|line| line.source == source);
        let id = match ids.entry(source.hash(), is_its, |id| lines.get(*id).map_or(0, |line| line.source.hash())) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let messages = spare.pop().unwrap_or_default();
                let id = lines.insert(Line { source, messages, credit: QUANTUM });
                entry.insert(id);
                match end {
                    End::Front => order.push_front(id),
                    End::Back => order.push_back(id),
                }
                id
            }
        };
        lines.get_mut(id).expect("every id in the table has a line")
    }

    /// The next message.
    pub(super) fn pop(&mut self) -> Option<ClientMessage> {
        loop {
            let id = *self.order.front()?;
            let line = self.lines.get_mut(id).expect("every id in the order has a line");
            let cost = line.messages.front().expect("a line is never empty").cost();
            if cost > line.credit && self.order.len() > 1 {
                line.credit += QUANTUM;
                self.order.rotate_left(1);
                continue;
            }
            line.credit = line.credit.saturating_sub(cost);
            let (message, is_last) = self.pop_of(id);
            if is_last {
                self.order.pop_front();
                self.shrink();
            }
            return Some(message);
        }
    }

    /// Removes the messages at the front of their sources that have waited since before `since`.
    pub(super) fn expire(&mut self, since: Millis) -> Vec<ClientMessage> {
        let is_late = |line: &Line| line.messages.front().is_some_and(|message| message.since < since);
        let late: Vec<_> = self.lines.iter().filter(|(_, line)| is_late(line)).map(|(id, _)| id).collect();
        let mut expired = Vec::new();
        for id in late {
            while self.lines.get(id).is_some_and(is_late) {
                expired.push(self.pop_of(id).0);
            }
        }
        if !expired.is_empty() {
            let lines = &self.lines;
            self.order.retain(|id| lines.contains(*id));
            self.shrink();
        }
        expired
    }

    /// Drops the messages of a session; returns their number.
    pub(super) fn remove(&mut self, session: SessionKey) -> usize {
        let source = Source::Session(session);
        let is_its = |id: &usize| self.lines.get(*id).is_some_and(|line| line.source == source);
        let Some(id) = self.ids.find(source.hash(), is_its).copied() else { return 0 };
        let mut removed = 0;
        loop {
            removed += 1;
            if self.pop_of(id).1 {
                break;
            }
        }
        self.order.retain(|other| *other != id);
        self.shrink();
        removed
    }

    /// Takes the first message of a line; tells whether it was the last. The last one removes the line, and the caller
    /// removes the line's id from the order.
    fn pop_of(&mut self, id: usize) -> (ClientMessage, bool) {
        let line = self.lines.get_mut(id).expect("the caller has the id of a line");
        let message = line.messages.pop_front().expect("a line is never empty");
        let is_last = line.messages.is_empty();
        if is_last {
            let line = self.lines.remove(id);
            let entry = self.ids.find_entry(line.source.hash(), |other| *other == id);
            entry.expect("each line's id is in the table").remove();
            if self.spare.len() < MAX_SPARE && line.messages.capacity() <= MAX_SPARE_LINE {
                self.spare.push(line.messages);
            }
        }
        self.len -= 1;
        self.bytes -= message.cost();
        (message, is_last)
    }

    /// Gives the memory of a flood back.
    fn shrink(&mut self) {
        if self.len == 0 {
            debug_assert!(self.bytes == 0 && self.order.is_empty() && self.ids.is_empty());
            if self.lines.capacity() > MAX_SPARE {
                *self = Self::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::channel::Channel;
    use proptest::prelude::*;

    fn message(session: u32, payload: Vec<u8>, since: Millis) -> ClientMessage {
        let origin = Origin::Session(SessionKey { index: session, generation: 0 });
        ClientMessage { channel: Channel::from_static(b"chat:a"), payload: payload.into(), origin, since }
    }

    fn session_of(message: &ClientMessage) -> u32 {
        let Origin::Session(key) = message.origin else { panic!("only sessions here") };
        key.index
    }

    #[test]
    fn a_client_that_floods_delays_itself_and_no_other() {
        let mut turns = Turns::default();
        for number in 0..10_000 {
            turns.push(message(1, Vec::new(), number));
        }
        turns.push(message(2, b"hello".to_vec(), 10_000));
        let before = std::iter::from_fn(|| turns.pop()).position(|message| session_of(&message) == 2).unwrap();
        assert!(
            before <= QUANTUM / message(1, Vec::new(), 0).cost(),
            "the one message left after {before} of the flood"
        );
    }

    #[test]
    fn sources_share_by_bytes_not_by_messages() {
        let mut turns = Turns::default();
        for _ in 0..1_000 {
            turns.push(message(1, vec![b'x'; 8_000], 0));
            turns.push(message(2, vec![b'x'; 80], 0));
        }
        let (mut bytes, mut taken) = ([0, 0], 0);
        // As long as both have something to send.
        while taken < 500 {
            let message = turns.pop().unwrap();
            bytes[session_of(&message) as usize - 1] += message.cost();
            taken += 1;
        }
        let [large, small] = bytes;
        assert!(large.abs_diff(small) <= 3 * (8_000 + QUANTUM), "{large} and {small} bytes");
    }

    #[test]
    fn nothing_is_left_behind_when_nothing_waits() {
        let mut turns = Turns::default();
        for session in 0..1_000 {
            turns.push(message(session, Vec::new(), 0));
        }
        while turns.pop().is_some() {}
        assert_eq!((turns.len(), turns.bytes(), turns.order.capacity(), turns.lines.capacity()), (0, 0, 0, 0));
    }

    proptest! {
        #[test]
        fn whatever_happens_each_source_keeps_its_order_and_nothing_is_lost(
            steps in proptest::collection::vec((0..4_u8, 0..5_u32, 0..9_000_usize), 0..200)
        ) {
            let mut turns = Turns::default();
            let mut expected: HashMap<u32, VecDeque<Millis>> = HashMap::new();
            let (mut now, mut bytes) = (0, 0);
            for (step, session, size) in steps {
                now += 1;
                match step {
                    0 | 1 => {
                        turns.push(message(session, vec![0; size], now));
                        expected.entry(session).or_default().push_back(now);
                        bytes += message(session, vec![0; size], now).cost();
                    }
                    2 => if let Some(message) = turns.pop() {
                        prop_assert_eq!(expected.get_mut(&session_of(&message)).unwrap().pop_front(), Some(message.since));
                        if size % 2 == 0 {
                            expected.get_mut(&session_of(&message)).unwrap().push_front(message.since);
                            turns.push_first(message);
                        } else {
                            bytes -= message.cost();
                        }
                    },
                    _ => for message in turns.expire(now.saturating_sub(20)) {
                        prop_assert_eq!(expected.get_mut(&session_of(&message)).unwrap().pop_front(), Some(message.since));
                        bytes -= message.cost();
                    },
                }
                prop_assert_eq!(turns.len(), expected.values().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(turns.bytes(), bytes);
                prop_assert_eq!(turns.iter().count(), turns.len());
            }
        }
    }
}
