//! A server as a service: start, signals, the watchdog, hand-over to another process, end.
//!
//! Works the same without systemd. May not enter: how connections are served.

mod blocking;
mod error;
mod giver;
mod origin;
mod run;
mod watch;

pub use self::error::ServiceError;
pub use self::run::{Extra, run_service};
