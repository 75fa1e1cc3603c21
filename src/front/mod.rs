//! From an accepted connection to a session: the choice of a worker, the request's head, the handshake, refusals, the
//! test page.
//!
//! May not enter: frames, publications, Redis.

pub(crate) mod acceptor;
mod answer;
mod claims;
pub(crate) mod client_address;
mod cors;
mod event_stream;
pub(crate) mod handoff;
pub(crate) mod head;
mod long_poll;
pub(crate) mod page;
mod refusal;
pub(crate) mod trust;
pub(crate) mod upgrade;
mod waiting_room;
