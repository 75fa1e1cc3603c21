//! One thread with everything it needs: runtime, sessions, hub, its own links to the broker,
//! reactor, timer wheel, counters. Nothing on the message path is shared between workers.
//!
//! `thread.rs` starts a worker (`state.rs`), and `turn.rs` gives its sources of work their turns: commands
//! (`command.rs`, obeyed in `handover.rs`), sockets, timers, what the broker tells (`pump.rs`). What a worker is doing is its
//! `phase.rs`; commands that take longer `wait.rs` and `answer.rs`. Handshakes reach it by `admission.rs`. All of them move the sessions in
//! `core.rs`, whose actions `apply.rs` carries out. May not enter: HTTP, what bytes mean.

mod admission;
mod alarm;
mod answer;
mod apply;
mod command;
mod core;
mod drain;
mod handover;
mod handshakes;
mod outgoing;
mod phase;
mod publisher;
mod pump;
pub(crate) mod reactor;
mod seed;
#[cfg(test)]
#[path = "../../tests/simulation/worker.rs"]
pub(crate) mod simulated;
mod slots;
mod snapshot;
mod spread;
mod state;
#[cfg(test)]
mod tests;
mod thread;
mod turn;
mod wait;
mod wheel;

pub(crate) use self::admission::{Admission, Handle, Refusal};
pub(crate) use self::command::{Answer, Command, Ended, Mailbox, Missing, State, mailbox};
pub(crate) use self::handshakes::{Handshake, Handshakes};
pub use self::publisher::Publisher;
pub(crate) use self::seed::{BrokerSeed, WorkerSeed};
pub(crate) use self::snapshot::{Adopted, Collected, MessageSnapshot};
pub(crate) use self::thread::run;
