//! One browser connection as a state machine: bytes, events and time go in, [`Action`]s come out.
//!
//! Between two calls a session (`state`) is complete, and can become a `snapshot`. A session begins with the `grant` of
//! its request and a `handshake`, `receive`s client messages, `send`s publications, keeps deadlines (`time`), and ends
//! with a `close`, or with the answer to a `poll`. Each call that may use the socket gets the socket as an argument, and
//! the time as `now`. May not enter: system calls, clocks, tasks, the broker, the hub, other sessions.

mod action;
mod close;
mod grant;
mod handshake;
#[cfg(test)]
mod one_way;
mod poll;
mod polled;
#[cfg(test)]
mod random;
mod rate;
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
pub(crate) use self::grant::{Claims, Grant};
pub(crate) use self::polled::{Begin, Poll, Polled};
pub(crate) use self::receive::Scratch;
pub(crate) use self::state::Session;
pub(crate) use self::subscription::Rights;
