//! From an accepted connection to a session: connections dealt out to workers, the request's head, the handshake,
//! refusals, the test page.
//!
//! May not enter: frames, publications, Redis.

pub(crate) mod acceptor;
pub(crate) mod head;
pub(crate) mod page;
pub(crate) mod sender;
pub(crate) mod upgrade;
