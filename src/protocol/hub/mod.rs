//! A worker's channels: which session hears which, and one batch of frames for the sessions that get the same bytes.
//!
//! channel → audiences (one per encoding) → subscribers. A publication is framed once per audience, appended to its
//! batch, and a flush hands every batch to each subscriber. A channel stays subscribed for a short linger after its
//! last subscriber left. May not enter: sockets, the broker, tasks. It says what to subscribe and which sessions have
//! to be told of a confirmation; the worker does both.

mod confirm;
mod entry;
mod flush;
mod names;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use self::flush::{Batching, Outlet};
pub(crate) use self::state::Hub;
