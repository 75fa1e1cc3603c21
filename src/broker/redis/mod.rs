//! Redis as the broker: two links per worker and node, one to subscribe and one to publish, because the two must never
//! share a connection. Each is a state machine without I/O (`subscriber`, `publisher`).
//!
//! From the floor up: `error`, `transport`, `wrong_port`, `read_buffer`, `resp`, `backoff`, `replid`; `credential`,
//! `dial`, `tls`, `greeting`, `role`, `sentinel`, `connect` make a stream. `channel_table`, `probe`, `marker`,
//! `milestone`, `catch_up`, `health` and `node_state` are what a node's two links share, `known_node` what all workers
//! share. `replay` reads a replication log. `link_command`, `pending_changes`, `reply`, `subscribe_refusal`, `audit`
//! and `subscribing_link` are parts of `subscriber`, `publishing_link` of `publisher`. `publisher_stream`,
//! `log_reading` and `node_links` have the I/O. `cluster`, `following`, `unplaced` and `deployment` know where the
//! nodes are; a worker polls `redis_broker`. The only room that names the redis crate. May not enter: sessions.

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
