//! One thread that owns a runtime, sessions, the hub, its links to the broker, a reactor, a timer wheel and counters.
//! Workers share nothing on the message path.
//!
//! `thread.rs` starts a worker. Its loop (`turn.rs`) gives each source of work a turn: sockets, commands (`command.rs`,
//! carried out in `handover.rs`), handshakes (`admission.rs`), timers, the broker (`events.rs`). `phase.rs` says what a
//! worker is doing. Commands that take longer wait in `wait.rs` and are answered in `answer.rs`. All of them work on
//! the sessions in `core.rs`, and `apply.rs` carries out the sessions' actions. May not enter: HTTP, the meaning of
//! bytes.

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
mod polls;
mod publisher;
pub(crate) mod reactor;
mod read_back;
mod recovery;
mod seed;
mod shed;
#[cfg(test)]
#[path = "../../tests/simulation/worker.rs"]
pub(crate) mod simulated;
mod slots;
mod snapshot;
mod state;
mod streams;
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
