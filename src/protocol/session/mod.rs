//! One browser connection as a state machine: bytes, events and time go in, [`Action`]s come out.
//!
//! Between two calls a session (`state`) is complete and portable (`snapshot`). It begins with a `handshake`, publishes
//! what it can `receive`, can `send` what is published, acts when the `time` has come, and ends with a `close`. It is
//! handed its socket with each call that may use it, and owns none; `now` is an argument. May not enter: system calls,
//! clocks, tasks, the broker, the hub, other sessions.

mod action;
mod close;
mod handshake;
#[cfg(test)]
mod random;
mod receive;
mod send;
pub(crate) mod snapshot;
#[cfg(test)]
mod stage;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod time;

pub(crate) use self::action::{Action, Denial, Payload, Publish, Queued, Rejected};
pub(crate) use self::receive::Scratch;
pub(crate) use self::state::Session;
