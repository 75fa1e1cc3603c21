//! How a worker's rooms name a session and a subscriber without knowing them.

/// Which session of a worker. A key is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    pub(crate) index: u32,
    pub(crate) generation: Generation,
}

/// Sessions of a worker in the order in which they came; wraps.
pub(crate) type Generation = u32;

impl SessionKey {
    /// Whether it came not after `newest`.
    pub(crate) fn is_up_to(self, newest: Generation) -> bool {
        newest.wrapping_sub(self.generation) <= Generation::MAX / 2
    }
}

/// A subscriber's entry in the hub; its session keeps it as its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriberId(pub(crate) u32);
