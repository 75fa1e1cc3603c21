//! The promises of webws, kept over real sockets: real nginx, real redis-server, one module a promise.
//!
//! `support` starts the programs and speaks raw WebSocket bytes; it knows nothing of what is promised.
//! Every test has its own programs in a temporary directory, so all of them may run at once.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod browser;
mod certificates;
mod claims;
mod cli;
mod cluster;
mod connect;
mod contract;
mod credentials;
mod dev;
mod embed;
mod endpoint;
mod endpoint_forms;
mod fairness;
mod filled;
mod gap;
mod golden;
mod handover;
#[cfg(feature = "internals")]
mod inside;
mod layering;
mod ledger;
mod liveness;
mod log;
mod longpoll;
mod memory;
mod milestones;
mod nginx;
mod origins;
mod outage;
mod package;
mod payload;
mod positions;
mod publish;
mod readme;
mod refusal;
mod reload;
mod request;
mod reserve;
mod resp2;
mod role;
mod scale;
mod sentinel_access;
mod service;
mod signals;
mod signed;
mod sse;
mod stopped;
mod straight;
mod subscriptions;
#[expect(dead_code, reason = "a helper may wait for its next test")]
mod support;
mod systemd;
mod tokens;
mod topology;
mod units;
