//! System calls that std has no safe wrapper for: the only room that names nix
//! or rustix, or needs `unsafe`. It does as it is told; decisions are taken elsewhere.

pub(crate) mod descriptors;
pub(crate) mod limit;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod socket_file;
pub(crate) mod systemd;
