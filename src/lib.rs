//! webws joins browsers' WebSockets to Redis Pub/Sub channels, as a sidecar beside nginx.
//!
//! A WebSocket opened as `/webws?channel="zhang"` receives every message that is `PUBLISH`ed on `chat:zhang`, and webws
//! publishes the browser's messages on that channel. A stream of server-sent events at the same path only receives, and
//! so does a long-poll, which is answered once. webws replaces a handler in Lua (OpenResty), with the same bytes on the
//! wire. As a library, webws runs inside another program: make a [`Config`], then a server with [`Server::bind`] (or
//! [`Server::on`] sockets of your own), and [`Server::run`] it. A [`Publisher`] publishes from within. The example is
//! at the end of this page.
//!
//! # From a browser to Redis
//! systemd or `server` binds the socket. `front::acceptor` hands a connection to the `worker` with the lowest load
//! (sessions and queued connections), or answers 503 where `limits.max_handshakes` already wait. The connection waits
//! as a bare descriptor until one of 64 permits for handshakes is free. `front::head` keeps the request's target in the
//! client's bytes; hyper reads the rest from memory. `front::answer` finds the `protocol::endpoint` for the path, which
//! decodes the channel's name and has the encoding of its `wire`; a request for events, for a poll or for positions
//! gets another encoding, or a refusal (4xx). `websocket::handshake` checks the headers. The worker makes a `session`
//! and its subscriber in the `hub`, or refuses it (the reasons are in `worker::opening`; `front::upgrade` sends the
//! 503, and the 408 for a late head). For a channel's first subscriber, the worker's subscribing link sends SUBSCRIBE,
//! and the session waits for the confirmation. Then the session gets its socket, and sends its 101 (a 200, if the
//! request was for server-sent events: `front::event_stream`). A poll is answered at once if it missed something
//! (`worker::polls`, `hub::poll`). Else its first batch is its answer, or a 204 after `poll_timeout`; the answer ends
//! the session (`session::poll`).
//!
//! An nginx with Lua can hand a client off instead of proxying it (nginx/webws-straight.lua): a datagram has the
//! request's head and the client's own socket. `front::handoff` takes both from senders that it trusts; from there on
//! the connection is as any other whose head has arrived.
//!
//! From now on no task belongs to the session. When the `reactor` reports that the socket is readable, the worker reads
//! into its own buffer, `websocket::reader` decodes the frames, and client messages go to the `outbox`. After a bounded
//! amount of work the session yields to other sessions, timers, commands and the broker. The publishing link pipelines
//! messages from the outbox: one session's in their order, the sessions in turns. While the subscribing link is down,
//! nothing is published, because the sender would not receive its own message. While Redis is slow, messages wait; a
//! session with too many waiting is not read, and backpressure goes through nginx to the browser. A message that Redis
//! refuses, that cannot be published in time, or whose outcome is unknown, closes its session with 1013.
//!
//! # From Redis to N browsers
//! The worker polls its broker. The RESP reader of the subscribing link yields each publication as a slice of the
//! link's read buffer; the reader never waits for a client. `node_state` tells them apart: a session's publication, a
//! milestone or the link's own probe, or the marker of a hand-over. The `hub` finds the channel's audiences
//! (subscribers that get the same bytes), and each audience's `encoding` frames the payload once, into the audience's
//! batch. When the link has nothing more to read, every touched audience is flushed: one `send` of the batch per
//! subscriber. While most of a large audience has not taken its last batch, the next one is held back for some
//! milliseconds (the setting `pace`); an audience that has caught up never waits. Bytes that a socket does not take
//! stay in that session's backlog (`outbound`), as a copy that all slow sessions of the audience share. Only then does
//! the worker register for writability, and the slow-consumer policy watches bytes and time.
//!
//! # When Redis is away
//! A link that is open and delivers nothing is called deaf. A worker that has heard no milestone for a second publishes
//! one and expects it back (where there are none, a signed number on a channel of its own). By the rule in `probe`,
//! `subscriber` closes a link to which a probe that Redis took does not return (`LinkError::Deaf`), as errors and
//! commands without an answer close it, too. An `audit` compares Redis' number of subscriptions with the link's own. A
//! link leaves a node that is no longer a master. It reconnects with backoff, and subscribes all wanted channels in
//! chunks. The time from the last proof that the subscriptions were there to the last confirmation is a gap: logged,
//! counted, and where the endpoint has `on_gap = "close"`, its sessions are closed with 1012. Sessions stay, messages
//! wait, and `/readyz` answers with the reason.
//!
//! Where Redis has a replication log and `redis.replay` allows, the gap is filled instead. The new link subscribes all
//! channels and stands still at the next milestone. `broker/redis/log_reading` reads the node's replication log from
//! the last milestone that the old link heard to that one (`replay/between`). The hub (`hub/replay`) skips the
//! publications of each channel that it has counted since then, delivers the rest, and the link goes on. `worker/apply`
//! answers a client that comes back with a position from its channel's history (`hub/rings`). If that is too short,
//! `worker/recovery` asks all other workers, and then the log.
//!
//! # When another process takes over
//! `handover` starts the new binary, and sends it the listeners and the names of all channels. The new process
//! subscribes them in workers that are frozen: they neither read clients nor send. Their histories are complete from
//! the first milestone on that they hear, and what the old workers keep of the time before is sent while these serve.
//! Then the old workers quiesce: they read no client, publish nothing more, and wait until Redis has answered for the
//! messages already sent; those still in the outbox move with the sessions. On a channel per node, which all
//! subscribing links of both processes have subscribed, an old worker publishes the marker: a message that only these
//! two processes can sign. Each link stops reading at the marker: the old process delivers publications before it, the
//! new one those after it. The sessions follow, each as a snapshot and its socket. A session whose path the new
//! configuration does not serve is orphaned (`worker/snapshot.rs`): it is taken over, and closed with 1001. The new
//! process says that it serves, and resumes; until then the old one can resume from the same marker. If the broker
//! changes, there is no marker, and a gap is told as after any other. For a time without a process (`systemctl
//! restart`), systemd keeps the snapshots in a memory file and the sockets in a socket pair; publications of that time
//! are in a gap.
//!
//! # Walls
//! What no change may break.
//!
//! 1. The reader of a Redis link never waits for a client.
//! 2. A publication is encoded once per encoding and shared. There is no payload copy per subscriber.
//! 3. A client sees its 101 or 200 only after its subscription is confirmed.
//! 4. One publisher's messages on one channel reach every subscriber in Redis' order. One client's messages are
//!    published in the order sent.
//! 5. Every queue is bounded in bytes. A full queue has a defined outcome, a counter and a close code.
//! 6. An idle session costs its struct: no task, no timer, no buffer.
//! 7. What cannot be delivered is accounted for: a reason, a count and, where it matters, one log line.
//! 8. A session can become a snapshot between any two reads.
//! 9. No session's fault, panics included, reaches another.
//! 10. An open link is not assumed to deliver. It proves that it does, or it is replaced.
//! 11. What cannot happen is asserted (`debug_assert!`; `per_node` panics on an unknown node), never swallowed by a
//!     default.
//! 12. Access is decided by one parser: the channel that nginx checked is the channel that webws subscribes.
//!
//! # Rooms
//! A room is a module with a place in the layering, lowest first. It imports from its own layer and from those below
//! (`tests/layering.rs`). A file's header names what may not enter it.
//!
//! | room | contents |
//! |---|---|
//! | `os` | system calls |
//! | `channel`, `message`, `placement`, `per_node`, `position` | the vocabulary of hub and broker |
//! | `id`, `clock`, `close`, `memory`, `metrics`, `proxied` | keys of sessions, time, close reasons, the memory in use and its budget, counters, why nginx proxied a handshake |
//! | `notice`, `throttle`, `log` | limits for log lines that could repeat; the number of dropped lines, the log's level |
//! | `config` | every setting: meaning, unit, default, why |
//! | `protocol` | what does no I/O: `endpoint` (path and query to channel and encoding), `websocket` (frames), `encoding` (how publications, pings and closes look to clients), `cors` (what lets a page read an answer), `session` (one connection as a state machine), `socket` (what a session needs of its socket), `outbound` (its backlog), `hub` (channels, audiences, batches, histories), `outbox` (client messages that wait) |
//! | `broker` | requests and events; the embedded broker; `redis`: RESP reader, the two links' state machines, probe, marker, roles, replication log, Sentinel, Cluster, TLS |
//! | `worker` | one thread that owns sessions, hub, outbox and broker: mailbox, phases, reactor, timer wheel; carries out sessions' actions and the broker's events |
//! | `front` | accepted connections, the request's head, the handshake, the choice of an encoding, refusals and their status, the test page |
//! | `admin` | the control socket, what `systemctl status` shows |
//! | `handover` | another process takes over: protocol, both sides, deadlines, systemd's file store |
//! | `server`, `service`, `signals` | listeners, workers' start and stop; the process under systemd |
//! | `internals` | doors for tests, fuzzers and benchmarks, behind the feature `internals` |
//! | `main`, `cli` | the binary, behind the feature `cli`: arguments, settings' sources, log output, exit codes |
//!
//! # Glossary
//! | term | meaning |
//! |---|---|
//! | action | what a session's transition asks of its worker |
//! | audience | the subscribers of a channel that get the same bytes |
//! | audit | a link's comparison of the node's number of subscriptions with its own |
//! | backlog | bytes that a session's socket has not taken yet (not the kernel's queue of a listener) |
//! | batch | the encoded publications of an audience since its last flush; of a publishing link: the messages in one pipeline |
//! | broker | what connects workers with publishers: Redis, or the embedded broker in memory |
//! | channel | the name of a Pub/Sub channel |
//! | claims | what nginx says of a client: the user, the allowed channels, the end |
//! | command | what a worker's mailbox takes from the server, a hand-over, a `Publisher` or another worker; of a link: a command of Redis; of `cli`: a subcommand |
//! | complete, incomplete | whether all wanted channels of a link are subscribed; of a recovery: whether the client got all that it missed |
//! | connection | an accepted socket before it is a session; afterwards the socket that a session has |
//! | denial, refusal | why a session does not open: what the session says itself, and the text of the 503; also the broker's error for a message |
//! | deaf | said of a link that is open and delivers nothing |
//! | encoding | how publications look to a client; the setting `wire` and the request choose it |
//! | endpoint | a configured path: channel rule, prefix, encoding, limits |
//! | event | what a broker tells its worker; with "server-sent": a publication as an event stream has it |
//! | gap | a time in which publications may be missing |
//! | grant | what an accepted request gives its session: endpoint, channel, encoding, rights, position |
//! | hand-over | another process takes over all sessions, over a socket or by systemd's store |
//! | handoff | nginx gives webws a client's own socket and its request, and is out of the connection; such a client comes *straight* |
//! | history | the last publications of a channel, kept for clients that come back; of Redis (`replid`): the writes that a replication id names |
//! | hub | a worker's table from channels to subscribers |
//! | lingering close | what a client still sends after our close is read and discarded: a reset would destroy the frame |
//! | linger | how long a channel without subscribers stays subscribed; for clients see *lingering close* |
//! | link | one connection to Redis |
//! | marker | a signed message at which the subscribing links of both processes stop reading |
//! | message | what a browser or a `Publisher` sent, on its way to the broker |
//! | milestone | a message that all subscribing links of a node hear, about one a second; positions count from it |
//! | node | one Redis server that a worker has links to |
//! | origin | of a page: scheme, host and port (RFC 6454); of a message: its session or `Publisher`; of a new process: the source of its sessions; of a setting: file or environment |
//! | orphaned | said of a session whose path the new configuration does not serve; closed with 1001 |
//! | outbox | a worker's messages that wait for the broker |
//! | pace | how long a batch may be held back while its audience is behind |
//! | poll | a request that waits for one answer: the next publications, or none in time |
//! | position | a place in a channel's stream: a milestone, and the number of publications since; a token is its form for clients |
//! | probe | a message by which a link proves that it delivers: an own milestone, or a number where there are none |
//! | publication | a message on a channel, on its way to browsers |
//! | quiesce, resume | to stop, and to continue, a worker's sessions, timers and publishing for a hand-over |
//! | request | of a client: its HTTP request; of a worker: what it asks of its broker; on the control socket: what a program asks of the server |
//! | replication log | what a node keeps of the commands that it executed, publications among them (Redis: backlog) |
//! | RESP reader | the parser of Redis' replies and publications |
//! | rings | the histories of all channels of a worker, bounded together (`hub/rings`) |
//! | session | one browser connection from its handshake to its end |
//! | snapshot | a session, a message or a listener, as data for another process; of Redis (`replay`): the RDB file that a replica gets |
//! | subscription | a session's channel, with its encoding and rights; its entry in the hub is a subscriber (in `broker/redis`, `subscriber` is the subscribing link) |
//! | worker | one thread with its sessions, hub, outbox and broker |
//!
//! # In another program
//! `cargo add webws --no-default-features` compiles nothing of the binary: no command line, no log output, no
//! allocator. The library logs by `tracing` and sets no maximum level.
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
mod memory;
mod message;
mod metrics;
#[cfg(test)]
#[path = "../tests/models/mod.rs"]
mod models;
mod notice;
mod os;
mod per_node;
mod placement;
mod position;
mod protocol;
mod proxied;
mod server;
mod service;
mod signals;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
mod throttle;
mod worker;

pub use config::{
    BinaryPolicy, BrokerConfig, ChannelRule, ClaimsSource, Config, ConfigError, ConfigFault, EndpointConfig, GapPolicy,
    HistoryConfig, Limits, Listen, NoOriginPolicy, NotUtf8Policy, OriginRule, RateConfig, RatePolicy, RedisAddress,
    RedisConfig, RedisUrl, ReplayPolicy, SlowPolicy, SocketMode, TokenConfig, WireName,
};
pub use memory::Metered;
pub use message::{NotPublished, Refusal};
pub use metrics::Metrics;
pub use server::{Server, ServerError};
pub use worker::Publisher;

/// What the binary `webws` needs and no other program: systemd, signals, hand-over, the process' log.
///
/// Not part of the library's promises: any release may change this module.
#[doc(hidden)]
pub mod binary {
    pub use crate::admin::control::{ControlError, announce, log_level, suspend, upgrade};
    pub use crate::config::{Reading, examine};
    pub use crate::handover::{has_refused_hand_over, refuse_hand_over};
    pub use crate::log::{count_dropped_log_line, on_log_flush, on_log_level};
    pub use crate::server::{check_reading, replay_outlook};
    pub use crate::service::{Extra, ServiceError, run_service};
}
