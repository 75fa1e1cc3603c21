//! How a worker's rooms name a session and a subscriber without knowing them.

/// Which session of a worker. A key is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A subscriber's entry in the hub; its session keeps it as its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriberId(pub(crate) usize);
