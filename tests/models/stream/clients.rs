//! Clients in the model of the stream: they come with a position, get what they missed, and leave.

use super::*;
use crate::position::Since;
use crate::protocol::hub::Recovery;

impl Run<'_> {
    /// A client comes, or comes back.
    pub(super) fn come_back(&mut self) {
        let (channel, encoding) = (self.rng.usize(..CHANNELS), self.rng.usize(..ENCODINGS.len()));
        let encoding = ENCODINGS[encoding];
        if encoding.has_positions() || self.rng.u8(..4) == 0 {
            self.keep(channel);
        }
        self.sessions += 1;
        let key = SessionKey { index: self.sessions, generation: self.sessions };
        let joined = self.hub.join(&name(channel), encoding, key);
        let entry = self.entries.entry(channel).or_insert_with(Entry::new);
        assert_eq!((joined.is_first, joined.is_confirmed), (!entry.is_asked, entry.is_ready()));
        (entry.is_asked, entry.given_up_at) = (true, None);
        let is_waiting = !joined.is_confirmed;
        entry.members.push(Member { subscriber: joined.subscriber, key, encoding, is_waiting });
        if !is_waiting {
            for _ in 0..4 {
                self.recover(channel, joined.subscriber, encoding);
            }
        }
    }

    fn keep(&mut self, channel: usize) {
        let keep = Keep { messages: self.rng.usize(1..12), age: self.rng.u64(50..2_000), bytes: 1_000_000 };
        self.hub.keep(&name(channel), keep);
        self.longest = self.longest.max(keep.age);
        let end = self.end(channel);
        let entry = self.entries.entry(channel).or_insert_with(Entry::new);
        match &mut entry.kept {
            Some(kept) => {
                let Keep { messages, age, bytes } = kept.keep;
                kept.keep = Keep { messages: messages.max(keep.messages), age: age.max(keep.age), bytes };
            }
            None => {
                let start = end.filter(|_| matches!(entry.placed, Placed::From(_)));
                entry.kept = Some(Kept { keep, start, items: VecDeque::new(), is_whole: true });
            }
        }
    }

    /// The place behind all that the hub has heard of a channel.
    fn end(&self, channel: usize) -> Option<Place> {
        let heard = match self.link {
            Link::Up => self.stream.len(),
            Link::Cut { at, .. } => at,
        };
        self.place(channel, heard.checked_sub(1)?)
    }

    pub(super) fn leave(&mut self) {
        let all: Vec<_> = self
            .entries
            .iter()
            .flat_map(|(channel, of)| of.members.iter().map(|it| (*channel, it.subscriber)))
            .collect();
        let Some((channel, left)) = one_of(self.rng, &all) else { return };
        self.hub.leave(left, self.now);
        let entry = self.entries.get_mut(&channel).expect("it has members");
        entry.members.retain(|member| member.subscriber != left);
        if entry.members.is_empty() {
            self.linger(channel);
        }
    }

    pub(super) fn linger(&mut self, channel: usize) {
        let entry = self.entries.get_mut(&channel).expect("it had members");
        let kept_for = entry.kept.as_ref().map_or(0, |kept| kept.keep.age);
        entry.given_up_at = Some(self.now + self.linger.max(kept_for));
    }

    /// What a client shows: nothing, a place that it may have had, one that was made up, or the wish for everything.
    fn some_since(&mut self, channel: usize) -> (Option<Since>, Option<Place>) {
        let mut place = match self.rng.u8(..10) {
            0 => return (None, None),
            1 => return (Some(Since::Oldest), None),
            _ if self.stream.is_empty() => None,
            _ => {
                let index = self.rng.usize(..self.stream.len());
                self.place(channel, index)
            }
        };
        if self.rng.u8(..8) == 0 {
            place.iter_mut().for_each(|(_, count)| *count += 1);
        }
        let Some((index, count)) = place else { return (None, None) };
        let Said::Milestone(milestone) = self.stream[index] else { panic!("{index} is a milestone") };
        (Some(Since::Position(Position { milestone, count })), place)
    }

    /// A client whose channel is ready gets all behind its position, or is told that it does not.
    fn recover(&mut self, channel: usize, subscriber: SubscriberId, encoding: Encoding) {
        let (since, place) = self.some_since(channel);
        let entry = &self.entries[&channel];
        let end = self.end(channel).filter(|_| matches!(entry.placed, Placed::From(_)));
        let kept = entry.kept.as_ref().filter(|_| end.is_some());
        let is_known = place.is_some_and(|place| self.position(place).is_some());
        let is_recovered = is_known && kept.is_some_and(|kept| kept.start <= place) && place <= end;
        let missed: Vec<_> = kept.map_or_else(Vec::new, |kept| {
            let indices = kept.items.iter().map(|(index, _)| *index);
            indices.filter(|index| place.is_none() || self.place(channel, *index) > place).collect()
        });
        let publications = missed.len();
        let expected = match since {
            None => Recovery::New,
            Some(Since::Position(_)) if is_recovered => Recovery::Complete { publications },
            Some(Since::Oldest) if kept.is_some_and(|kept| kept.is_whole) => Recovery::Complete { publications },
            Some(Since::Oldest) if kept.is_some() => Recovery::Rest { publications },
            Some(_) => Recovery::Incomplete,
        };
        let mut out = BytesMut::new();
        assert_eq!(self.hub.recover(subscriber, since, &mut out), expected, "{since:?} of {entry:?}");
        if let Some(since @ Since::Position(_)) = since {
            assert_eq!(self.hub.can_recover(subscriber, &since), is_recovered);
            let is_behind = end.is_some() && if is_known { place > end } else { true };
            assert_eq!(self.hub.is_behind(subscriber, &since, true), is_behind);
        }
        let has_missed = matches!(expected, Recovery::Complete { .. } | Recovery::Rest { .. });
        let missed = if has_missed { missed } else { Vec::new() };
        let mut bytes = BytesMut::new();
        for index in &missed {
            let Said::Publication { payload, .. } = &self.stream[*index] else { panic!("it was published") };
            let position = self.place(channel, *index).and_then(|place| self.position(place));
            encoding.encode(&name(channel), payload.as_bytes(), position, &mut bytes);
        }
        let last = end.filter(|_| kept.is_some()).and_then(|end| encoding.position(self.position(end)?));
        bytes.extend(last.into_iter().flatten());
        // A gap that is told comes first.
        assert!(out.ends_with(&bytes), "{out:?} should be {bytes:?}");
        let is_told = matches!(expected, Recovery::Rest { .. } | Recovery::Incomplete) && encoding.has_positions();
        assert_eq!(out.len() > bytes.len(), is_told);
        self.poll(channel, subscriber, since, &missed);
    }

    /// A client that polls gets the same, in answers of bounded size.
    fn poll(&mut self, channel: usize, subscriber: SubscriberId, since: Option<Since>, missed: &[usize]) {
        let max_bytes = self.rng.usize(1..40);
        let mut out = BytesMut::new();
        let caught = self.hub.catch_up(subscriber, since.as_ref(), max_bytes, &mut out);
        let entry = &self.entries[&channel];
        let end = self.end(channel).filter(|_| entry.kept.is_some() && matches!(entry.placed, Placed::From(_)));
        let encoding = entry.members.iter().find(|member| member.subscriber == subscriber).expect("it is one").encoding;
        let (mut bytes, mut next) = (BytesMut::new(), end);
        let mut left = missed.iter();
        for index in left.by_ref() {
            let Said::Publication { payload, .. } = &self.stream[*index] else { panic!("it was published") };
            encoding.encode(&name(channel), payload.as_bytes(), None, &mut bytes);
            if bytes.len() >= max_bytes {
                next = self.place(channel, *index);
                break;
            }
        }
        let is_whole = left.next().is_none();
        if is_whole {
            next = end;
        }
        assert_eq!((&out, caught.next), (&bytes, next.and_then(|next| self.position(next))));
        assert_eq!(caught.is_up_to_date, is_whole && end.is_some());
    }
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            is_asked: false,
            is_confirmed: false,
            is_interrupted: false,
            is_missed: false,
            placed: Placed::Nowhere,
            kept: None,
            members: Vec::new(),
            given_up_at: None,
            held: Vec::new(),
        }
    }
}
