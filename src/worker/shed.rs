//! What a worker gives up when the process has spent its memory: the sessions that use most of it, then history. May not
//! enter: how memory is counted (`memory.rs`).

use super::core::Core;
use super::opening::Refusal;
use super::state::Worker;
use crate::clock::Millis;
use crate::close::CloseReason;
use crate::id::SessionKey;
use crate::notice;
use crate::protocol::session::Action;

/// A session that uses less is not given up. Chosen: as much as an idle session costs with its entries everywhere.
const SMALL: usize = 1 << 10;

/// How long a worker that found nothing to give up does not look again.
const PAUSE: Millis = 50;

impl Worker {
    /// Gives up memory until an eighth of the budget is free: closes sessions, those that use most first. Where no
    /// session uses much, drops the older half of the publications that are kept.
    #[cold]
    pub(super) fn shed(&mut self) {
        let now = self.now();
        if now < self.shed_again {
            return;
        }
        let mut sessions: Vec<_> = self.core.slots.iter().map(|(key, slot)| (slot.session.memory(), key)).collect();
        sessions.retain(|(memory, _)| *memory >= SMALL);
        sessions.sort_unstable_by_key(|(memory, _)| *memory);
        self.shard.set_largest(sessions.last().map_or(0, |(memory, _)| *memory));
        // A worker whose sessions all use less than half of the largest session anywhere leaves that one to its worker.
        let least = self.metrics.largest() / 2;
        let before = sessions.len();
        while let Some((memory, key)) = sessions.pop_if(|(memory, _)| *memory >= least && !self.budget.has_room()) {
            tracing::debug!(memory, session = ?key, "a session is given up, because the process has spent its memory");
            self.core.give_up(key, now);
            notice::MEMORY.add(self.budget.max());
        }
        self.shard.set_largest(sessions.last().map_or(0, |(memory, _)| *memory));
        let has_shed = sessions.len() < before || least == 0 && self.core.hub.halve_history();
        if !has_shed {
            self.shed_again = now + PAUSE;
        }
    }
}

impl Core {
    /// Closes a session that uses too much memory, and frees what waits for its client.
    fn give_up(&mut self, key: SessionKey, now: Millis) {
        self.guarded(key, now, |core| {
            if core.slots.get_mut(key).is_some_and(|slot| !slot.has_socket()) {
                return core.refuse(key, Refusal::NoMemory, now);
            }
            core.close(key, CloseReason::Memory, now);
            // The rest of a large frame that was begun.
            if core.slots.get_mut(key).is_some_and(|slot| slot.session.memory() >= SMALL) {
                core.apply(key, Action::End(CloseReason::Memory), now);
            }
        });
    }
}
