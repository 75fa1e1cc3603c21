//! The node of each channel.
//!
//! With several independent nodes, producers must compute the same node, so the rule is simple and documented. The
//! channel's name is hashed by 64-bit FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>). Jump consistent hashing
//! (Lamping, Veach: A Fast, Minimal Memory, Consistent Hash Algorithm, 2014) turns the hash into a node. A node added
//! at the list's end takes its share from all others, and no other channel moves. In a Redis Cluster, the channel's
//! slot has an owner, which may change (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).
//! May not enter: links, how a topology is learned.

use std::cell::RefCell;
use std::rc::Rc;

use crate::channel::Channel;

/// A Redis server that a worker has links to, by its index. Small, because `Option<Node>` stands in every channel and,
/// twice, for every slot of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) u16);

/// Slots of a Redis Cluster.
pub(crate) const SLOTS: u16 = 16_384;

/// How a worker's channels are spread over nodes; clones share one state.
#[derive(Debug, Clone)]
pub(crate) struct Placement(Rc<Spread>);

#[derive(Debug)]
enum Spread {
    /// Over so many independent nodes.
    Independent(usize),
    Cluster {
        owners: RefCell<Owners>,
        /// Prefixes of channels that are published and subscribed within their slot only.
        sharded: Vec<String>,
    },
}

/// The nodes of a cluster's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owners {
    /// The owner of each slot, if known.
    pub(crate) slots: Vec<Option<Node>>,
    /// The home of each slot, if known: the node of its channels that are not sharded.
    pub(crate) homes: Vec<Option<Node>>,
    /// The number of indices in the list of nodes, in use or not.
    pub(crate) nodes: usize,
    /// The number of nodes in use.
    pub(crate) live: usize,
}

/// A channel whose node has changed; `None` is no node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) channel: Channel,
    pub(crate) from: Option<Node>,
    pub(crate) to: Option<Node>,
    /// Whether the channel was subscribed, or had been before a gap that has not ended.
    pub(crate) was_heard: bool,
}

impl Node {
    /// The node at `index` of a list.
    ///
    /// # Panics
    /// When the list has more than 65,536 nodes.
    pub(crate) fn at(index: usize) -> Self {
        Self(u16::try_from(index).expect("a cluster has 16,384 slots, and a list of URLs is shorter still"))
    }

    pub(crate) fn index(self) -> usize {
        self.0.into()
    }
}

impl Placement {
    /// Over so many independent nodes.
    pub(crate) fn over(nodes: usize) -> Self {
        Self(Rc::new(Spread::Independent(nodes.max(1))))
    }

    /// In a cluster whose nodes are not known yet. Channels that start with one of `sharded` are sharded.
    pub(crate) fn in_cluster(sharded: Vec<String>) -> Self {
        let slots = vec![None; SLOTS.into()];
        let owners = Owners { slots: slots.clone(), homes: slots, nodes: 0, live: 0 };
        Self(Rc::new(Spread::Cluster { owners: RefCell::new(owners), sharded }))
    }

    /// Sets the cluster's owners. Hub and outbox, which keep state by node, have to follow.
    pub(crate) fn set_owners(&self, new: Owners) {
        if let Spread::Cluster { owners, .. } = &*self.0 {
            owners.replace(new);
        }
    }

    /// The number of indices in the list of nodes; zero before a cluster's nodes are known.
    pub(crate) fn count(&self) -> usize {
        match &*self.0 {
            Spread::Independent(nodes) => *nodes,
            Spread::Cluster { owners, .. } => owners.borrow().nodes,
        }
    }

    /// All indices in the list of nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (0..self.count()).map(Node::at)
    }

    /// The number of nodes over which channels are spread now, at least one.
    pub(crate) fn live(&self) -> usize {
        match &*self.0 {
            Spread::Independent(nodes) => *nodes,
            Spread::Cluster { owners, .. } => owners.borrow().live.max(1),
        }
    }

    /// The node of `channel`; `None` in a cluster while the channel's slot has no known owner.
    pub(crate) fn node_of(&self, channel: &[u8]) -> Option<Node> {
        match &*self.0 {
            Spread::Independent(1) => Some(Node(0)),
            Spread::Independent(nodes) => Some(Node::at(jump(fnv_1a(channel), *nodes))),
            Spread::Cluster { owners, .. } => {
                let owners = owners.borrow();
                let nodes = if self.is_sharded(channel) { &owners.slots } else { &owners.homes };
                nodes.get(usize::from(slot_of(channel))).copied().flatten()
            }
        }
    }

    /// Whether `channel` is published and subscribed within its slot only.
    pub(crate) fn is_sharded(&self, channel: &[u8]) -> bool {
        match &*self.0 {
            Spread::Independent(_) => false,
            Spread::Cluster { sharded, .. } => sharded.iter().any(|prefix| channel.starts_with(prefix.as_bytes())),
        }
    }

    /// Whether any channel can be sharded.
    pub(crate) fn has_sharded(&self) -> bool {
        matches!(&*self.0, Spread::Cluster { sharded, .. } if !sharded.is_empty())
    }
}

/// The slot of a channel or key: that of the hash tag, the text between the first `{` and the next `}`, if not empty.
fn slot_of(name: &[u8]) -> u16 {
    let tag = name.iter().position(|byte| *byte == b'{').and_then(|open| {
        let behind = name.get(open + 1..)?;
        let len = behind.iter().position(|byte| *byte == b'}').filter(|len| *len > 0)?;
        behind.get(..len)
    });
    crc16(tag.unwrap_or(name)) % SLOTS
}

/// CRC-16/XMODEM, as in the cluster's specification.
fn crc16(bytes: &[u8]) -> u16 {
    #[expect(clippy::indexing_slicing, reason = "there is no other way in a constant; it would not compile")]
    const TABLE: [u16; 256] = {
        let (mut table, mut index) = ([0; 256], 0_u16);
        while index < 256 {
            let (mut crc, mut bit) = (index << 8, 0);
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
                bit += 1;
            }
            table[index as usize] = crc;
            index += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        crc << 8 ^ TABLE.get(index).copied().unwrap_or_default()
    })
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the paper's own; never over `buckets`")]
fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut bucket, mut next) = (0, 0);
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as usize;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by another implementation, and in the README for producers.
    #[test]
    fn channels_are_where_the_documentation_says() {
        for (channel, nodes) in [
            ("chat:zhang", [0, 1, 1, 1, 6]),
            ("chat:li", [0, 1, 1, 1, 1]),
            ("chat:", [0, 0, 0, 0, 6]),
            ("news:sport", [0, 1, 1, 4, 9]),
            ("chat:中文", [0, 0, 0, 3, 3]),
        ] {
            let found =
                [1, 2, 3, 5, 10].map(|nodes| Placement::over(nodes).node_of(channel.as_bytes()).map(Node::index));
            assert_eq!(found, nodes.map(Some), "{channel}");
        }
    }

    /// From the cluster's specification, and from `CLUSTER KEYSLOT` of a Redis 7.
    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (name, slot) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("chat:{user1}.a", 8_106),
            ("{}foo", 9_500),
            ("chat:{}{a}", 14_354),
            ("{{bar}}", 4_015),
        ] {
            assert_eq!(slot_of(name.as_bytes()), slot, "{name}");
        }
    }

    #[test]
    fn a_sharded_channel_is_at_its_owner_and_others_at_their_home() {
        let placement = Placement::in_cluster(vec!["live:".to_owned()]);
        let both = || [&b"chat:a"[..], b"live:a"].map(|name| placement.node_of(name));
        assert_eq!((both(), placement.live(), placement.count()), ([None, None], 1, 0));
        let all = |node| vec![node; SLOTS.into()];
        placement.set_owners(Owners { slots: all(Some(Node(0))), homes: all(Some(Node(1))), nodes: 2, live: 2 });
        assert_eq!((both(), placement.live(), placement.count()), ([Some(Node(1)), Some(Node(0))], 2, 2));
        placement.set_owners(Owners { slots: all(None), homes: all(Some(Node(1))), nodes: 2, live: 2 });
        assert_eq!(both(), [Some(Node(1)), None]);
    }

    #[test]
    fn no_node_takes_no_more_room_than_a_node() {
        assert_eq!(size_of::<Option<Node>>(), 4);
    }

    #[test]
    fn a_node_at_the_end_takes_its_share_and_no_other_channel_moves() {
        let names: Vec<_> = (0..9_000).map(|n| format!("chat:c{n}")).collect();
        let spread = |nodes| {
            let placement = Placement::over(nodes);
            names.iter().map(|name| placement.node_of(name.as_bytes())).collect::<Vec<_>>()
        };
        let (three, four) = (spread(3), spread(4));
        let moved: Vec<_> = three.iter().zip(&four).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == Some(Node(3))));
        assert!((2_000..2_500).contains(&moved.len()), "{}", moved.len());
    }
}
