//! From a channel's name to its entry. May not enter: what an entry holds (`entry.rs`).

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use slab::Slab;

use super::entry::ChannelEntry;

/// The id of each channel by its name; the name itself is in the channel's entry.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: HashTable<usize>,
    /// Keyed: clients choose the names.
    hasher: RandomState,
}

impl Names {
    pub(super) fn find(&self, channels: &Slab<ChannelEntry>, name: &[u8]) -> Option<usize> {
        let is_named = |id: &usize| channels.get(*id).is_some_and(|entry| *entry.name == *name);
        self.ids.find(self.hasher.hash_one(name), is_named).copied()
    }

    pub(super) fn insert(&mut self, channels: &Slab<ChannelEntry>, name: &[u8], id: usize) {
        let Self { ids, hasher } = self;
        let hash_of = |id: &usize| channels.get(*id).map_or(0, |entry| hasher.hash_one(&*entry.name));
        ids.insert_unique(hasher.hash_one(name), id, hash_of);
    }

    pub(super) fn remove(&mut self, channels: &Slab<ChannelEntry>, id: usize) {
        let Some(entry) = channels.get(id) else { return };
        if let Ok(found) = self.ids.find_entry(self.hasher.hash_one(&*entry.name), |other| *other == id) {
            found.remove();
        }
    }
}
