//! From an accepted connection to a session: the choice of a worker, the request's head, the handshake, refusals, the
//! test page.
//!
//! May not enter: how frames and publications are encoded, links to Redis.

pub(crate) mod acceptor;
pub(crate) mod access;
mod answer;
pub(crate) mod arrival;
mod claims;
pub(crate) mod client_address;
mod cors;
mod denied;
mod event_stream;
pub(crate) mod handoff;
pub(crate) mod head;
mod key_file;
mod long_poll;
pub(crate) mod page;
mod refusal;
mod secrets;
mod signature;
mod token;
mod token_crypto;
mod token_keys;
mod trust;
pub(crate) mod upgrade;
mod waiting_room;
