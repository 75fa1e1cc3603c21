//! What a recovery is to be, from its arguments. May not enter: sockets.

use std::time::Duration;

use crate::args::{Answer, LoadArgs, RecoverArgs};
use crate::client::session::META;
use crate::plan::{Plan, Publish, Ramp};

/// Before the channels of the bystanders.
const PREFIX: &str = "by";

/// A recovery.
#[derive(Debug)]
pub(crate) struct Order {
    /// The clients that come back.
    pub(super) plan: Plan,
    pub(super) bystanders: Option<Plan>,
    pub(super) missed: u32,
    pub(super) argument: String,
    pub(super) settle: Duration,
}

impl Order {
    /// Checks the arguments against each other.
    ///
    /// # Errors
    /// A sentence a fault: where, what, and what to do.
    pub(crate) fn try_new(args: RecoverArgs) -> Result<Self, Vec<String>> {
        if !matches!(args.publish, Publish::Redis(_) | Publish::Http(_)) {
            return Err(vec!["--publish names neither redis://HOST:PORT nor http://HOST:PORT/PATH".to_owned()]);
        }
        if args.missed == 0 {
            return Err(vec!["--missed is 0: there would be nothing to get".to_owned()]);
        }
        let bystanders = (args.bystanders > 0).then(|| Plan::try_new(bystanders(&args))).transpose()?;
        let (missed, argument, settle) = (args.missed, args.argument.clone(), args.settle);
        Ok(Self { plan: Plan::try_new(returning(args))?, bystanders, missed, argument, settle })
    }
}

/// The clients that come back, as a load without publications of its own.
fn returning(args: RecoverArgs) -> LoadArgs {
    LoadArgs {
        url: args.url,
        connections: args.connections,
        channels: args.channels,
        ramp: Ramp::Max,
        handshakes: args.handshakes,
        storm: args.storm,
        connect_timeout: args.connect_timeout,
        first_message: None,
        subprotocol: Some(META.to_owned()),
        source_address: Vec::new(),
        publish: args.publish,
        redis_channel: args.redis_channel,
        publishers: None,
        in_flight: None,
        rate: None,
        size: args.size,
        warmup: Duration::ZERO,
        // Until all have what they missed.
        duration: Duration::from_secs(1),
        idle: false,
        churn: 0.0,
        slow: 0.0,
        answer_pings: Answer::Yes,
        threads: args.threads,
        watch: args.watch,
        json: args.json,
        plot: None,
        allow_loss: args.allow_loss,
        quiet: args.quiet,
    }
}

/// The bystanders, as an open loop with a channel each.
fn bystanders(args: &RecoverArgs) -> LoadArgs {
    let mut url = args.url.clone();
    url.iter_mut().for_each(|url| url.path = url.path.prefixed(PREFIX));
    let mut publish = args.publish.clone();
    if let Publish::Http(target) = &mut publish {
        target.path = target.path.prefixed(PREFIX);
    }
    LoadArgs {
        url,
        connections: args.bystanders,
        channels: args.bystanders,
        ramp: Ramp::Max,
        handshakes: None,
        storm: false,
        connect_timeout: args.connect_timeout,
        first_message: None,
        subprotocol: None,
        source_address: Vec::new(),
        publish,
        redis_channel: args.redis_channel.as_ref().map(|name| name.prefixed(PREFIX)),
        publishers: None,
        in_flight: None,
        rate: Some(args.rate),
        size: args.size,
        warmup: Duration::ZERO,
        duration: Duration::from_secs(1),
        idle: false,
        churn: 0.0,
        slow: 0.0,
        answer_pings: Answer::Yes,
        threads: 1,
        watch: Vec::new(),
        json: None,
        plot: None,
        allow_loss: true,
        quiet: true,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn order(arguments: &str) -> Result<Order, String> {
        let arguments = ["webws-bench", "recover"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            Command::Recover(args) => Order::try_new(*args).map_err(|faults| faults.join("\n")),
            Command::Load(_) | Command::Floor(_) => Err("not recover".to_owned()),
        }
    }

    #[test]
    fn bystanders_have_channels_of_their_own() {
        let order = order(
            "--url ws://127.0.0.1:1/webws?channel=%22c{channel}%22 --publish redis://127.0.0.1:1 \
             --redis-channel chat:c{channel} --bystanders 5 --rate 50",
        )
        .unwrap();
        let bystanders = order.bystanders.unwrap();
        assert_eq!((order.plan.senders(), bystanders.senders()), (1, 5));
        assert_eq!(bystanders.target(4).unwrap().path.fill(4, 4), "/webws?channel=%22cby4%22");
        assert_eq!(bystanders.redis_channel.unwrap().fill(4, 4), "chat:cby4");
    }

    #[test]
    fn a_bad_argument_is_named_with_what_to_do() {
        let url = "--url ws://127.0.0.1:1/?{channel}";
        for (arguments, hint) in [
            (format!("{url} --publish websocket"), "redis://HOST:PORT"),
            (format!("{url} --publish redis://127.0.0.1:1"), "--redis-channel"),
            (format!("{url} --publish http://127.0.0.1:1/{{channel}} --missed 0"), "--missed is 0"),
            (format!("{url} --publish http://127.0.0.1:1/ --bystanders 2"), "no {channel}"),
        ] {
            let error = order(&arguments).unwrap_err();
            assert!(error.contains(hint), "{arguments}: {error}");
        }
    }
}
