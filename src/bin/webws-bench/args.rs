//! The command line, as clap reads it. `plan` checks the arguments against each other. May not enter: checks of several
//! arguments together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::address::Target;
use crate::floor::Fault;
use crate::plan::{Publish, Ramp, Source};
use crate::template::Template;
use crate::usage::Watch;

/// Measures servers that join WebSockets to channels, and the floor under them.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 something was lost, duplicated or reordered, or a connection failed (see
--allow-loss), or the run failed; 64 wrong arguments.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open WebSockets, publish, and count what arrives.
    Load(Box<LoadArgs>),
    /// Bring back clients that missed something, all at once, and count what they get.
    Recover(Box<RecoverArgs>),
    /// Serve as barely as it can be done: the floor that servers are compared with.
    Floor(FloorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The endpoint: ws://HOST:PORT/PATH?QUERY or ws+unix:/SOCKET:/PATH?QUERY, with {channel} and
    /// {connection} filled in. May be repeated: the connections are split among them.
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) url: Vec<Target>,
    /// WebSockets to open.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) connections: u32,
    /// Channels to spread them over; {channel} is 0 to C-1.
    #[arg(long, value_name = "C", default_value_t = 1)]
    pub(crate) channels: u32,
    /// Connections to open per second, or "max".
    #[arg(long, value_name = "PER_SECOND|max", default_value = "max")]
    pub(crate) ramp: Ramp,
    /// Handshakes under way at a time; 1 opens one after another. Default 64.
    #[arg(long, value_name = "N", conflicts_with = "storm")]
    pub(crate) handshakes: Option<u32>,
    /// Open all connections simultaneously.
    #[arg(long)]
    pub(crate) storm: bool,
    /// How long a handshake may take.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// A text that each connection sends first, with {channel} and {connection} filled in.
    #[arg(long, value_name = "TEXT")]
    pub(crate) first_message: Option<Template>,
    /// A subprotocol that the connections ask for.
    #[arg(long, value_name = "NAME")]
    pub(crate) subprotocol: Option<String>,
    /// Addresses to connect from, used in turn: one has about 28,000 ports.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub(crate) source_address: Vec<IpAddr>,
    /// The publisher: redis://[USER:PASSWORD@]HOST:PORT, redis+unix:/SOCKET, "websocket" (the clients
    /// send), http://HOST:PORT/PATH?id={channel} (POST), or "none".
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub(crate) publish: Publish,
    /// The channel's name in Redis, with {channel} filled in.
    #[arg(long, value_name = "NAME")]
    pub(crate) redis_channel: Option<Template>,
    /// Redis or HTTP: connections to publish on (default 1). WebSocket: open as many of its own, which
    /// alone send (default 0: all clients send).
    #[arg(long, value_name = "N")]
    pub(crate) publishers: Option<u32>,
    /// Closed loop: keep W publications under way; the next when one reached all its subscribers.
    /// Default 1.
    #[arg(long, value_name = "W", conflicts_with = "rate")]
    pub(crate) in_flight: Option<u32>,
    /// Open loop: messages per second; latency counts from when a message was to be sent.
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<f64>,
    /// Bytes of a message.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(crate) size: usize,
    /// Publish without counting for this long.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) warmup: Duration,
    /// Count for this long.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// No publications: memory and idle CPU.
    #[arg(long, conflicts_with_all = ["publish", "rate", "in_flight"])]
    pub(crate) idle: bool,
    /// Close and reopen so many connections per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0.0)]
    pub(crate) churn: f64,
    /// Share of the connections that never reads; reported apart.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    pub(crate) slow: f64,
    /// Whether pings are answered.
    #[arg(long, value_name = "yes|no", default_value = "yes")]
    pub(crate) answer_pings: Answer,
    /// Threads that carry the connections.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: u32,
    /// Processes whose CPU time and memory are reported, their children included. May be repeated.
    #[arg(long, value_name = "NAME=PID[,PID...]")]
    pub(crate) watch: Vec<Watch>,
    /// Write the report as JSON to a file, or to stdout ("-") in place of the table.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
    /// Draw throughput and latency to a file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Exit with 0 even if something was lost or a connection failed.
    #[arg(long)]
    pub(crate) allow_loss: bool,
    /// No progress line.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The endpoint, as of `load`; it speaks the subprotocol ws+meta.nchan.
    #[arg(long, value_name = "URL", required = true)]
    pub(crate) url: Vec<Target>,
    /// Clients that come back.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) connections: u32,
    /// Channels to spread them over; {channel} is 0 to C-1.
    #[arg(long, value_name = "C", default_value_t = 1)]
    pub(crate) channels: u32,
    /// Publications that each of them missed.
    #[arg(long, value_name = "M", default_value_t = 100)]
    pub(crate) missed: u32,
    /// The argument of the request that takes the position.
    #[arg(long, value_name = "NAME", default_value = "last_event_id")]
    pub(crate) argument: String,
    /// Handshakes under way at a time. Default 64.
    #[arg(long, value_name = "N", conflicts_with = "storm")]
    pub(crate) handshakes: Option<u32>,
    /// Open all connections simultaneously.
    #[arg(long)]
    pub(crate) storm: bool,
    /// How long a handshake may take.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// The publisher: redis://[USER:PASSWORD@]HOST:PORT, redis+unix:/SOCKET or
    /// http://HOST:PORT/PATH?id={channel} (POST).
    #[arg(long, value_name = "HOW")]
    pub(crate) publish: Publish,
    /// The channel's name in Redis, with {channel} filled in.
    #[arg(long, value_name = "NAME")]
    pub(crate) redis_channel: Option<Template>,
    /// Bytes of a publication.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(crate) size: usize,
    /// Other clients, on a channel each ("by" before {channel}), that stay meanwhile.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) bystanders: u32,
    /// Publications per second to them, one channel after another.
    #[arg(long, value_name = "R", default_value_t = 1000.0)]
    pub(crate) rate: f64,
    /// How long the bystanders are alone.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) settle: Duration,
    /// Threads that carry the clients; the bystanders have one more.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) threads: u32,
    /// Processes whose CPU time and memory are reported, their children included. May be repeated.
    #[arg(long, value_name = "NAME=PID[,PID...]")]
    pub(crate) watch: Vec<Watch>,
    /// Write the report as JSON to a file, or to stdout ("-") in place of the table.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) json: Option<PathBuf>,
    /// Exit with 0 even if something was lost or a connection failed.
    #[arg(long)]
    pub(crate) allow_loss: bool,
    /// No progress line.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Where to listen: unix:PATH or tcp:ADDRESS:PORT.
    #[arg(long, value_name = "unix:PATH|tcp:ADDR")]
    pub(crate) listen: webws::Listen,
    /// The Redis to use.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) redis: Source,
    /// Event loops, a thread and two links to Redis each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) workers: usize,
    /// Be wrong on purpose with every N-th publication, to see that the load generator notices.
    #[arg(long, value_name = "lose|duplicate|reorder:N")]
    pub(crate) fault: Option<Fault>,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Answer {
    Yes,
    No,
}
