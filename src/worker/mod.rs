//! One thread with everything it needs: runtime, sessions, hub, its own links to the broker,
//! reactor, timer wheel, counters. Nothing on the message path is shared between workers.
//!
//! `thread.rs` starts a worker (`state.rs`), `turn.rs` gives its sources of work their turns, `spread.rs` closes many
//! sessions over a time, `admission.rs` makes room for a handshake, `handover.rs` obeys a hand-over, `sink.rs` hears
//! the broker; all of them move the sessions in `core.rs`, whose actions `apply.rs` carries out. May not enter: HTTP, what bytes mean.

mod admission;
mod apply;
mod core;
pub(crate) mod handover;
mod outgoing;
pub(crate) mod reactor;
mod seed;
mod sink;
mod slots;
mod snapshot;
mod spread;
mod state;
#[cfg(test)]
mod tests;
mod thread;
mod turn;
mod wheel;

pub(crate) use self::admission::{Admission, Refusal};
pub(crate) use self::seed::{BrokerSeed, Order, PublishRequest, WorkerSeed};
pub(crate) use self::snapshot::{Adopted, Collected, MessageSnapshot};
pub(crate) use self::state::Worker;
pub(crate) use self::thread::run;
