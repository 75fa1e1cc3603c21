//! The command line: arguments, help, completions and the man page from one definition. May not enter: what a command
//! does.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use webws::{BrokerConfig, Listen};

use super::nginx::{EndpointUrl, SHIPPED};

/// A sidecar beside nginx that joins browsers' WebSockets to Redis Pub/Sub channels.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Settings come from the defaults, then the file, then WEBWS_* variables (WEBWS_WORKERS=2,
WEBWS_REDIS__USERNAME=web), then the options.

Signals: SIGTERM, SIGINT and SIGQUIT close the connections over drain_time and end webws; a second such signal ends
webws at once. SIGHUP and SIGUSR2 do the same as webws upgrade, without a reply. SIGTSTP and SIGXCPU act as usual; webws
ignores the other signals that could end or stop it.
Exit codes: 0 done, 1 failed, 64 wrong arguments, 78 wrong settings.
Log lines: WEBWS_LOG=debug (or TARGET=LEVEL, for example webws::broker=debug) shows more than info; webws log LEVEL
changes the level without a restart.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve, until SIGTERM.
    Run(RunArgs),
    /// Check a configuration: list all its faults, or print the settings in force.
    ///
    /// Where an endpoint has a history, asks Redis how far back its replication log reaches. With --nginx: whether
    /// nginx hands its clients off to a running webws (exit code 0), and why not (exit code 1).
    Check {
        /// The configuration file (TOML); with --nginx, for its control socket.
        #[arg(long, value_name = "FILE", required_unless_present = "nginx")]
        config: Option<PathBuf>,
        /// Print faults only, and do not connect to Redis.
        #[arg(long, conflicts_with = "nginx")]
        quiet: bool,
        /// Make one handshake at the URL of an endpoint in nginx, and say whether it comes straight or proxied.
        #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = SHIPPED)]
        nginx: Option<EndpointUrl>,
        /// With --nginx: the control socket, instead of --config.
        #[arg(long, value_name = "PATH", requires = "nginx")]
        control: Option<PathBuf>,
    },
    /// Start the new binary and configuration while every WebSocket stays connected, and wait for the result.
    Upgrade {
        /// Read the control socket's path from this configuration file (TOML). Default: the control socket of the
        /// shipped units.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The path of the control socket, instead of --config.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
    },
    /// Hand every WebSocket to systemd for the next process, then exit (for ExecStop=).
    Suspend {
        /// Read the control socket's path from this configuration file (TOML). Default: the control socket of the
        /// shipped units.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The path of the control socket, instead of --config.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
    },
    /// Change the log level of a running webws, until its process ends.
    Log {
        /// error, warn, info, debug, trace or off; or several TARGET=LEVEL, separated by commas.
        level: String,
        /// Read the control socket's path from this configuration file (TOML). Default: the control socket of the
        /// shipped units.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The path of the control socket, instead of --config.
        #[arg(long, value_name = "PATH")]
        control: Option<PathBuf>,
    },
    /// Try webws without Redis, on a test page at http://127.0.0.1:8080/.
    ///
    /// webws dev refuses requests whose Host names another machine, and WebSockets from pages served by another
    /// machine.
    Dev {
        /// A configuration file (TOML): all its settings except `listen` and `control` apply.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The broker, instead of the embedded one or the file's.
        #[arg(long, value_name = "URL")]
        broker: Option<BrokerConfig>,
        /// Where to listen; may be repeated. Default: TCP 127.0.0.1:8080 and a Unix socket in the temporary directory.
        #[arg(long, value_name = "unix:PATH|tcp:ADDR")]
        listen: Vec<Listen>,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page.
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen; may be repeated.
    #[arg(long, value_name = "unix:PATH|tcp:ADDR|handoff:PATH")]
    pub(crate) listen: Vec<Listen>,
    /// The broker: "memory", redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH,
    /// redis+sentinel://HOST:PORT,HOST:PORT/MASTER or redis+cluster://HOST:PORT,HOST:PORT.
    #[arg(long, value_name = "URL")]
    pub(crate) broker: Option<BrokerConfig>,
    /// Worker threads; 0 is one per core.
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
}
