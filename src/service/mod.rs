//! A server as a systemd service, and how it is handed over to another process.
//!
//! Works the same without systemd. May not enter: how connections are served.

mod blocking;
mod error;
mod giver;
mod inherit;
mod run;
mod watch;

pub use self::error::ServiceError;
pub use self::run::{Extra, run_service};
