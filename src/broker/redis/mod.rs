//! Redis as the broker: two links per worker and node, one to subscribe and one to publish, because the two must never
//! share a connection. Each is a state machine without I/O (`subscriber.rs`, `publisher.rs`); `station.rs` has their
//! sockets, `pool.rs` is what a worker polls.
//!
//! From the floor up: `fault`, `transport`, `resp`; `probe`, `marker`, `role`, `register`, `health`; `links`, `errand`,
//! `answer`, the machines; `greeting`, `dial`, `tls`, `sentinel`, `connect` make a stream; `cluster` knows where the nodes
//! are. The only room that names the redis crate. May not enter: sessions.

mod answer;
mod audit;
mod backoff;
mod cluster;
mod commands;
mod connect;
mod credential;
mod deployment;
mod dial;
mod errand;
pub(crate) mod fault;
mod greeting;
pub(crate) mod health;
mod link;
pub(crate) mod links;
pub(crate) mod marker;
mod outlet;
mod peer;
mod pool;
mod probe;
pub(crate) mod publisher;
mod refusal;
pub(crate) mod register;
pub(crate) mod resp;
pub(crate) mod role;
mod sentinel;
mod station;
pub(crate) mod subscriber;
mod tls;
pub(crate) mod transport;
mod wrong_port;

pub(crate) use self::cluster::Home;
pub(crate) use self::credential::SystemdCredentials;
pub(crate) use self::deployment::Deployment;
pub(crate) use self::pool::Pool;
#[cfg(feature = "internals")]
pub(crate) use self::resp::split;
