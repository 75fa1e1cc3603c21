//! A stream that was cut, and is to be continued from the node's log: from the last milestone that was heard to the
//! first one behind the new link's confirmations, at which the new link stands still meanwhile. May not enter: how the
//! log is read (`replay`), which publications of it are new (`protocol/hub`).

use std::time::Duration;

use tokio::time::Instant;

use super::error::LinkError;
use crate::position::Milestone;

/// How long a new link waits for the milestone at which it stands still. Chosen: five of those that come by themselves.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// The link is lost. This milestone was the last that it heard.
    Cut { from: Milestone },
    /// A new link has all its subscriptions: it stands still at the next milestone.
    Subscribed { from: Milestone, at: Instant },
    /// It stands still at `until`, and the log is read.
    Reading { from: Milestone, until: Milestone },
}

impl CatchUp {
    pub(crate) fn from(self) -> Milestone {
        match self {
            Self::Cut { from } | Self::Subscribed { from, .. } | Self::Reading { from, .. } => from,
        }
    }

    /// Whether no milestone has come, although it should have.
    pub(crate) fn is_overdue(self, now: Instant) -> bool {
        matches!(self, Self::Subscribed { at, .. } if now.saturating_duration_since(at) > PATIENCE)
    }
}

/// Whether everything was heard that was published until the link ended with `error`: a stream has no holes unless
/// Redis forgot subscriptions. A master that was made a replica relays the publications of its new master, milestones
/// among them, but only from some point on.
pub(crate) fn is_clean_cut(error: &LinkError) -> bool {
    use LinkError::{Fewer, Malformed, NoMaster, OutOfStep};
    !matches!(error, Fewer(_) | Malformed | OutOfStep | NoMaster(..))
}
