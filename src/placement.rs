//! Which node a channel lives on.
//!
//! Over several independent servers, producers have to compute the same, so it is simple and documented:
//! the channel's name hashed by 64-bit FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>), the hash
//! placed by jump consistent hashing (Lamping, Veach: A Fast, Minimal Memory, Consistent Hash
//! Algorithm, 2014). A server that is added at the list's end takes its share from all others, and
//! nothing else moves. In a Redis Cluster the channel's slot has an owner, and it may change
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use std::cell::RefCell;
use std::rc::Rc;

use crate::channel::Channel;

/// One of the Redis servers that a worker has links to, by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) usize);

/// Where channels of a cluster live whose slot nobody owns, as far as we know.
pub(crate) const NOWHERE: Node = Node(0);

/// Slots of a Redis Cluster.
pub(crate) const SLOTS: u16 = 16_384;

/// How a worker's channels are spread; its clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Placement(Rc<Spread>);

#[derive(Debug)]
enum Spread {
    /// Over so many independent servers.
    Servers(usize),
    Cluster {
        owners: RefCell<Owners>,
        /// What names start with that are published and subscribed within their slot only.
        sharded: Vec<String>,
    },
}

/// Who owns what in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owners {
    /// Of each slot.
    pub(crate) slots: Vec<Node>,
    /// Of each slot, where its channels are that are not sharded.
    pub(crate) homes: Vec<Node>,
    /// Places in the list of nodes, whether taken or not.
    pub(crate) nodes: usize,
    /// How many of them are there.
    pub(crate) live: usize,
}

/// A channel that lives elsewhere now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) channel: Channel,
    pub(crate) from: Node,
    pub(crate) to: Node,
    /// Whether it was subscribed, or had been before a gap that lasts.
    pub(crate) was_heard: bool,
}

impl Placement {
    /// Over so many independent servers.
    pub(crate) fn over(nodes: usize) -> Self {
        Self(Rc::new(Spread::Servers(nodes.max(1))))
    }

    /// In a cluster of which nothing is known yet; channels that start with one of `sharded` are
    /// sharded.
    pub(crate) fn in_cluster(sharded: Vec<String>) -> Self {
        let slots = vec![NOWHERE; SLOTS.into()];
        let owners = Owners { slots: slots.clone(), homes: slots, nodes: 1, live: 0 };
        Self(Rc::new(Spread::Cluster { owners: RefCell::new(owners), sharded }))
    }

    /// The cluster has other owners now. Who keeps state by node has to follow.
    pub(crate) fn set_owners(&self, new: Owners) {
        if let Spread::Cluster { owners, .. } = &*self.0 {
            owners.replace(new);
        }
    }

    /// How many places the list of nodes has.
    pub(crate) fn count(&self) -> usize {
        match &*self.0 {
            Spread::Servers(nodes) => *nodes,
            Spread::Cluster { owners, .. } => owners.borrow().nodes,
        }
    }

    /// All of them.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (0..self.count()).map(Node)
    }

    /// Over how many servers channels are spread now, one at least.
    pub(crate) fn live(&self) -> usize {
        match &*self.0 {
            Spread::Servers(nodes) => *nodes,
            Spread::Cluster { owners, .. } => owners.borrow().live.max(1),
        }
    }

    /// Where `channel` lives.
    pub(crate) fn node_of(&self, channel: &[u8]) -> Node {
        match &*self.0 {
            Spread::Servers(1) => Node(0),
            Spread::Servers(nodes) => Node(jump(fnv_1a(channel), *nodes)),
            Spread::Cluster { owners, .. } => {
                let owners = owners.borrow();
                let nodes = if self.is_sharded(channel) { &owners.slots } else { &owners.homes };
                nodes.get(usize::from(slot_of(channel))).copied().unwrap_or(NOWHERE)
            }
        }
    }

    /// Whether `channel` is published and subscribed within its slot only.
    pub(crate) fn is_sharded(&self, channel: &[u8]) -> bool {
        match &*self.0 {
            Spread::Servers(_) => false,
            Spread::Cluster { sharded, .. } => sharded.iter().any(|prefix| channel.starts_with(prefix.as_bytes())),
        }
    }

    /// Whether any channel is.
    pub(crate) fn has_sharded(&self) -> bool {
        matches!(&*self.0, Spread::Cluster { sharded, .. } if !sharded.is_empty())
    }
}

/// The slot of a channel or key: of what stands between the first `{` and the next `}`, if anything
/// does.
fn slot_of(name: &[u8]) -> u16 {
    let tag = name.iter().position(|byte| *byte == b'{').and_then(|open| {
        let behind = name.get(open + 1..)?;
        let len = behind.iter().position(|byte| *byte == b'}').filter(|len| *len > 0)?;
        behind.get(..len)
    });
    crc16(tag.unwrap_or(name)) % SLOTS
}

/// CRC-16/XMODEM, as the cluster's specification has it.
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
        for (channel, places) in [
            ("chat:zhang", [0, 1, 1, 1, 6]),
            ("chat:li", [0, 1, 1, 1, 1]),
            ("chat:", [0, 0, 0, 0, 6]),
            ("news:sport", [0, 1, 1, 4, 9]),
            ("chat:中文", [0, 0, 0, 3, 3]),
        ] {
            let found = [1, 2, 3, 5, 10].map(|nodes| Placement::over(nodes).node_of(channel.as_bytes()).0);
            assert_eq!(found, places, "{channel}");
        }
    }

    /// From the cluster's specification, and what `CLUSTER KEYSLOT` says of a Redis 7.
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
    fn what_is_sharded_is_at_its_owner_and_all_else_at_its_home() {
        let placement = Placement::in_cluster(vec!["live:".to_owned()]);
        let both = || [&b"chat:a"[..], b"live:a"].map(|name| placement.node_of(name));
        assert_eq!(both(), [NOWHERE, NOWHERE]);
        let all = |node| vec![node; SLOTS.into()];
        placement.set_owners(Owners { slots: all(Node(1)), homes: all(Node(2)), nodes: 3, live: 2 });
        assert_eq!((both(), placement.live(), placement.count()), ([Node(2), Node(1)], 2, 3));
    }

    #[test]
    fn a_server_at_the_end_takes_its_share_and_nothing_else_moves() {
        let names: Vec<_> = (0..9_000).map(|n| format!("chat:c{n}")).collect();
        let place = |nodes| {
            let placement = Placement::over(nodes);
            names.iter().map(|name| placement.node_of(name.as_bytes())).collect::<Vec<_>>()
        };
        let (three, four) = (place(3), place(4));
        let moved: Vec<_> = three.iter().zip(&four).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == Node(3)));
        assert!((2_000..2_500).contains(&moved.len()), "{}", moved.len());
    }
}
