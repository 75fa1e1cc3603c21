//! System calls without a safe wrapper in std: the only room of the library that names nix or rustix, or needs
//! `unsafe`.
//!
//! May not enter: another room.

pub(crate) mod descriptors;
pub(crate) mod handoff;
pub(crate) mod limit;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod socket_file;
pub(crate) mod systemd;
pub(crate) mod user;
