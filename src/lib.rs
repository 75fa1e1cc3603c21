//! webws
pub(crate) mod broker;
pub(crate) mod close;
pub(crate) mod config;
pub(crate) mod endpoint;
pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod metrics;
pub(crate) mod os;
pub(crate) mod outbound;
pub(crate) mod reactor;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod throttle;
pub(crate) mod unpublished;
pub(crate) mod wheel;
pub(crate) mod wire;
pub(crate) mod worker;
pub(crate) mod ws;

pub use broker::NotPublished;
pub use config::*;
pub use metrics::Metrics;
pub use server::{Publisher, Server, ServerError};
pub use service::{Extra, run_service};
