//! The operator's side: the control socket and the status that `systemctl` shows.
//!
//! May not enter: sessions, Redis.

pub(crate) mod control;
pub(crate) mod status;
