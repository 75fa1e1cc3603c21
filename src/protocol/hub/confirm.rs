//! What the broker says of channels: confirmed, refused, lost, moved; and what it has to be asked for.

use super::entry::ChannelEntry;
use super::state::Hub;
use crate::channel::Channel;
use crate::id::{Generation, SessionKey, SubscriberId};
use crate::placement::{Moved, Node};

impl Hub {
    /// Whether what is published on `channel` arrives already.
    pub(crate) fn is_confirmed(&self, channel: &Channel) -> bool {
        self.names
            .find(&self.channels, channel)
            .and_then(|id| self.channels.get(id))
            .is_some_and(|entry| entry.is_confirmed)
    }

    /// Notes that the broker confirmed `channel` at `node`. Returns the subscribers to tell of it; `None` when the
    /// channel is not wanted there any more.
    pub(crate) fn confirm(&mut self, node: Node, channel: &[u8]) -> Option<Vec<(SessionKey, SubscriberId)>> {
        let entry = self.named(channel).filter(|entry| entry.node == node)?;
        let is_new = !std::mem::replace(&mut entry.is_confirmed, true);
        let awaiting = std::mem::take(&mut entry.awaiting);
        *self.confirmed.at_mut(node) += usize::from(is_new);
        Some(awaiting)
    }

    /// Notes that the broker refused `channel`; returns the sessions that now hear nothing.
    pub(crate) fn refuse(&mut self, channel: &[u8]) -> Vec<SessionKey> {
        let Some(entry) = self.named(channel) else { return Vec::new() };
        let was_confirmed = std::mem::replace(&mut entry.is_confirmed, false);
        entry.is_asked = false;
        entry.awaiting = Vec::new();
        let members = entry.audiences.iter().flat_map(|audience| audience.members.iter().map(|(_, session)| *session));
        let (members, node) = (members.collect(), entry.node);
        *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        members
    }

    /// How many channels are confirmed at a node.
    #[cfg(test)]
    pub(crate) fn confirmed(&self, node: Node) -> usize {
        *self.confirmed.at(node)
    }

    /// Notes that the link to a server is lost: nothing there is confirmed until the broker says so
    /// again, and sessions up to `newest` miss what is published. Returns how many channels were.
    pub(crate) fn unconfirm_all(&mut self, node: Node, newest: Generation) -> usize {
        for entry in self.of_node(node) {
            entry.unconfirm(newest);
        }
        std::mem::take(self.confirmed.at_mut(node))
    }

    /// The same of one channel; says whether it was confirmed there.
    pub(crate) fn unconfirm(&mut self, node: Node, channel: &[u8], newest: Generation) -> bool {
        let was_confirmed =
            self.named(channel).filter(|entry| entry.node == node).is_some_and(|entry| entry.unconfirm(newest));
        *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        was_confirmed
    }

    /// Channels live elsewhere now. Returns those that were asked for and have to be asked for there.
    pub(crate) fn follow_placement(&mut self, newest: Generation) -> Vec<Moved> {
        self.confirmed.grow(self.placement.count(), |_| 0);
        let mut all = Vec::new();
        for (_, entry) in &mut self.channels {
            let from = entry.node;
            let to = self.placement.node_of(&entry.name);
            if to == from {
                continue;
            }
            let was_confirmed = entry.unconfirm(newest);
            *self.confirmed.at_mut(from) -= usize::from(was_confirmed);
            entry.node = to;
            if entry.is_asked {
                all.push(Moved { channel: entry.name.clone(), from, to, was_heard: entry.missed_by.is_some() });
            }
        }
        all
    }

    /// Notes that sessions up to `newest` miss what was published on all channels.
    pub(crate) fn miss_all(&mut self, newest: Generation) {
        for (_, entry) in &mut self.channels {
            entry.missed_by = Some(newest);
        }
    }

    /// How many channels at a server were lost and are there again, and their sessions that may have
    /// missed something, each with the newest of them.
    pub(crate) fn take_missed(&mut self, node: Node) -> (usize, Vec<(SessionKey, Generation)>) {
        let (mut channels, mut sessions) = (0, Vec::new());
        for entry in self.of_node(node) {
            let Some(newest) = entry.missed_by.take() else { continue };
            channels += 1;
            let members = entry.audiences.iter().flat_map(|audience| audience.members.iter());
            sessions.extend(members.map(|(_, session)| (*session, newest)));
        }
        (channels, sessions)
    }

    fn of_node(&mut self, node: Node) -> impl Iterator<Item = &mut ChannelEntry> {
        self.channels.iter_mut().map(|(_, entry)| entry).filter(move |entry| entry.node == node)
    }

    /// The channels at a node that were asked for and are not confirmed.
    #[cfg(test)]
    pub(crate) fn unconfirmed(&mut self, node: Node) -> Vec<Channel> {
        let unconfirmed = self.of_node(node).filter(|entry| entry.is_asked && !entry.is_confirmed);
        unconfirmed.map(|entry| entry.name.clone()).collect()
    }
}
