//! What a session has whose client polls, and up to where the client is answered.
//!
//! May not enter: transitions (`poll.rs`).

use crate::position::Position;
use crate::protocol::encoding::poll::AnswerHead;

/// What a session has whose client polls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Poll {
    /// Nothing was published behind this position since the client showed it; `None` in the handshake.
    pub(super) since: Option<Position>,
    pub(super) begin: Begin,
    /// The origin of the page that may read the answer.
    pub(super) page: Option<Box<str>>,
}

/// What a client gets for whose position there is nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// An answer when something is published.
    Wait,
    /// Its position, at once: it has shown none.
    Position,
    /// Its position, and that publications may be missing, at once: what it showed is no position.
    Gap,
}

/// Up to where a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Polled {
    /// Where the client continues.
    pub(crate) next: Position,
    /// Whether there is nothing behind that position yet.
    pub(crate) is_up_to_date: bool,
    /// Whether publications before that position may be missing.
    pub(crate) has_gap: bool,
}

impl Poll {
    pub(crate) fn new(begin: Begin, page: Option<Box<str>>) -> Self {
        Self { since: None, begin, page }
    }

    /// A poll that waits, from another process.
    pub(super) fn waiting(since: Position, page: Option<Box<str>>) -> Self {
        Self { since: Some(since), begin: Begin::Wait, page }
    }

    /// The answer to a client that is to repeat its request at once. It does not say that the client is up to date.
    pub(super) fn repeat(&self) -> Vec<u8> {
        let head = AnswerHead { next: self.since, is_up_to_date: false, has_gap: false, page: self.page.as_deref() };
        head.no_content()
    }
}
