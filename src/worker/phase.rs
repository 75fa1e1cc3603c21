//! What a worker is doing, with the data of that phase, and which phase may follow which.
//!
//! ```text
//! Serving ──quiesce──▶ Quiesced ──freeze──▶ Frozen        a new process' worker begins here
//!    ▲                    │                   │
//!    ├──────resume────────┴───────resume──────┘
//!    └──drain──▶ Draining
//! ```
//! Each phase may leave. May not enter: how sessions are quiesced, resumed or closed.

use tokio::time::Instant;

use super::jitter::Spread;
use crate::clock::Millis;

/// What a worker is doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// Sessions are read and written, messages are published, timers run.
    Serving,
    /// As serving, until all sessions are closed, at the latest at the deadline.
    Draining { open: Spread, deadline: Instant },
    /// For a hand-over: no session is read, nothing is published, no timer runs. Publications are still sent.
    Quiesced { since: Millis },
    /// As quiesced, and nothing is sent: the sessions are a snapshot, or not adopted yet.
    Frozen { since: Millis },
    /// The worker ends; another process may have the sessions.
    Leaving,
}

impl Phase {
    /// Whether sessions and their timers stand still.
    pub(super) fn is_still(&self) -> bool {
        matches!(self, Self::Quiesced { .. } | Self::Frozen { .. } | Self::Leaving)
    }

    /// Whether nothing may be sent to clients.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self, Self::Frozen { .. } | Self::Leaving)
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving)
    }

    pub(super) fn quiesce(&mut self, now: Millis) {
        debug_assert!(matches!(self, Self::Serving), "quiesced while {self:?}");
        if !self.is_still() {
            *self = Self::Quiesced { since: now };
        }
    }

    pub(super) fn freeze(&mut self) {
        debug_assert!(matches!(self, Self::Quiesced { .. }), "frozen while {self:?}");
        if let Self::Quiesced { since } = *self {
            *self = Self::Frozen { since };
        }
    }

    /// Sessions are adopted: their time stands still from here on.
    pub(super) fn adopt(&mut self, now: Millis) {
        debug_assert!(matches!(self, Self::Frozen { .. }), "sessions come while {self:?}");
        *self = Self::Frozen { since: now };
    }

    /// Returns since when the sessions stood still; `None` if they did not, because a hand-over failed early.
    pub(super) fn resume(&mut self) -> Option<Millis> {
        debug_assert!(!self.is_leaving(), "resumed while {self:?}");
        let (Self::Quiesced { since } | Self::Frozen { since }) = *self else { return None };
        *self = Self::Serving;
        Some(since)
    }

    pub(super) fn drain(&mut self, open: Spread, deadline: Instant) {
        debug_assert!(matches!(self, Self::Serving), "drained while {self:?}");
        *self = Self::Draining { open, deadline };
    }

    pub(super) fn leave(&mut self) {
        *self = Self::Leaving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_that_fails_resumes_what_stood_still() {
        let mut phase = Phase::Serving;
        assert_eq!(phase.resume(), None);
        phase.quiesce(7);
        assert!(phase.is_still() && !phase.is_frozen());
        assert_eq!(phase.resume(), Some(7));
        phase.quiesce(8);
        phase.freeze();
        assert!(phase.is_still() && phase.is_frozen());
        assert_eq!(phase.resume(), Some(8));
        assert!(matches!(phase, Phase::Serving));
    }

    #[test]
    fn adopted_sessions_stand_still_from_their_arrival() {
        let mut phase = Phase::Frozen { since: 0 };
        phase.adopt(5);
        assert_eq!(phase.resume(), Some(5));
    }

    #[test]
    #[should_panic(expected = "quiesced while Leaving")]
    #[cfg(debug_assertions)]
    fn what_leaves_is_not_quiesced() {
        let mut phase = Phase::Serving;
        phase.leave();
        assert!(phase.is_still() && phase.is_frozen());
        phase.quiesce(1);
    }
}
