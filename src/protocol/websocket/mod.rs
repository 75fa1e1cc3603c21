//! RFC 6455 on the server's side: checks a handshake, decodes a client's frames, builds the server's frames.
//!
//! The only room that names tungstenite. May not enter: sockets, channels, Redis.

#[cfg(test)]
pub(crate) mod client_frame;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod reader;
