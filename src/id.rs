//! Keys by which the rooms of a worker name a session or a subscriber without its type. May not enter: what a key leads
//! to.

/// The key of a session in its worker. A key is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub(crate) struct SessionKey {
    pub(crate) index: u32,
    pub(crate) generation: Generation,
}

/// Numbers a worker's sessions in the order in which they were made; wraps.
pub(crate) type Generation = u32;

impl SessionKey {
    /// Whether the session was made at `newest` or before.
    pub(crate) fn is_up_to(self, newest: Generation) -> bool {
        newest.wrapping_sub(self.generation) <= Generation::MAX / 2
    }
}

/// A subscriber's entry in the hub; its session keeps it as its subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriberId(pub(crate) u32);
