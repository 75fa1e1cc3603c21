//! The channels of a worker at one node: which are wanted, and which Redis has confirmed on the current link. A new
//! link subscribes all of them. May not enter: commands, links.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::channel::Channel;

/// Whether Redis has confirmed a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Asked,
    /// The same, and a gap lasts until it is.
    Awaited,
    Confirmed,
}

/// Whether the server's count of subscriptions is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Believed,
    /// The ACL forbids the question, or the count was wrong before.
    Unknown,
}

/// The effect of a confirmation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Confirmed {
    Wanted(Channel),
    /// The worker no longer wants the channel, or never did.
    Unwanted,
}

/// The channels at one node.
#[derive(Debug, Default)]
pub(crate) struct ChannelTable {
    channels: HashMap<Channel, Status>,
    confirmed: usize,
    awaited: usize,
    /// Channels that Redis has subscribed besides the confirmed ones: their UNSUBSCRIBE or another SUBSCRIBE is to
    /// come.
    surplus: HashSet<Channel>,
}

impl ChannelTable {
    /// Wants `channel`, which is to be subscribed.
    pub(crate) fn ask(&mut self, channel: Channel) {
        let before = self.channels.insert(channel.clone(), Status::Asked);
        self.keep_surplus(channel, before);
        self.uncount(before);
    }

    /// No longer wants `channel`.
    pub(crate) fn forget(&mut self, channel: &[u8]) {
        let Some((channel, status)) = self.channels.remove_entry(channel) else { return };
        self.keep_surplus(channel, Some(status));
        self.uncount(Some(status));
    }

    fn keep_surplus(&mut self, channel: Channel, before: Option<Status>) {
        if before == Some(Status::Confirmed) {
            self.surplus.insert(channel);
        }
    }

    /// Redis has subscribed `channel`, which does not confirm the channel.
    pub(crate) fn has_again(&mut self, channel: &[u8]) {
        if !self.is_confirmed(channel) {
            self.surplus.insert(Channel::copy_from_slice(channel));
        }
    }

    /// Redis has unsubscribed `channel`.
    pub(crate) fn left(&mut self, channel: &[u8]) {
        self.surplus.remove(channel);
    }

    fn uncount(&mut self, before: Option<Status>) {
        self.confirmed -= usize::from(before == Some(Status::Confirmed));
        self.awaited -= usize::from(before == Some(Status::Awaited));
    }

    /// Whether the worker wants `channel`.
    pub(crate) fn is_wanted(&self, channel: &[u8]) -> bool {
        self.channels.contains_key(channel)
    }

    /// Redis has subscribed `channel`.
    pub(crate) fn confirm(&mut self, channel: &[u8]) -> Confirmed {
        let Some((name, _)) = self.channels.get_key_value(channel) else {
            self.surplus.insert(Channel::copy_from_slice(channel));
            return Confirmed::Unwanted;
        };
        let name = name.clone();
        self.surplus.remove(channel);
        let before = self.channels.insert(name.clone(), Status::Confirmed);
        self.uncount(before);
        self.confirmed += 1;
        Confirmed::Wanted(name)
    }

    /// The subscription to `channel` is lost. Returns the channel if it was confirmed.
    pub(crate) fn lose(&mut self, channel: &[u8]) -> Option<Channel> {
        let standing = self.channels.get_mut(channel).filter(|standing| **standing == Status::Confirmed)?;
        *standing = Status::Awaited;
        self.confirmed -= 1;
        self.awaited += 1;
        self.channels.get_key_value(channel).map(|(name, _)| name.clone())
    }

    /// The link is lost, and all subscriptions with it.
    pub(crate) fn lose_link(&mut self) {
        self.surplus.clear();
        self.lose_all();
    }

    /// No subscription counts as confirmed any more.
    pub(crate) fn lose_all(&mut self) {
        self.channels.values_mut().for_each(|standing| *standing = Status::Awaited);
        self.confirmed = 0;
        self.awaited = self.channels.len();
    }

    /// A gap lasts until all are confirmed that are not now.
    pub(crate) fn await_all(&mut self) {
        let asked = self.channels.values_mut().filter(|standing| **standing == Status::Asked);
        asked.for_each(|standing| *standing = Status::Awaited);
        self.awaited = self.channels.len() - self.confirmed;
    }

    /// Whether a gap has to last.
    pub(crate) fn has_awaited(&self) -> bool {
        self.awaited > 0
    }

    /// Whether Redis has confirmed `channel`.
    pub(crate) fn is_confirmed(&self, channel: &[u8]) -> bool {
        self.channels.get(channel) == Some(&Status::Confirmed)
    }

    /// The number of channels that Redis has confirmed.
    pub(crate) fn confirmed(&self) -> usize {
        debug_assert!(self.confirmed <= self.channels.len(), "more are confirmed than wanted");
        self.confirmed
    }

    /// The number of channels that Redis has subscribed by its confirmations, wanted or not.
    pub(crate) fn subscribed(&self) -> usize {
        self.confirmed() + self.surplus.len()
    }

    /// Whether all wanted channels are confirmed.
    #[cfg(test)]
    pub(crate) fn is_complete(&self) -> bool {
        self.confirmed == self.channels.len()
    }

    /// The wanted channels that Redis has not confirmed.
    pub(crate) fn unconfirmed(&self) -> Vec<Channel> {
        let unconfirmed = self.channels.iter().filter(|(_, standing)| **standing != Status::Confirmed);
        let unconfirmed = unconfirmed.map(|(channel, _)| channel.clone());
        // A simulated run has to be reproducible, whatever the order of the table.
        if cfg!(test) { unconfirmed.collect::<BTreeSet<_>>().into_iter().collect() } else { unconfirmed.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_waits_for_what_was_wanted_when_it_began_and_for_nothing_else() {
        let [a, b, c, d] = [b"a", b"b", b"c", b"d"].map(|name| Channel::copy_from_slice(name));
        let mut table = ChannelTable::default();
        table.ask(a.clone());
        table.ask(b.clone());
        table.confirm(b"a");
        table.await_all();
        table.ask(c.clone());
        assert!(table.has_awaited());
        table.confirm(b"b");
        assert!(!table.has_awaited() && !table.is_complete(), "c is new");
        table.lose_all();
        table.ask(d.clone());
        for name in [b"a", b"b"] {
            table.confirm(name);
        }
        assert!(table.has_awaited());
        table.forget(b"c");
        assert!(!table.has_awaited());
        assert!(table.lose(b"a").is_some() && table.has_awaited());
        table.ask(a);
        assert!(!table.has_awaited());
    }

    #[test]
    fn a_channel_counts_as_subscribed_until_redis_has_unsubscribed_it() {
        let [a, b] = [b"a", b"b"].map(|name| Channel::copy_from_slice(name));
        let mut table = ChannelTable::default();
        table.ask(a.clone());
        table.ask(b.clone());
        table.confirm(b"a");
        table.forget(b"a");
        table.forget(b"b");
        assert_eq!((table.confirmed(), table.subscribed()), (0, 1), "b was not confirmed");
        table.confirm(b"b");
        assert_eq!((table.confirmed(), table.subscribed()), (0, 2), "the SUBSCRIBE was under way");
        table.left(b"a");
        table.ask(b.clone());
        assert_eq!((table.confirmed(), table.subscribed()), (0, 1));
        table.confirm(b"b");
        table.ask(b);
        assert_eq!((table.confirmed(), table.subscribed()), (0, 1), "it is subscribed once more");
        table.lose_all();
        assert_eq!(table.subscribed(), 1);
        table.lose_link();
        assert_eq!(table.subscribed(), 0);
    }

    #[test]
    fn what_is_confirmed_is_counted_and_lost() {
        let [a, b] = [b"a", b"b"].map(|name| Channel::copy_from_slice(name));
        let mut table = ChannelTable::default();
        assert!(table.is_complete());
        table.ask(a.clone());
        table.ask(b.clone());
        assert_eq!(table.confirm(b"a"), Confirmed::Wanted(a.clone()));
        assert_eq!(table.confirm(b"a"), Confirmed::Wanted(a.clone()), "again");
        assert_eq!(table.confirm(b"c"), Confirmed::Unwanted);
        assert_eq!((table.confirmed(), table.unconfirmed()), (1, vec![b.clone()]));
        assert_eq!((table.lose(b"b"), table.lose(b"a"), table.lose(b"a")), (None, Some(a.clone()), None));
        table.confirm(b"a");
        table.ask(a.clone());
        assert_eq!(table.confirmed(), 0, "it has to be subscribed again");
        table.confirm(b"a");
        table.confirm(b"b");
        assert!(table.is_complete());
        table.forget(b"a");
        table.forget(b"c");
        assert_eq!(table.confirmed(), 1);
        table.lose_all();
        assert_eq!((table.confirmed(), table.unconfirmed()), (0, vec![b]));
    }
}
