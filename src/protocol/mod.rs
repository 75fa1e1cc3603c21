//! The protocol without I/O: decodes clients' bytes, knows each channel's subscribers, encodes publications, and orders
//! client messages.
//!
//! No task and no clock: time is an argument. The heads of two answers are made here, because a session sends them: the
//! 101 (`websocket/handshake.rs`) and a poll's answer (`encoding/poll.rs`). May not enter: the broker, links,
//! listeners, HTTP requests.

pub(crate) mod cors;
pub(crate) mod encoding;
pub(crate) mod endpoint;
pub(crate) mod hub;
pub(crate) mod outbound;
pub(crate) mod outbox;
pub(crate) mod session;
pub(crate) mod socket;
pub(crate) mod websocket;
