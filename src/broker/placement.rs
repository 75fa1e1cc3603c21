//! Which server a channel lives on, when channels are spread over several independent ones.
//!
//! Producers have to compute the same, so it is simple and documented: the channel's name hashed by
//! 64-bit FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>), the hash placed by jump consistent
//! hashing (Lamping, Veach: A Fast, Minimal Memory, Consistent Hash Algorithm, 2014). A server that is
//! added at the list's end takes its share from all others, and nothing else moves.

/// One of a broker's servers, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node(pub(crate) usize);

/// How channels are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    nodes: usize,
}

impl Placement {
    /// Over so many servers.
    pub(crate) fn over(nodes: usize) -> Self {
        Self { nodes: nodes.max(1) }
    }

    /// All servers.
    pub(crate) fn nodes(self) -> impl Iterator<Item = Node> {
        (0..self.nodes).map(Node)
    }

    /// Where `channel` lives.
    pub(crate) fn node_of(self, channel: &[u8]) -> Node {
        if self.nodes == 1 { Node(0) } else { Node(jump(fnv_1a(channel), self.nodes)) }
    }
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
