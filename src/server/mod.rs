//! A server: listeners, the workers' start and stop.
//!
//! `setup.rs` has the server before its workers run, `running.rs` afterwards; `outlook.rs` looks at Redis for `webws
//! check`. May not enter: what connections say.

mod error;
mod listener;
mod outlook;
mod running;
mod setup;

pub use self::error::ServerError;
pub(crate) use self::error::advice;
pub use self::outlook::replay_outlook;
pub(crate) use self::running::{Ending, Running};
pub use self::setup::{Server, check_reading};
