//! Reads back what was published on a node while no link listened, from the node's replication log. Producers do
//! nothing for it: a node logs every PUBLISH, outside of cluster mode.
//!
//! `between` reads what lies between two milestones. `info` decides from INFO whether the log reaches back far enough,
//! before anything is asked for; `link` asks, and takes no full resynchronisation; `log` decodes what comes; `reader`
//! reads within limits of bytes and time, under Sentinel from a replica. `keep` makes and keeps a log, `keeper` decides
//! when; `outlook` tells how far back it reaches. When the log is read for a gap or for a client: `log_reading`. May
//! not enter: positions of clients, the hub.

mod between;
mod error;
mod info;
mod keep;
mod keeper;
mod link;
mod log;
mod outlook;
mod reader;
#[cfg(test)]
#[path = "../../../../tests/simulation/log_reader.rs"]
pub(crate) mod simulated;

pub(crate) use self::between::read_between;
pub(crate) use self::error::ReplayError;
#[cfg(feature = "internals")]
pub(crate) use self::info::LogState;
#[cfg(feature = "internals")]
pub(crate) use self::keep::{Upkeep, visit};
pub(crate) use self::keeper::keep;
#[cfg(feature = "internals")]
pub(crate) use self::link::look;
#[cfg(feature = "internals")]
pub(crate) use self::log::Publication;
#[cfg(feature = "internals")]
pub(crate) use self::log::publications;
pub(crate) use self::outlook::{outlook, sentence};
pub(crate) use self::reader::ReadLimits;
#[cfg(feature = "internals")]
pub(crate) use self::reader::Reading;
