//! RFC 6455 on the server's side: the handshake's checks, judging what a client
//! sends, and building what we send.
//!
//! The only room that names tungstenite. May not enter: sockets, channels, Redis.

pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod reader;
