//! The plan of a run: the arguments, checked against each other. May not enter: sockets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::{Address, Target, tcp, unix};
use crate::args::{Answer, LoadArgs};
use crate::flight::MAX_IN_FLIGHT;
use crate::payload;
use crate::template::Template;
use crate::usage::Watch;

/// Handshakes under way at a time. Chosen: as many as webws works on at once.
const HANDSHAKES: u32 = 64;
/// Most load threads: their number is part of a publication's.
const MAX_THREADS: u32 = 64;

/// A run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) targets: Vec<Target>,
    /// Those that only receive, or all when they send themselves.
    pub(crate) connections: u32,
    pub(crate) channels: u32,
    pub(crate) ramp: Ramp,
    pub(crate) handshakes: u32,
    pub(crate) connect_timeout: Duration,
    pub(crate) first_message: Option<Template>,
    pub(crate) subprotocol: Option<String>,
    pub(crate) sources: Vec<IpAddr>,
    pub(crate) publish: Publish,
    /// The channel's name in Redis.
    pub(crate) redis_channel: Option<Template>,
    pub(crate) publishers: u32,
    pub(crate) pace: Pace,
    pub(crate) size: usize,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) churn: f64,
    pub(crate) slow: f64,
    pub(crate) answer_pings: Answer,
    pub(crate) threads: u32,
    pub(crate) watch: Vec<Watch>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) plot: Option<PathBuf>,
    pub(crate) allow_loss: bool,
    pub(crate) quiet: bool,
}

/// How fast connections are opened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ramp {
    PerSecond(f64),
    Max,
}

/// When the next publication goes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// When fewer than so many are under way.
    InFlight(u32),
    /// At this rate per second, whether publications arrive or not.
    Rate(f64),
}

/// The publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Publish {
    None,
    Redis(Source),
    WebSocket,
    Http(Target),
}

/// A Redis.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) address: Address,
    /// User (may be empty) and password.
    pub(crate) login: Option<(String, String)>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)
    }
}

impl FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Self::Max),
            Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(Self::PerSecond(rate)),
            _ => Err("write connections per second, as 500, or max".to_owned()),
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("redis+unix:") {
            return Ok(Self { address: unix(path)?, login: None });
        }
        let rest = text.strip_prefix("redis://").unwrap_or(text).trim_end_matches('/');
        let Some((login, authority)) = rest.rsplit_once('@') else {
            return Ok(Self { address: tcp(rest, 6379)?, login: None });
        };
        let (user, password) = login.split_once(':').unwrap_or(("", login));
        Ok(Self { address: tcp(authority, 6379)?, login: Some((user.to_owned(), password.to_owned())) })
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "websocket" => Ok(Self::WebSocket),
            Some(("redis" | "redis+unix", _)) => text.parse().map(Self::Redis),
            Some(("http", rest)) if rest.starts_with("//") => Target::of_authority(&rest[2..]).map(Self::Http),
            _ => {
                Err("write redis://HOST:PORT, redis+unix:/SOCKET, websocket, http://HOST:PORT/PATH or none".to_owned())
            }
        }
    }
}

impl Plan {
    /// Checks the arguments against each other.
    ///
    /// # Errors
    /// A sentence a fault: where, what, and what to do.
    #[expect(clippy::too_many_lines, reason = "a list: one check per argument")]
    pub(crate) fn try_new(args: LoadArgs) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut check = |fine: bool, fault: &str| {
            if !fine {
                faults.push(fault.to_owned());
            }
        };
        let published = args.publish != Publish::None;
        check(args.connections > 0, "--connections is 0: open at least one");
        check(args.channels > 0, "--channels is 0: at least one is needed");
        check(
            args.channels <= args.connections,
            "--channels is more than --connections: some would have no subscriber",
        );
        check(
            args.channels <= 1 || args.url.iter().all(|url| url.path.names_channel()),
            "--channels is more than 1, but --url has no {channel}: put it where the channel's name goes",
        );
        check(args.handshakes != Some(0), "--handshakes is 0: at least one must be under way");
        check(!args.connect_timeout.is_zero(), "--connect-timeout is 0: no handshake could succeed");
        check((1..=MAX_THREADS).contains(&args.threads), "--threads is not between 1 and 64");
        check(published || args.in_flight.is_none(), "--in-flight needs --publish: name the publisher");
        check(published || args.rate.is_none(), "--rate needs --publish: name the publisher");
        check(
            args.rate.is_none_or(|rate| rate > 0.0 && rate <= 1e7),
            "--rate is not between 0 and 10000000 per second",
        );
        check(
            args.in_flight.is_none_or(|window| (1..=MAX_IN_FLIGHT).contains(&window)),
            "--in-flight is not between 1 and 65536",
        );
        check(
            args.size >= payload::MIN_BYTES && args.size <= 64 << 20,
            "--size is not between 45 (sender, sequence and time are in it) and 67108864 bytes",
        );
        check(!args.duration.is_zero(), "--duration is 0: nothing would be counted");
        check(args.duration <= Duration::from_secs(86_400), "--duration is more than a day");
        check((0.0..=1e5).contains(&args.churn), "--churn is not between 0 and 100000 per second");
        check((0.0..100.0).contains(&args.slow), "--slow is not between 0 and 100 percent: some clients have to read");
        let redis = matches!(args.publish, Publish::Redis(_));
        check(
            !redis || args.redis_channel.is_some(),
            "--publish redis://... needs --redis-channel: the name the server subscribes, as 'chat:c{channel}'",
        );
        check(redis || args.redis_channel.is_none(), "--redis-channel needs --publish redis://HOST:PORT");
        let named = match &args.publish {
            Publish::Http(target) => target.path.names_channel(),
            _ => args.redis_channel.as_ref().is_none_or(Template::names_channel),
        };
        check(args.channels <= 1 || named, "--channels is more than 1, but the name to publish on has no {channel}");
        let by_clients = args.publish == Publish::WebSocket;
        check(by_clients || args.publishers != Some(0), "--publishers is 0: at least one connection must publish");
        check(published || args.publishers.is_none(), "--publishers needs --publish: name the publisher");
        check(
            args.churn == 0.0 || args.rate.is_some() || !published || args.threads == 1,
            "--churn with --in-flight needs --threads 1: each publication needs the exact number of its subscribers",
        );
        check(
            args.source_address.is_empty() || args.url.iter().all(|url| matches!(url.address, Address::Tcp(_))),
            "--source-address is of TCP, but --url is a Unix socket: leave it out",
        );
        for (place, watch) in args.watch.iter().enumerate() {
            faults.extend(watch.fault());
            if args.watch.iter().take(place).any(|other| other.name == watch.name) {
                faults.push(format!("--watch {}: the name is given twice; write NAME=PID,PID", watch.name));
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            handshakes: if args.storm { u32::MAX } else { args.handshakes.unwrap_or(HANDSHAKES) },
            publishers: args.publishers.unwrap_or(u32::from(!by_clients)),
            pace: args.rate.map_or(Pace::InFlight(args.in_flight.unwrap_or(1)), Pace::Rate),
            targets: args.url,
            connections: args.connections,
            channels: args.channels,
            ramp: args.ramp,
            connect_timeout: args.connect_timeout,
            first_message: args.first_message,
            subprotocol: args.subprotocol,
            sources: args.source_address,
            publish: args.publish,
            redis_channel: args.redis_channel,
            size: args.size,
            warmup: args.warmup,
            duration: args.duration,
            churn: args.churn,
            slow: args.slow,
            answer_pings: args.answer_pings,
            threads: args.threads,
            watch: args.watch,
            json: args.json,
            plot: args.plot,
            allow_loss: args.allow_loss,
            quiet: args.quiet,
        })
    }

    /// All WebSockets: those that receive, and the publishers' own.
    pub(crate) fn sockets(&self) -> u32 {
        self.connections + self.own_publishers()
    }

    /// The number of senders: one publisher per channel, or the connections that send.
    pub(crate) fn senders(&self) -> u32 {
        match self.publish {
            Publish::None => 0,
            Publish::Redis(_) | Publish::Http(_) => self.channels,
            Publish::WebSocket if self.publishers > 0 => self.publishers,
            Publish::WebSocket => self.connections,
        }
    }

    /// The connection that is sender 0; the others follow it. Without meaning unless they send.
    pub(crate) fn first_sender(&self) -> u32 {
        if self.own_publishers() > 0 { self.connections } else { 0 }
    }

    /// Senders that one channel can have.
    pub(crate) fn senders_per_channel(&self) -> u32 {
        self.senders().div_ceil(self.channels)
    }

    pub(crate) fn channel_of_sender(&self, sender: u32) -> u32 {
        (self.first_sender() + sender) % self.channels
    }

    /// The senders whose publications a channel's subscribers get.
    pub(crate) fn senders_of(&self, channel: u32) -> impl Iterator<Item = u32> {
        let first = (channel + self.channels - self.first_sender() % self.channels) % self.channels;
        (first..self.senders()).step_by(self.channels as usize)
    }

    /// The server of a connection: each serves a run of them, so that channels spread over all.
    pub(crate) fn target(&self, connection: u32) -> Option<&Target> {
        let place = u64::from(connection) * self.targets.len() as u64 / u64::from(self.sockets());
        self.targets.get(usize::try_from(place).unwrap_or(0))
    }

    /// Whether a connection never reads: they are spread evenly.
    pub(crate) fn is_slow(&self, connection: u32) -> bool {
        let up_to = |count: u32| (f64::from(count) * self.slow / 100.0).floor();
        connection < self.connections && up_to(connection + 1) > up_to(connection)
    }

    fn own_publishers(&self) -> u32 {
        if self.publish == Publish::WebSocket { self.publishers } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn plan(arguments: &str) -> Result<Plan, String> {
        let arguments = ["webws-bench", "load"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            Command::Load(args) => Plan::try_new(*args).map_err(|faults| faults.join("\n")),
            Command::Recover(_) | Command::Floor(_) => Err("not load".to_owned()),
        }
    }

    const URL: &str = "--url ws://127.0.0.1:1/webws?channel=%22c{channel}%22";

    #[test]
    fn a_bad_argument_is_named_with_what_to_do() {
        for (arguments, hint) in [
            ("--channels 2 --url ws://127.0.0.1:1/", "no {channel}"),
            ("--channels 2000 --url ws://127.0.0.1:1/{channel}", "--channels is more than --connections"),
            ("--url ws://127.0.0.1:1/ --publish redis://127.0.0.1:1", "--redis-channel"),
            ("--url ws://127.0.0.1:1/ --publish amqp://x", "redis://HOST:PORT"),
            ("--url ws://127.0.0.1:1/ --rate 5", "--rate needs --publish"),
            ("--url ws://127.0.0.1:1/ --publish websocket --rate 5 --in-flight 1", "cannot be used with"),
            ("--url ws://127.0.0.1:1/ --size 10", "45"),
            ("--url ws://127.0.0.1:1/ --slow 100", "some clients have to read"),
            ("--url ws://127.0.0.1:1/ --watch x=4294967295", "no process 4294967295"),
            ("--url ws+unix:/a:/b --source-address 127.0.0.2", "Unix socket"),
            ("--url ws://127.0.0.1:1/ --ramp fast", "max"),
            ("--url ws://127.0.0.1:1/ --publish websocket --churn 5 --threads 2", "--threads 1"),
            ("", "--url"),
        ] {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(hint), "{arguments}: {error}");
        }
    }

    #[test]
    fn senders_are_channels_or_connections() {
        let by_redis =
            plan(&format!("{URL} --channels 4 --publish redis://127.0.0.1:1 --redis-channel c{{channel}}")).unwrap();
        assert_eq!((by_redis.senders(), by_redis.senders_per_channel(), by_redis.sockets()), (4, 1, 1000));
        let by_clients = plan(&format!("{URL} --connections 10 --channels 4 --publish websocket")).unwrap();
        assert_eq!((by_clients.senders(), by_clients.senders_per_channel(), by_clients.sockets()), (10, 3, 10));
        let by_own = plan(&format!("{URL} --connections 10 --channels 4 --publish websocket --publishers 3")).unwrap();
        assert_eq!((by_own.senders(), by_own.senders_per_channel(), by_own.sockets()), (3, 1, 13));
        assert_eq!(by_own.senders_of(0).collect::<Vec<_>>(), [2]);
        assert_eq!((0..3).map(|sender| by_own.channel_of_sender(sender)).collect::<Vec<_>>(), [2, 3, 0]);
    }

    #[test]
    fn slow_ones_are_spread_and_counted_exactly() {
        let plan = plan(&format!("{URL} --connections 1000 --slow 1")).unwrap();
        assert_eq!((0..1000).filter(|connection| plan.is_slow(*connection)).count(), 10);
        assert!(!plan.is_slow(0) && plan.is_slow(99));
    }

    #[test]
    fn several_servers_share_the_connections() {
        let plan = plan("--url ws://127.0.0.1:1/ --url ws://127.0.0.1:2/ --connections 4").unwrap();
        let hosts: Vec<_> = (0..4).map(|connection| plan.target(connection).unwrap().host.clone()).collect();
        assert_eq!(hosts, ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:2"]);
    }

    #[test]
    fn a_password_is_not_shown() {
        let source: Source = "redis://web:secret@127.0.0.1:1".parse().unwrap();
        assert_eq!(source.login, Some(("web".into(), "secret".into())));
        assert!(!format!("{source:?}").contains("secret"));
    }
}
