//! One thread with everything it needs: runtime, sessions, hub, its own links to the broker,
//! reactor, timer wheel, counters. Nothing on the message path is shared between workers.
//!
//! `thread.rs` starts a worker. Its loop (`turn.rs`) owns all of it and gives its sources of work their turns: sockets,
//! commands (`command.rs`, obeyed in `handover.rs`), handshakes (`admission.rs`), timers, the broker (`events.rs`). What a
//! worker is doing is its `phase.rs`; commands that take longer are in `wait.rs` and `answer.rs`. All of them move the
//! sessions in `core.rs`, whose actions `apply.rs` carries out. May not enter: HTTP, what bytes mean.

mod admission;
mod alarm;
mod answer;
mod apply;
mod command;
mod core;
mod drain;
mod events;
mod handover;
mod handshakes;
mod jitter;
mod opening;
mod outgoing;
mod phase;
mod publisher;
pub(crate) mod reactor;
mod seed;
#[cfg(test)]
#[path = "../../tests/simulation/worker.rs"]
pub(crate) mod simulated;
mod slots;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod thread;
mod turn;
mod wait;
mod wheel;

pub(crate) use self::admission::Handle;
pub(crate) use self::command::{Answer, Command, Ended, Mailbox, Missing, State, mailbox};
pub(crate) use self::handshakes::{Handshake, Handshakes};
pub(crate) use self::opening::{Hello, Opening, Refusal};
pub use self::publisher::Publisher;
pub(crate) use self::seed::{BrokerSeed, WorkerSeed};
pub(crate) use self::snapshot::{Adopted, Collected, MessageSnapshot};
pub(crate) use self::thread::run;
