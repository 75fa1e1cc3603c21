//! A worker's channels and their subscribers, with one batch of frames for all sessions that get the same bytes.
//!
//! channel → audiences (one per encoding) → subscribers. A publication is framed once per audience and appended to the
//! audience's batch; a flush gives every batch to each subscriber. A channel stays subscribed for a short linger after
//! its last subscriber has left. The hub decides what to subscribe and which sessions to tell of a confirmation; the
//! worker does both. May not enter: sockets, the broker, tasks.

mod budget;
mod chunks;
mod confirm;
mod entry;
mod flush;
mod gap;
mod history;
mod kept;
mod milestones;
mod names;
mod places;
mod poll;
mod replay;
mod rings;
mod snapshot;
#[cfg(test)]
mod stage;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use self::flush::{Batching, Outlet};
pub(crate) use self::history::Keep;
#[cfg(test)]
pub(crate) use self::rings::NOT_KEPT;
pub(crate) use self::rings::Recovery;
pub(crate) use self::snapshot::{HistoriesSnapshot, HistoryCursor};
pub(crate) use self::state::Hub;
