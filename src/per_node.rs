//! A table with one value for each of a broker's nodes.
//!
//! A node that a table has no value for is a fault of the program, so access asserts instead of inventing a default.
//! May not enter: what a value is, a default for a node without one.

use crate::placement::Node;

/// One `T` for each [`Node`], by its index.
#[derive(Debug, Clone)]
pub(crate) struct PerNode<T>(Vec<T>);

impl<T> PerNode<T> {
    /// A table for the nodes 0 to `count` - 1.
    pub(crate) fn new(count: usize, mut value: impl FnMut(Node) -> T) -> Self {
        Self((0..count).map(|node| value(Node::at(node))).collect())
    }

    /// Makes room for `count` nodes. Values of nodes that are there stay; a table never shrinks, because the index of
    /// a node that left is used again.
    pub(crate) fn grow(&mut self, count: usize, mut value: impl FnMut(Node) -> T) {
        for node in self.0.len()..count {
            self.0.push(value(Node::at(node)));
        }
    }

    /// The value of `node`.
    ///
    /// # Panics
    /// When the table was not made or grown for `node`.
    #[track_caller]
    pub(crate) fn at(&self, node: Node) -> &T {
        self.0.get(node.index()).expect("the table has a value for each node of the placement")
    }

    /// The value of `node`, to change.
    ///
    /// # Panics
    /// As [`PerNode::at`].
    #[track_caller]
    pub(crate) fn at_mut(&mut self, node: Node) -> &mut T {
        self.0.get_mut(node.index()).expect("the table has a value for each node of the placement")
    }

    /// All values, in the order of their nodes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// All values with their nodes, to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Node, &mut T)> {
        self.0.iter_mut().enumerate().map(|(node, value)| (Node::at(node), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_grows_and_keeps_what_it_has() {
        let mut table = PerNode::new(1, Node::index);
        *table.at_mut(Node(0)) = 7;
        table.grow(3, Node::index);
        table.grow(2, |_| unreachable!());
        assert_eq!(table.iter().copied().collect::<Vec<_>>(), [7, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "a value for each node")]
    fn a_node_without_a_value_is_a_fault() {
        PerNode::new(1, |_| ()).at(Node(1));
    }
}
