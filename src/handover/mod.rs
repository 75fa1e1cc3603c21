//! One process takes over from another while every WebSocket stays connected.
//!
//! The old process (`give.rs`) starts the new one, and sends the listeners and the names of all channels. The new
//! process (`take.rs`) connects and subscribes while the old one serves, and takes its histories. Then the old one
//! quiesces. A marker divides each stream of publications between the two processes. The sessions follow, each as a
//! snapshot and its socket. Until the new process has said that it serves, the old one can resume, and does when a step
//! fails.
//!
//! For a time without a process (`systemctl restart`), systemd keeps the sessions (`store.rs`). Publications of that
//! time are missing, and a gap reports them. `protocol.rs` has the messages, `deadlines.rs` each step's limit.
//! May not enter: the content of a session (`session/snapshot.rs`), how a worker quiesces (`worker/handover.rs`).

mod attempt;
mod deadlines;
mod error;
mod fault_injection;
mod give;
mod parcel;
pub(crate) mod protocol;
mod store;
mod take;
mod workers;

pub(crate) use attempt::{Attempt, BreakOff, Program};
pub(crate) use deadlines::LONGEST;
pub(crate) use error::GiveError;
pub(crate) use give::{Done, Site};
pub(crate) use store::Legacy;
pub(crate) use take::{Heritage, Predecessor};
pub use take::{has_refused_hand_over, refuse_hand_over};
