//! A worker's outbox: client messages that wait for the broker. The messages of one client leave in the client's order,
//! and the clients take turns (`turns.rs`).
//!
//! The outbox is bounded per worker. A session's share shrinks as the outbox fills up ([`Outbox::allowance`]), so that
//! a few floods never fill it. The messages of a client that left are still published. If the client was told that its
//! messages are lost, they are dropped ([`Outbox::abandon`]). May not enter: sessions, links.

mod turns;

use std::collections::HashSet;

use self::turns::Turns;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin};
use crate::per_node::PerNode;
use crate::placement::{Node, Placement};

/// The part of the free room that one session may have waiting (dynamic thresholds: Choudhury and Hahne,
/// IEEE/ACM Transactions on Networking, 1998). With N floods, 1 / (1 + N / 16) of the room stays free for
/// the others. Chosen: four floods at the default limits leave four fifths free, 300 a twentieth: 3 MB.
const SHARE_OF_FREE: usize = 16;

/// Messages that wait for the broker.
#[derive(Debug)]
pub(crate) struct Outbox {
    placement: Placement,
    /// One for each node, so that a node that is away does not hold up the others.
    queues: PerNode<Turns>,
    /// Messages on channels that have no node now; no broker takes them before they have one.
    unplaced: Turns,
    /// Bytes that may wait for all nodes together.
    max_bytes: usize,
    /// Sessions whose clients were told that their messages are lost: messages that the broker gives back are dropped.
    /// Empty while no message is in flight.
    abandoned: HashSet<SessionKey>,
    /// Messages that the broker has taken and not answered for.
    in_flight: usize,
    /// Messages dropped by [`Outbox::abandon`] since the last [`Outbox::take_dropped`].
    dropped: u64,
}

impl Outbox {
    /// Queues for about `max_bytes` in all.
    pub(crate) fn new(max_bytes: usize, placement: Placement) -> Self {
        let queues = PerNode::new(placement.count(), |_| Turns::default());
        Self {
            placement,
            queues,
            unplaced: Turns::default(),
            max_bytes,
            abandoned: HashSet::new(),
            in_flight: 0,
            dropped: 0,
        }
    }

    /// The node that messages on `channel` wait for; `None` while they wait for a node to be known.
    pub(crate) fn node_of(&self, channel: &Channel) -> Option<Node> {
        self.placement.node_of(channel)
    }

    fn queues(&self) -> impl Iterator<Item = &Turns> {
        [&self.unplaced].into_iter().chain(self.queues.iter())
    }

    fn queues_mut(&mut self) -> impl Iterator<Item = &mut Turns> {
        [&mut self.unplaced].into_iter().chain(self.queues.iter_mut().map(|(_, queue)| queue))
    }

    fn bytes(&self, node: Option<Node>) -> usize {
        node.map_or(&self.unplaced, |node| self.queues.at(node)).bytes()
    }

    /// Bytes that may wait for one node, or without one.
    fn share(&self) -> usize {
        (self.max_bytes / self.placement.live()).max(1)
    }

    /// The bytes that one session may have waiting for `node` now.
    pub(crate) fn allowance(&self, node: Option<Node>) -> usize {
        self.share().saturating_sub(self.bytes(node)) / SHARE_OF_FREE
    }

    /// Whether clients whose messages go to `node` should not be read for now.
    pub(crate) fn is_full(&self, node: Option<Node>) -> bool {
        self.bytes(node) >= self.share()
    }

    /// Whether those clients can be read again: half of the room is free.
    pub(crate) fn has_room(&self, node: Option<Node>) -> bool {
        self.bytes(node) <= self.share() / 2
    }

    /// Whether no message waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Notes that the broker has answered for a message.
    pub(crate) fn answered(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.forget_abandoned();
    }

    /// Whether the broker has messages that it has not answered for.
    pub(crate) fn has_in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// The waiting messages, those of one client in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ClientMessage> {
        self.queues().flat_map(Turns::iter)
    }

    /// Adds `time`, in which no message could be taken, to the deadline of each message.
    pub(crate) fn extend_deadlines(&mut self, time: Millis) {
        self.queues_mut().flat_map(Turns::iter_mut).for_each(|message| message.since += time);
    }

    /// The number of messages that wait or that the broker has not answered for.
    pub(crate) fn unsettled(&self) -> usize {
        self.waiting() + self.in_flight
    }

    /// The number of waiting messages.
    pub(crate) fn waiting(&self) -> usize {
        self.queues().map(Turns::len).sum()
    }

    /// The number of messages dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    pub(crate) fn push(&mut self, message: ClientMessage) {
        self.queue_of(&message).push(message);
    }

    /// Puts back, before all others, messages that the broker took and certainly did not publish.
    pub(crate) fn take_back(&mut self, messages: Vec<ClientMessage>) {
        self.in_flight = self.in_flight.saturating_sub(messages.len());
        for message in messages.into_iter().rev() {
            if matches!(&message.origin, Origin::Session(key) if self.abandoned.contains(key)) {
                self.dropped += 1;
            } else {
                self.queue_of(&message).push_first(message);
            }
        }
        self.forget_abandoned();
    }

    fn queue_of(&mut self, message: &ClientMessage) -> &mut Turns {
        // The placement is shared, and may know a node before follow_placement.
        self.queues.grow(self.placement.count(), |_| Turns::default());
        match self.placement.node_of(&message.channel) {
            Some(node) => self.queues.at_mut(node),
            None => &mut self.unplaced,
        }
    }

    /// Moves messages to the nodes that their channels have now.
    pub(crate) fn follow_placement(&mut self) {
        self.queues.grow(self.placement.count(), |_| Turns::default());
        let mut messages = Vec::new();
        for queue in self.queues_mut() {
            messages.extend(std::iter::from_fn(|| queue.pop()));
        }
        // All messages of a channel were in one queue, and the stable sort keeps their order.
        messages.sort_by_key(|message| message.since);
        messages.into_iter().for_each(|message| self.push(message));
    }

    /// Drops the messages of `session` that wait or come back from the broker.
    pub(crate) fn abandon(&mut self, session: SessionKey) {
        self.dropped += self.queues_mut().map(|queue| queue.remove(session)).sum::<usize>() as u64;
        if self.in_flight > 0 {
            self.abandoned.insert(session);
        }
    }

    /// Forgets abandoned sessions while no message is in flight: none can come back then.
    fn forget_abandoned(&mut self) {
        if self.in_flight == 0 && !self.abandoned.is_empty() {
            self.abandoned = HashSet::new();
        }
    }

    /// Takes the next messages for `node`, of about `max_bytes` in all.
    pub(crate) fn take(&mut self, node: Node, max_bytes: usize) -> Vec<ClientMessage> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes
            && let Some(message) = self.queues.at_mut(node).pop()
        {
            bytes += message.cost();
            taken.push(message);
        }
        self.in_flight += taken.len();
        taken
    }

    /// Drops the messages that have waited since before `since`. Returns the session of each message; the session may
    /// be gone. Its other messages may have moved all the time, but too slowly.
    pub(crate) fn expire(&mut self, since: Millis) -> Vec<SessionKey> {
        let expired: Vec<_> = self.queues_mut().flat_map(|queue| queue.expire(since)).collect();
        let mut lost = Vec::new();
        for message in expired {
            match message.origin {
                Origin::Session(key) => lost.push(key),
                Origin::Publisher(tell) => drop(tell.send(Err(NotPublished::TimedOut))),
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Owners, SLOTS};
    use bytes::Bytes;

    const NODE: Node = Node(0);

    fn message(session: u32, payload: &'static [u8]) -> ClientMessage {
        at(0, session, payload)
    }

    fn at(since: Millis, session: u32, payload: &'static [u8]) -> ClientMessage {
        let origin = Origin::Session(SessionKey { index: session, generation: 0 });
        ClientMessage { channel: Channel::from_static(b""), payload: Bytes::from_static(payload), origin, since }
    }

    fn payloads(messages: &[ClientMessage]) -> Vec<&[u8]> {
        messages.iter().map(|message| &message.payload[..]).collect()
    }

    #[test]
    fn messages_leave_in_order_and_the_limit_counts_what_they_cost() {
        let one = message(1, b"a").cost();
        let mut queue = Outbox::new(2 * one, Placement::over(1));
        queue.push(message(1, b"a"));
        assert!(!queue.is_full(Some(NODE)));
        queue.push(message(2, b"b"));
        assert!(queue.is_full(Some(NODE)));
        assert_eq!(payloads(&queue.take(NODE, 1)), [b"a"]);
        assert_eq!(payloads(&queue.take(NODE, usize::MAX)), [b"b"]);
        assert_eq!(queue.bytes(Some(NODE)), 0);
    }

    #[test]
    fn messages_of_a_client_that_was_told_otherwise_are_never_published() {
        let mut queue = Outbox::new(1_000, Placement::over(1));
        queue.push(message(1, b"a"));
        queue.push(message(2, b"b"));
        queue.push(message(1, b"c"));
        queue.abandon(SessionKey { index: 1, generation: 0 });
        assert_eq!(payloads(&queue.take(NODE, usize::MAX)), [b"b"]);
        assert_eq!((queue.take_dropped(), queue.unsettled()), (2, 1));
        queue.answered();
        assert_eq!(queue.unsettled(), 0);
        // The key may be used again once no message of the old session waits.
        queue.push(message(1, b"d"));
        assert_eq!(payloads(&queue.take(NODE, usize::MAX)), [b"d"]);
    }

    #[test]
    fn a_message_that_waited_too_long_is_dropped_and_its_session_named() {
        let mut queue = Outbox::new(1_000, Placement::over(1));
        queue.push(message(1, b"a"));
        queue.push(at(10, 1, b"b"));
        assert_eq!(queue.expire(10), [SessionKey { index: 1, generation: 0 }]);
        assert_eq!(payloads(&queue.take(NODE, usize::MAX)), [b"b"]);
    }

    #[test]
    fn a_message_that_the_broker_gives_back_is_first_again_and_moves_with_its_channel() {
        let placement = Placement::in_cluster(Vec::new());
        let mut queue = Outbox::new(1_000, placement.clone());
        let place_at = |node, nodes| {
            let homes = vec![node; SLOTS.into()];
            placement.set_owners(Owners { slots: Vec::new(), homes, nodes, live: 1 });
        };
        place_at(Some(Node(0)), 1);
        for payload in [b"a", b"b", b"c"] {
            queue.push(message(1, payload));
        }
        let taken = queue.take(Node(0), 2 * message(1, b"a").cost());
        assert_eq!((payloads(&taken), queue.unsettled()), (vec![&b"a"[..], b"b"], 3));
        queue.take_back(taken);
        assert_eq!((queue.waiting(), queue.unsettled()), (3, 3));
        place_at(Some(Node(1)), 2);
        queue.push(message(2, b"d"));
        queue.abandon(SessionKey { index: 2, generation: 0 });
        queue.follow_placement();
        assert_eq!(queue.bytes(Some(Node(0))), 0);
        assert_eq!(payloads(&queue.take(Node(1), usize::MAX)), [b"a", b"b", b"c"]);
    }

    #[test]
    fn a_message_on_a_channel_without_a_node_waits_within_the_bounds_and_leaves_when_the_channel_has_one() {
        let one = message(1, b"a").cost();
        let placement = Placement::in_cluster(Vec::new());
        let mut queue = Outbox::new(2 * one, placement.clone());
        assert!(queue.node_of(&Channel::from_static(b"")).is_none() && queue.has_room(None));
        queue.push(at(1, 1, b"a"));
        queue.push(at(2, 2, b"b"));
        assert!(queue.is_full(None) && !queue.is_empty() && queue.allowance(None) == 0);
        assert_eq!((queue.iter().count(), queue.unsettled()), (2, 2));
        assert_eq!(queue.expire(2), [SessionKey { index: 1, generation: 0 }]);
        let homes = vec![Some(Node(0)); SLOTS.into()];
        placement.set_owners(Owners { slots: Vec::new(), homes, nodes: 1, live: 1 });
        // A message behind the change of the placement does not overtake the one before it.
        queue.follow_placement();
        queue.push(at(3, 2, b"c"));
        assert_eq!((queue.bytes(None), payloads(&queue.take(Node(0), usize::MAX))), (0, vec![&b"b"[..], b"c"]));
        let homes = vec![None; SLOTS.into()];
        placement.set_owners(Owners { slots: Vec::new(), homes, nodes: 1, live: 1 });
        queue.take_back(vec![at(2, 2, b"b")]);
        assert_eq!((queue.bytes(Some(Node(0))), queue.bytes(None)), (0, one));
    }

    #[test]
    fn a_long_name_is_counted_with_each_message() {
        let mut queue = Outbox::new(10_000, Placement::over(1));
        queue.push(ClientMessage { channel: Channel::from(vec![b'n'; 9_900]), ..message(1, b"") });
        assert!(queue.is_full(Some(NODE)));
        assert_eq!(queue.take(NODE, 1).len(), 1);
        assert!(!queue.is_full(Some(NODE)));
    }

    #[test]
    fn floods_leave_room_for_others() {
        const MAX: usize = 1 << 20;
        let mut queue = Outbox::new(MAX, Placement::over(1));
        let mut waiting = [0; 300];
        for session in (0..300).cycle().take(100_000) {
            let waiting: &mut usize = &mut waiting[session];
            if *waiting < queue.allowance(Some(NODE)) {
                let message = message(u32::try_from(session).unwrap(), b"");
                *waiting += message.cost();
                queue.push(message);
            }
        }
        assert!(!queue.is_full(Some(NODE)));
        assert!(queue.allowance(Some(NODE)) > 0, "{} of {MAX} bytes are taken", queue.bytes(Some(NODE)));
    }
}
