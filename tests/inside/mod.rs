//! Promises that need more than what ships: doors into the library, behind the feature `internals`.
//!
//! `fuzz` runs the fuzz targets' bodies, which call parsers directly. `handover` makes a process fail at a chosen
//! step of a hand-over, which no shipped binary can. `replay` reads the replication log of real servers.

mod fuzz;
mod handover;
mod replay;
