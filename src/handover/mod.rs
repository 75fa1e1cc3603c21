//! One process takes over from another while every WebSocket stays connected.
//!
//! The old process starts the new one (`give.rs`) and hands it its listeners and the names of its channels.
//! The new one (`take.rs`) connects and subscribes everything while the old one serves. Then the old one
//! rests; a mark in Redis' streams says up to where it delivers, and from where the other does; the
//! sessions follow, each as words and its socket. Until the new process has said that it serves, the old
//! one can go on as if nothing had been asked, and does when anything fails.
//!
//! Where there is a time without a process, as in `systemctl restart`, systemd keeps what was left
//! (`store.rs`); what is published meanwhile is missing, in a gap that is reported.
//!
//! `protocol.rs` has the messages, `deadlines.rs` how long each step may take, `fault.rs` what tests let go wrong. May not enter: what a session is (`session/snapshot.rs`), how a worker
//! rests (`worker/handover.rs`).

mod attempt;
mod deadlines;
mod error;
mod fault;
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
