//! webws joins browsers' WebSockets to Redis Pub/Sub channels, as a sidecar beside nginx.
//!
//! A WebSocket opened as `/webws?channel="zhang"` receives what anyone `PUBLISH`es on
//! `chat:zhang` and publishes there what the browser sends. It takes the place of an
//! OpenResty handler in Lua, with the same bytes on the wire.
//!
//! # In another program
//! ```toml
//! webws = { version = "0.1", default-features = false }
//! ```
//!
//! Make a [`Config`], [`Server::bind`] it (or put it [`Server::on`] sockets of your own), and [`Server::run`] it. A
//! [`Publisher`] publishes from within. Without default features the library compiles nothing of the binary: no
//! command line, no log output, no allocator. It logs by `tracing`, and sets no maximum level.
//!
//! ```
//! use webws::{ChannelRule, Config, EndpointConfig, Server, WireName};
//!
//! async fn serve(shutdown: impl Future<Output = ()>) -> Result<(), webws::ServerError> {
//!     let news = EndpointConfig::new("/news").with_wire(WireName::Plain).with_channel(ChannelRule::Plain);
//!     let mut config = Config::default();
//!     config.broker = "redis://127.0.0.1:6379".parse()?;
//!     config.listen = vec!["unix:/run/app/news.sock".parse()?];
//!     config.endpoints = vec![news.subscribe_only()];
//!     let server = Server::bind(config)?;
//!     let publisher = server.publisher();
//!     tokio::spawn(async move { publisher.publish("chat:all", "hello").await });
//!     // Returns when every client was closed with 1001.
//!     server.run(shutdown).await
//! }
//! ```
//!
//! # From a browser to Redis
//! systemd or `server` binds the socket. The acceptor hands the connection to the `worker`
//! with the fewest sessions, where it waits as a bare descriptor until one of 64 places for
//! handshakes is free; a slow request gives its place back meanwhile. The
//! `head` keeps the request's target as the bytes that came; hyper reads the rest in `http`, from memory. The `endpoint`
//! for the path says how the channel is named; `ws::handshake` checks the headers. The worker makes a
//! `session` and a subscriber of it in the `hub`; for a channel's first, its link to Redis
//! sends SUBSCRIBE, and the handshake waits for the confirmation. Then the session gets the
//! socket and the bytes read ahead, and sends its 101 itself: from before its
//! first byte it has its place in its audience. From now on the session is data: when the
//! `reactor` says that its socket is readable, it reads into the worker's buffer,
//! `ws::reader` judges the frames, and texts go to `unpublished`. After a bounded amount of work the
//! worker's other tasks have their turn, and within one session other sessions do: what is always ready
//! must not keep anything else waiting. The publishing link takes what waits, in one pipeline: the texts of
//! one session in the order they came, the sessions in turns. It sends nothing while the
//! subscribing link is away, so that a client's own text comes back to it. While Redis is
//! behind, texts wait; when a session has too many waiting, which is less the more wait in all, its socket
//! is not read, and backpressure goes through nginx to the browser. What cannot be published in time, or
//! nobody knows about, ends the session with 1013.
//!
//! # From Redis to N browsers
//! A sieve in the subscribing link's stream hands each message to its worker before the redis
//! crate sees it, and never waits. The `hub` finds the channel's audiences (those who get the same bytes), and each
//! audience's `encoding` frames the payload once, into the audience's batch. When the link's
//! stream has nothing more at the moment, every touched audience is flushed: one `send` of the
//! batch per subscriber. What is for an audience that has not read its last batch is held back for
//! some milliseconds and collects (the setting `pace`); who has caught up never waits. What a socket
//! does not take stays in that session's `outbound` queue, as a copy that all who fell behind
//! share; only then is the reactor asked for writability, and the slow-consumer policy watches
//! bytes and time.
//!
//! # When Redis is away
//! A worker's subscribing link proves that it hears by a `probe`: numbers that the worker publishes to
//! itself, through the link that its clients' texts take. One that Redis took and that does not come
//! back ends the link, as its errors and unanswered commands do; an audit compares the number of
//! subscriptions, and a server that says that it is no master any more is left. The link is made again with backoff and all wanted channels, in chunks. The time between the
//! last message and the last confirmation is a gap: logged, counted, and told to the clients whose
//! endpoint says so. Sessions stay, texts wait, `/readyz` says what is wrong.
//!
//! # When another process takes over
//! `handover` starts the binary anew and tells it the listeners and the names of all channels; the new
//! process subscribes them in workers that rest. Then the old workers rest as well: nobody is read, what
//! Redis has is answered for. A mark that only they can sign is published on a channel that all links of both processes have
//! subscribed, and each stops reading its stream right there: up to it the old process delivers, from it on
//! the new one. The sessions follow, each as words and its descriptor. The new process says that it
//! serves, and goes on; until then, the old one can, from the same mark. Where there is a time without
//! a process (`systemctl restart`), the words lie in a memory file and the sockets in a socket pair, which
//! systemd keeps; what is published meanwhile is in a gap.
//!
//! # Walls
//! 1. The reader of a Redis link never waits for a client.
//! 2. A publication is encoded once per encoding and shared; there is no copy per subscriber (one
//!    more for all who fall behind, so that nobody holds a larger buffer than is counted).
//! 3. A client sees its 101 only after its subscription is confirmed.
//! 4. One publisher's messages on a channel reach every subscriber in Redis' order; one
//!    client's texts are published in the order sent.
//! 5. Every queue is bounded; full has a named outcome, a counter and a close code.
//! 6. An idle session costs its struct: no task, no timer, no buffer.
//! 7. What cannot be delivered is accounted for: a reason, a count and, where it matters, a
//!    log line, once.
//! 8. A session is portable between any two reads: channel, endpoint, unread bytes,
//!    unfinished message, unsent bytes, liveness clock.
//! 9. No session's fault, panics included, reaches another.
//! 10. No link is trusted to hear because it is open: it proves it, or it is replaced.
//!
//! # Rooms
//! | room | what lives there |
//! |---|---|
//! | `config` | every setting: meaning, unit, default, why |
//! | `service`, `signals`, `status` | the process: systemd, what signals mean, what `systemctl status` shows |
//! | `server`, `acceptor` | listeners, workers' start and stop; connections dealt out |
//! | `worker` | one thread: where sessions, hub, broker, reactor and timers meet |
//! | `head`, `http`, `endpoint`, `ws` | the request's head; the handshake; path and query to channel; frames judged and built |
//! | `page` | the test page of `webws dev` |
//! | `session`, `outbound`, `unpublished` | one connection as data; what it could not send; texts on their way |
//! | `hub`, `wire` | channels, audiences, batches; how payloads look to clients |
//! | `broker` | the contract, the embedded broker, Redis |
//! | `handover`, `control` | another process takes over; the socket by which it is asked for |
//! | `reactor`, `wheel`, `os` | readiness, timers, system calls |
//! | `close`, `metrics`, `log` | why sessions end, counts, the log's level and losses |
//! | `notice`, `throttle`, `sender` | log lines that could repeat; the line about one refused handshake |
//! | `id`, `clock` | how rooms name a session and an instant |
//!
//! # Where this departs from its first design
//! - tungstenite parses headers and knows close codes, but its context does not judge frames:
//!   the unfinished message inside it could not be handed to another process (wall 8). A
//!   property test compares both judges.
//! - The 101 is written by the session, not by hyper: one system call, attached before its first
//!   byte, and exact bytes (hyper appends `close` to `Connection` when the client said it).
//! - Pace is no fixed interval: a batch is held back (at most 5 ms, the setting `pace`) only while
//!   most of a sample of its audience has not read the last one, which four ioctls tell. Measured
//!   behind nginx (`webws-bench load --rate`; 0 s against 5 ms, two rounds each), 1,000 subscribers at
//!   1,000 messages/s: p99 33–54 → 29–31 ms, own CPU per delivery 0.53 → 0.31 µs; at 3,000/s 31–35 →
//!   24–31 ms, 0.17 → 0.12 µs; 9,000 subscribers at 100/s: 303–490 → 232–321 ms, 0.81 → 0.60 µs. At
//!   100/s to 1,000, with 10 subscribers, and in closed loops nothing changes (a rest by the clock,
//!   tried before, cost a closed loop of 16 in flight four fifths of its throughput). 2 ms gain less;
//!   10 and 20 ms differ from 5 ms by less than its own two rounds do.
//! - Published messages never reach the redis crate: parsing them there and copying them out was a
//!   sixth of our CPU with 9,000 channels. With the reads that this saves and the hub's entries in one
//!   piece, a delivery fell from 3.5 to 2.6 µs, where the floor takes 2.5.
//! - A request is received whole before hyper sees it, from memory: no registration with the
//!   runtime and no second one for the session (24 → 17 µs of CPU per upgrade in a storm).
//! - The audit of subscriptions compares numbers (`CLIENT INFO` has this link's own) instead of asking
//!   for each channel (`PUBSUB NUMSUB` counts everybody's); when they differ, the link is made anew.
//! - The new process is a grandchild, and the child between is taken away before systemd is told of it: a
//!   main process that is not systemd's own child is killed right behind SIGTERM (seen with 252).
//! - A link that lacks subscriptions is not replaced: all are made again on it, so that those that are
//!   there miss nothing. A master that Sentinels replace has no old link to keep: they end its clients
//!   themselves (`CLIENT KILL TYPE pubsub`, `sentinelSendSlaveOf` in Redis' src/sentinel.c). Links are
//!   made before others are broken where one process takes over from another.
//! - Sessions do not survive a crash. They would have to lie in another process' hands all the time:
//!   descriptors in a socket pair cannot be taken out one by one, so closed ones would pile up or the pair
//!   be filled anew again and again (a hand-over of 5,000 sessions takes 28 ms); what was read and not judged, and
//!   what was half sent, would have to be written down before each system call.
//! - Texts wait per session and leave by deficit round robin: with one queue for all, 300 clients with
//!   326 kB/s of empty texts delayed everybody's by five seconds. An idle session owns no queue. What a session
//!   may have waiting is a share of the room that is free, so that floods never fill it (`unpublished`).

mod admin;
mod broker;
mod channel;
mod clock;
mod close;
mod config;
mod front;
mod handover;
mod id;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod log;
mod message;
mod metrics;
mod notice;
mod os;
mod per_node;
mod placement;
mod protocol;
mod server;
mod service;
mod signals;
mod throttle;
mod worker;

pub use config::{
    BinaryPolicy, Broker, ChannelRule, Config, ConfigError, ConfigFault, EndpointConfig, GapPolicy, Limits, Listen,
    NotUtf8Policy, RedisAddress, RedisConfig, RedisUrl, SocketMode, WireName,
};
pub use message::{NotPublished, Refusal};
pub use metrics::Metrics;
pub use server::{Publisher, Server, ServerError};

/// What the binary `webws` needs and no other program: systemd, signals, hand-over, the process' log.
///
/// Not part of the library's promises: any release may change this module.
#[doc(hidden)]
pub mod binary {
    pub use crate::admin::control::{AskError, log_level, suspend, upgrade};
    pub use crate::config::{Reading, examine};
    pub use crate::handover::{has_refused_hand_over, refuse_hand_over};
    pub use crate::log::{count_dropped_log_line, on_log_flush, on_log_level};
    pub use crate::server::check_reading;
    pub use crate::service::{Extra, ServiceError, run_service};
}
