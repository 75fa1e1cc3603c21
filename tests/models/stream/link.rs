//! The link in the model of the stream: milestones, confirmations, cuts, and what follows a cut.

use super::*;
use crate::position::Logged;

impl Run<'_> {
    pub(super) fn say_milestone(&mut self) {
        let index = self.stream.len();
        let log = self.rng.bool().then_some(LogPoint { history: *b"history!", offset: index as u64 });
        let milestone = Milestone { id: MilestoneId(1_000 + index as u64), log };
        self.stream.push(Said::Milestone(milestone));
        // A link that is to be continued keeps them to itself.
        if self.link != Link::Up {
            return;
        }
        let told = self.hub.on_milestone(NODE, milestone, self.now);
        self.hear(index);
        let since = self.now.saturating_sub(self.longest);
        while self.heard.len() > 1 && self.heard.front().is_some_and(|(_, at)| *at < since) {
            self.heard.pop_front();
        }
        self.check_told(told);
    }

    /// The hub has heard a milestone: channels that waited for it are placed.
    fn hear(&mut self, index: usize) {
        self.heard.push_back((index, self.now));
        self.is_milestone_asked = false;
        for entry in self.entries.values_mut().filter(|entry| entry.placed == Placed::Next) {
            entry.placed = Placed::From((index, 0));
            entry.kept.iter_mut().for_each(|kept| kept.start = Some((index, 0)));
        }
    }

    pub(super) fn confirm(&mut self) {
        let channel = self.rng.usize(..CHANNELS);
        // Redis answers requests only.
        if self.entries.get(&channel).is_some_and(|entry| !entry.is_asked) {
            return;
        }
        let told = self.hub.confirm(NODE, &name(channel));
        let Some(entry) = self.entries.get_mut(&channel) else { return assert_eq!(told, None, "it is not wanted") };
        if !std::mem::replace(&mut entry.is_confirmed, true) && !entry.is_interrupted {
            entry.placed = Placed::Next;
        }
        self.check_told(told.expect("it is wanted"));
    }

    /// The link ends, and nothing that it should have heard is missing.
    pub(super) fn cut(&mut self) {
        let Some(from) = self.last_heard() else { return };
        self.hub.unconfirm_all(NODE, self.sessions, true);
        for entry in self.entries.values_mut() {
            let is_whole = !entry.is_missed && entry.is_confirmed && matches!(entry.placed, Placed::From(_));
            if entry.is_interrupted || is_whole {
                entry.is_missed |= entry.is_confirmed;
                (entry.is_confirmed, entry.is_interrupted) = (false, true);
            } else {
                entry.lose();
            }
            entry.held.clear();
        }
        self.is_milestone_asked = false;
        if self.link == Link::Up {
            self.link = Link::Cut { from, at: self.stream.len() };
        }
    }

    /// The link ends, and may have missed something.
    pub(super) fn lose(&mut self) {
        self.hub.unconfirm_all(NODE, self.sessions, false);
        self.entries.values_mut().for_each(Entry::lose);
        self.is_milestone_asked = false;
        self.link = Link::Up;
    }

    /// The new link has all its channels, and stands still at a milestone.
    pub(super) fn replay(&mut self) {
        let Link::Cut { from, at } = self.link else { return };
        if self.entries.values().any(|entry| entry.is_asked && !entry.is_confirmed) {
            return;
        }
        self.say_milestone();
        let until = self.stream.len() - 1;
        for index in from + 1..until {
            let logged = match &self.stream[index] {
                Said::Milestone(milestone) => Logged::Milestone(*milestone),
                Said::Publication { channel, payload } => {
                    Logged::Publication { channel: name(*channel), payload: payload.clone().into() }
                }
            };
            self.hub.replay(NODE, &logged, self.now);
            match &self.stream[index] {
                Said::Milestone(_) => self.heard.push_back((index, self.now)),
                Said::Publication { channel, .. } => {
                    let is_interrupted = self.entries.get(channel).is_some_and(|entry| entry.is_interrupted);
                    if is_interrupted && index >= at {
                        self.deliver(*channel, index);
                    }
                }
            }
        }
        let Said::Milestone(milestone) = self.stream[until] else { panic!("it was just said") };
        let told = self.hub.end_replay(NODE, milestone, self.now);
        for entry in self.entries.values_mut() {
            if !entry.is_confirmed {
                entry.placed = Placed::Nowhere;
                entry.end();
            } else if entry.is_interrupted {
                entry.is_missed = false;
            }
            entry.is_interrupted = false;
            entry.held.clear();
        }
        self.hear(until);
        self.link = Link::Up;
        self.check_told(told);
    }

    /// The stream is not continued: a gap is told.
    pub(super) fn give_up(&mut self) {
        let told = self.hub.give_up_replay(NODE);
        for channel in 0..CHANNELS {
            let Some(entry) = self.entries.get_mut(&channel) else { continue };
            let held = std::mem::take(&mut entry.held);
            if !std::mem::take(&mut entry.is_interrupted) {
                continue;
            }
            entry.end();
            entry.placed = if entry.is_confirmed { Placed::Next } else { Placed::Nowhere };
            if entry.is_confirmed {
                held.into_iter().for_each(|index| self.deliver(channel, index));
            }
        }
        self.link = Link::Up;
        self.check_told(told);
        let (channels, missed) = self.hub.take_missed(NODE);
        let mut of_missed = Vec::new();
        for entry in self.entries.values_mut() {
            if std::mem::take(&mut entry.is_missed) {
                of_missed.push(entry.members.iter().map(|member| member.key).collect::<Vec<_>>());
            }
        }
        assert_eq!(channels, of_missed.len());
        let missed: BTreeSet<_> = missed.into_iter().map(|(key, _)| key).collect();
        assert_eq!(missed, of_missed.into_iter().flatten().collect());
    }

    /// Redis refuses a channel: its clients go.
    pub(super) fn refuse(&mut self) {
        let channel = self.rng.usize(..CHANNELS);
        let refused: BTreeSet<_> = self.hub.refuse(&name(channel)).into_iter().collect();
        let Some(entry) = self.entries.get_mut(&channel) else {
            return assert!(refused.is_empty());
        };
        (entry.is_asked, entry.is_confirmed, entry.is_interrupted) = (false, false, false);
        entry.placed = Placed::Nowhere;
        entry.held.clear();
        entry.end();
        assert_eq!(refused, entry.members.iter().map(|member| member.key).collect());
        let members = std::mem::take(&mut entry.members);
        if !members.is_empty() {
            self.linger(channel);
        }
        members.into_iter().for_each(|member| self.hub.leave(member.subscriber, self.now));
    }
}
