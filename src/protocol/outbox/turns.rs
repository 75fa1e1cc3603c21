//! Messages that wait for one of the broker's servers. The messages of one source keep their order; the sources
//! take turns.
//!
//! Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) by bytes: in a round each source sends about
//! [`QUANTUM`] bytes. So a client that floods delays only itself, and a client that sends now and then waits for
//! one round at most. A source without messages owns no memory here. May not enter: limits, messages in flight at
//! the broker.

use std::collections::{HashMap, VecDeque};

use crate::clock::Millis;
use crate::id::SessionKey;
use crate::message::{ClientMessage, Origin};

/// Bytes that a source may send in a round, as [`ClientMessage::cost`] counts them. Chosen: some thirty short messages, so
/// that a round of 300 floods takes Redis some 10 ms; a message of 64 kB waits for sixteen rounds.
const QUANTUM: usize = 4 << 10;

/// The sender of a message. All [`crate::Publisher`]s take turns as one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Session(SessionKey),
    Publisher,
}

impl Source {
    pub(super) fn of(text: &ClientMessage) -> Self {
        match text.origin {
            Origin::Session(key) => Self::Session(key),
            Origin::Publisher(_) => Self::Publisher,
        }
    }
}

/// The waiting messages of one source; never empty.
#[derive(Debug, Default)]
struct Line {
    texts: VecDeque<ClientMessage>,
    /// Bytes that the source may still send in this round.
    credit: usize,
}

/// The messages that wait for one server.
#[derive(Debug, Default)]
pub(super) struct Turns {
    lines: HashMap<Source, Line>,
    /// The sources of all lines; the first has its turn.
    order: VecDeque<Source>,
    texts: usize,
    bytes: usize,
}

impl Turns {
    /// The number of waiting messages.
    pub(super) fn len(&self) -> usize {
        self.texts
    }

    /// Their total cost.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All waiting messages; those of one source in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ClientMessage> {
        self.order.iter().filter_map(|source| self.lines.get(source)).flat_map(|line| &line.texts)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ClientMessage> {
        self.lines.values_mut().flat_map(|line| &mut line.texts)
    }

    /// Queues a message behind the others of its source.
    pub(super) fn push(&mut self, text: ClientMessage) {
        let source = Source::of(&text);
        self.count(&text);
        let order = &mut self.order;
        let line = self.lines.entry(source).or_insert_with(|| {
            order.push_back(source);
            Line { texts: VecDeque::new(), credit: QUANTUM }
        });
        line.texts.push_back(text);
    }

    /// Queues a message before the others of its source. The source gets the next turn.
    pub(super) fn push_first(&mut self, text: ClientMessage) {
        let source = Source::of(&text);
        self.count(&text);
        let order = &mut self.order;
        let line = self.lines.entry(source).or_insert_with(|| {
            order.push_front(source);
            Line { texts: VecDeque::new(), credit: QUANTUM }
        });
        line.texts.push_front(text);
    }

    fn count(&mut self, text: &ClientMessage) {
        self.texts += 1;
        self.bytes += text.cost();
    }

    /// The next message.
    pub(super) fn pop(&mut self) -> Option<ClientMessage> {
        loop {
            let source = *self.order.front()?;
            let line = self.lines.get_mut(&source).expect("every source in the order has a line");
            let text = line.texts.front().expect("a line is never empty");
            let cost = text.cost();
            if cost > line.credit && self.order.len() > 1 {
                line.credit += QUANTUM;
                self.order.rotate_left(1);
                continue;
            }
            line.credit = line.credit.saturating_sub(cost);
            let text = self.pop_of(source);
            if !self.lines.contains_key(&source) {
                self.order.pop_front();
            }
            return text;
        }
    }

    /// Removes the messages at the front of their sources that have waited since before `since`.
    pub(super) fn expire(&mut self, since: Millis) -> Vec<ClientMessage> {
        let is_late = |line: &Line| line.texts.front().is_some_and(|text| text.since < since);
        let late: Vec<_> = self.lines.iter().filter(|(_, line)| is_late(line)).map(|(source, _)| *source).collect();
        let mut expired = Vec::new();
        for source in late {
            while self.lines.get(&source).is_some_and(is_late) {
                expired.extend(self.pop_of(source));
            }
        }
        if !expired.is_empty() {
            let lines = &self.lines;
            self.order.retain(|source| lines.contains_key(source));
        }
        expired
    }

    /// Drops the messages of a session; returns how many there were.
    pub(super) fn remove(&mut self, session: SessionKey) -> usize {
        let source = Source::Session(session);
        let Some(line) = self.lines.remove(&source) else { return 0 };
        self.order.retain(|other| *other != source);
        self.texts -= line.texts.len();
        self.bytes -= line.texts.iter().map(ClientMessage::cost).sum::<usize>();
        if self.texts == 0 {
            *self = Self::default();
        }
        line.texts.len()
    }

    /// Takes the first message of a source. With the last one, the source's line goes; its place in the order is the
    /// caller's to take out.
    fn pop_of(&mut self, source: Source) -> Option<ClientMessage> {
        let line = self.lines.get_mut(&source)?;
        let text = line.texts.pop_front()?;
        if line.texts.is_empty() {
            self.lines.remove(&source);
        }
        self.texts -= 1;
        self.bytes -= text.cost();
        if self.texts == 0 {
            // A flood must not leave its memory behind.
            *self = Self::default();
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use proptest::prelude::*;

    fn text(session: u32, payload: Vec<u8>, since: Millis) -> ClientMessage {
        let origin = Origin::Session(SessionKey { index: session, generation: 0 });
        ClientMessage { channel: Channel::from_static(b"chat:a"), payload: payload.into(), origin, since }
    }

    fn session_of(text: &ClientMessage) -> u32 {
        let Origin::Session(key) = text.origin else { panic!("only sessions here") };
        key.index
    }

    #[test]
    fn a_client_that_floods_delays_itself_and_no_other() {
        let mut turns = Turns::default();
        for number in 0..10_000 {
            turns.push(text(1, Vec::new(), number));
        }
        turns.push(text(2, b"hello".to_vec(), 10_000));
        let place = std::iter::from_fn(|| turns.pop()).position(|text| session_of(&text) == 2).unwrap();
        assert!(place <= QUANTUM / text(1, Vec::new(), 0).cost(), "its one message left behind {place} of the flood");
    }

    #[test]
    fn sources_share_by_bytes_not_by_messages() {
        let mut turns = Turns::default();
        for _ in 0..1_000 {
            turns.push(text(1, vec![b'x'; 8_000], 0));
            turns.push(text(2, vec![b'x'; 80], 0));
        }
        let (mut bytes, mut taken) = ([0, 0], 0);
        // As long as both have something to send.
        while taken < 500 {
            let text = turns.pop().unwrap();
            bytes[session_of(&text) as usize - 1] += text.cost();
            taken += 1;
        }
        let [large, small] = bytes;
        assert!(large.abs_diff(small) <= 3 * (8_000 + QUANTUM), "{large} and {small} bytes");
    }

    #[test]
    fn nothing_is_left_behind_when_nothing_waits() {
        let mut turns = Turns::default();
        for session in 0..1_000 {
            turns.push(text(session, Vec::new(), 0));
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
                        turns.push(text(session, vec![0; size], now));
                        expected.entry(session).or_default().push_back(now);
                        bytes += text(session, vec![0; size], now).cost();
                    }
                    2 => if let Some(text) = turns.pop() {
                        prop_assert_eq!(expected.get_mut(&session_of(&text)).unwrap().pop_front(), Some(text.since));
                        if size % 2 == 0 {
                            expected.get_mut(&session_of(&text)).unwrap().push_front(text.since);
                            turns.push_first(text);
                        } else {
                            bytes -= text.cost();
                        }
                    },
                    _ => for text in turns.expire(now.saturating_sub(20)) {
                        prop_assert_eq!(expected.get_mut(&session_of(&text)).unwrap().pop_front(), Some(text.since));
                        bytes -= text.cost();
                    },
                }
                prop_assert_eq!(turns.len(), expected.values().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(turns.bytes(), bytes);
                prop_assert_eq!(turns.iter().count(), turns.len());
            }
        }
    }
}
