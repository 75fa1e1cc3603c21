//! Redis as the broker: two links per worker and node, one to subscribe and one to publish, because the two must never
//! share a connection. Each is a state machine without I/O (`subscriber.rs`, `publisher.rs`); `node_links.rs` and
//! `publisher_stream.rs` have their sockets, `redis_broker.rs` is what a worker polls.
//!
//! From the floor up: `error`, `transport`, `read_buffer`, `resp`; `probe`, `marker`, `milestone`, `role`,
//! `channel_table`, `health`; `node_state`, `unplaced`, `link_command`, `reply`, the machines; `greeting`, `dial`,
//! `tls`, `sentinel`, `connect` make a stream; `cluster` knows where the nodes are; `replay` reads a node's replication
//! log. The only room that names the redis crate. May not enter: sessions.

mod audit;
mod backoff;
pub(crate) mod catch_up;
pub(crate) mod channel_table;
mod cluster;
mod connect;
mod credential;
mod deployment;
mod dial;
pub(crate) mod error;
mod following;
mod greeting;
pub(crate) mod health;
mod known_node;
mod link_command;
mod log_reading;
pub(crate) mod marker;
pub(crate) mod milestone;
mod node_links;
pub(crate) mod node_state;
mod pending_changes;
mod probe;
pub(crate) mod publisher;
mod publisher_stream;
mod publishing_link;
mod read_buffer;
mod redis_broker;
pub(crate) mod replay;
mod replid;
mod reply;
pub(crate) mod resp;
pub(crate) mod role;
mod sentinel;
mod subscribe_refusal;
pub(crate) mod subscriber;
mod subscribing_link;
mod tls;
pub(crate) mod transport;
mod unplaced;
mod wrong_port;

pub(crate) use self::cluster::Home;
#[cfg(feature = "internals")]
pub(crate) use self::connect::Settings as NodeSettings;
pub(crate) use self::credential::SystemdCredentials;
pub(crate) use self::deployment::Deployment;
pub(crate) use self::redis_broker::RedisBroker;
#[cfg(feature = "internals")]
pub(crate) use self::replid::Replid;
#[cfg(feature = "internals")]
pub(crate) use self::resp::split;
