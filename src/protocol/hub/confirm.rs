//! The broker's events about channels (confirmed, refused, lost, moved), and the channels to request from it. May not
//! enter: links, the order of commands to a broker.

use super::milestones::Milestones;
use super::places::Places;
use super::state::Hub;
use crate::channel::Channel;
use crate::id::{Generation, SessionKey, SubscriberId};
use crate::placement::{Moved, Node};

impl Hub {
    /// Whether publications on `channel` arrive, and have places if the channel has a history.
    pub(crate) fn is_ready(&self, channel: &[u8]) -> bool {
        let entry = self.names.find(&self.channels, channel).and_then(|id| self.channels.get(id));
        entry.is_some_and(|entry| entry.node.is_some_and(|node| entry.is_ready(self.milestones.at(node))))
    }

    /// Whether publications on `channel` arrive already.
    pub(crate) fn is_confirmed(&self, channel: &Channel) -> bool {
        self.names
            .find(&self.channels, channel)
            .and_then(|id| self.channels.get(id))
            .is_some_and(|entry| entry.is_confirmed)
    }

    /// Notes that the broker confirmed `channel` at `node`. Returns the subscribers to tell; `None` when the channel is
    /// no longer wanted at `node`.
    pub(crate) fn confirm(&mut self, node: Node, channel: &[u8]) -> Option<Vec<(SessionKey, SubscriberId)>> {
        let id = self.names.find(&self.channels, channel)?;
        let entry = self.channels.get_mut(id).filter(|entry| entry.node == Some(node))?;
        let milestones = self.milestones.at(node);
        let is_new = !std::mem::replace(&mut entry.is_confirmed, true);
        if is_new && !entry.is_interrupted {
            entry.places = Places::from(milestones.next());
        }
        *self.confirmed.at_mut(node) += usize::from(is_new);
        if entry.is_ready(milestones) {
            return Some(std::mem::take(&mut entry.awaiting));
        }
        if is_new && !entry.is_interrupted {
            self.await_milestone(id);
        }
        Some(Vec::new())
    }

    /// Notes that the broker refused `channel`; returns its sessions, which get no publications now.
    pub(crate) fn refuse(&mut self, channel: &[u8]) -> Vec<SessionKey> {
        let id = self.names.find(&self.channels, channel);
        let Some(entry) = id.and_then(|id| self.channels.get_mut(id)) else { return Vec::new() };
        self.budget.end(entry.history.as_deref_mut());
        let was_confirmed = std::mem::replace(&mut entry.is_confirmed, false);
        // A stream that was cut is not continued: the next one begins with the next confirmation.
        (entry.is_requested, entry.is_interrupted) = (false, false);
        entry.places = Places::nowhere();
        entry.awaiting = Vec::new();
        let members = entry.audiences.iter().flat_map(|audience| audience.members.iter().map(|(_, session)| *session));
        let (members, node) = (members.collect(), entry.node);
        if let Some(node) = node {
            *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        }
        members
    }

    /// The number of channels confirmed at `node`.
    #[cfg(test)]
    pub(crate) fn confirmed(&self, node: Node) -> usize {
        *self.confirmed.at(node)
    }

    /// Notes that the link to `node` is lost: no channel there is confirmed, and sessions up to `newest` miss
    /// publications. With `is_cut`, everything before the loss was heard, so that placed channels can be continued from
    /// the node's log. Returns the number of channels that were confirmed.
    pub(crate) fn unconfirm_all(&mut self, node: Node, newest: Generation, is_cut: bool) -> usize {
        let milestones = self.milestones.at_mut(node);
        for (_, entry) in self.channels.iter_mut().filter(|(_, entry)| entry.node == Some(node)) {
            // The log does not fill an earlier gap that is not told yet.
            let is_whole = entry.missed_by.is_none() && entry.places.end(milestones.current()).is_some();
            if is_cut && (entry.is_interrupted || is_whole) {
                entry.interrupt(newest);
            } else {
                entry.unconfirm(newest, &mut self.budget);
            }
        }
        milestones.awaited_by.clear();
        milestones.gapped.clear();
        (milestones.is_asked, milestones.replay) = (false, None);
        milestones.take_held();
        std::mem::take(self.confirmed.at_mut(node))
    }

    /// As [`Hub::unconfirm_all`], for one channel; true when it was confirmed at `node`.
    pub(crate) fn unconfirm(&mut self, node: Node, channel: &[u8], newest: Generation) -> bool {
        let id = self.names.find(&self.channels, channel);
        let entry = id.and_then(|id| self.channels.get_mut(id)).filter(|entry| entry.node == Some(node));
        let was_confirmed = entry.is_some_and(|entry| entry.unconfirm(newest, &mut self.budget));
        *self.confirmed.at_mut(node) -= usize::from(was_confirmed);
        was_confirmed
    }

    /// Moves channels to the nodes of the placement. Returns those that were requested, to be requested at the new
    /// node.
    pub(crate) fn follow_placement(&mut self, newest: Generation) -> Vec<Moved> {
        self.confirmed.grow(self.placement.count(), |_| 0);
        self.milestones.grow(self.placement.count(), |_| Milestones::default());
        let mut all = Vec::new();
        for (_, entry) in &mut self.channels {
            let from = entry.node;
            let to = self.placement.node_of(&entry.name);
            if to == from {
                continue;
            }
            let was_confirmed = entry.unconfirm(newest, &mut self.budget);
            if let Some(from) = from {
                *self.confirmed.at_mut(from) -= usize::from(was_confirmed);
            }
            entry.node = to;
            if entry.is_requested {
                all.push(Moved { channel: entry.name.clone(), from, to, was_heard: entry.missed_by.is_some() });
            }
        }
        all
    }

    /// Notes that sessions up to `newest` missed publications on all channels.
    pub(crate) fn miss_all(&mut self, newest: Generation) {
        for (_, entry) in &mut self.channels {
            entry.missed_by = Some(newest);
        }
    }

    /// The channels at `node` that were requested and are not confirmed.
    #[cfg(test)]
    pub(crate) fn unconfirmed(&self, node: Node) -> Vec<Channel> {
        let of_node = self.channels.iter().map(|(_, entry)| entry).filter(|entry| entry.node == Some(node));
        let unconfirmed = of_node.filter(|entry| entry.is_requested && !entry.is_confirmed);
        unconfirmed.map(|entry| entry.name.clone()).collect()
    }
}
