//! The `webws` binary: arguments, configuration, logging, exit codes. Everything else is
//! the library's.

mod cli;
mod logging;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use webws::{Config, ConfigError, EndpointConfig, Extra, ServerError};

use cli::{Cli, Command, RunArgs};

/// Measured on 9,000 sessions that each had sent 64 kB: 0.9 kB resident per session, 8.3 kB with
/// glibc, whose heap does not shrink below what lives longest.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Unused memory goes back within a second, not ten, and without waiting for the next allocation.
#[cfg(feature = "jemalloc")]
#[expect(unsafe_code, reason = "jemalloc finds its options by this symbol's name; it is a C string as it wants")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 60] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

/// sysexits.h: the command was used wrongly.
const EX_USAGE: u8 = 64;
/// sysexits.h: something is wrong with the configuration.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(fault) = broker_fault(&error) {
                drop(writeln!(io::stderr(), "error: {fault}\n\nFor more information, try '--help'."));
                return ExitCode::from(EX_USAGE);
            }
            let asked_for = !error.use_stderr();
            // Help goes to stdout, which may be closed already.
            drop(error.print());
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EX_USAGE) };
        }
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            logging::complain(&message);
            ExitCode::from(code)
        }
    }
}

/// What is wrong with a broker's address. clap's own words would repeat it, password and all.
fn broker_fault(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(argument) if argument.starts_with("--broker") => {
            Some(format!("{argument}: {}", std::error::Error::source(error)?))
        }
        _ => None,
    }
}

type Failure = (u8, String);

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => {
            let config = run_config(args).inspect_err(|(_, message)| webws::refuse_hand_over(message))?;
            serve(config, Extra::None)
        }
        Command::Check { config } => check(&config),
        Command::Upgrade { config, control } => ask(webws::upgrade, config.as_deref(), control),
        Command::Suspend { config, control } => ask(webws::suspend, config.as_deref(), control),
        Command::Log { level, config, control } => {
            ask(|path| webws::log_level(path, &level), config.as_deref(), control)
        }
        Command::Dev { broker, listen } => {
            let config = dev_config(broker, listen)?;
            serve(config, Extra::TestPage)
        }
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "webws", &mut out);
            print(&out)
        }
        Command::Man => {
            let mut out = Vec::new();
            man_page(&mut out).map_err(|error| (1, error.to_string()))?;
            print(&out)
        }
    }
}

fn run_config(args: RunArgs) -> Result<Config, Failure> {
    let mut config = read_config(args.config.as_deref())?;
    if !args.listen.is_empty() {
        config.listen = args.listen;
    }
    config.broker = args.broker.unwrap_or(config.broker);
    config.workers = args.workers.unwrap_or(config.workers);
    config.validate().map_err(|error| config_failure(&error))?;
    Ok(config)
}

fn read_config(file: Option<&Path>) -> Result<Config, Failure> {
    let (name, text) = match file {
        None => ("configuration".to_owned(), String::new()),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                (EX_CONFIG, format!("the configuration file {} cannot be read: {error}", path.display()))
            })?;
            (path.display().to_string(), text)
        }
    };
    // What is not UTF-8 in a variable of ours cannot be a setting.
    let environment = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    Config::read(&name, &text, environment).map_err(|error| config_failure(&error))
}

/// Asks a running webws for something, and prints what it says.
fn ask(
    ask: impl FnOnce(&Path) -> Result<String, String>,
    config: Option<&Path>,
    control: Option<PathBuf>,
) -> Result<(), Failure> {
    let control = match control {
        Some(path) => path,
        None => read_config(config)?.control.ok_or_else(no_control)?,
    };
    let told = ask(&control).map_err(|error| (1, error))?;
    print(format!("{told}\n").as_bytes())
}

fn no_control() -> Failure {
    (EX_CONFIG, "there is no control socket: set control = \"/run/webws-control/webws.sock\" or the like".to_owned())
}

fn config_failure(error: &ConfigError) -> Failure {
    (EX_CONFIG, error.to_string())
}

fn check(file: &Path) -> Result<(), Failure> {
    let config = read_config(Some(file))?;
    webws::Server::check(&config).map_err(|error| config_failure(&error))?;
    let settings = toml::to_string(&config).map_err(|error| (1, error.to_string()))?;
    print(format!("# {} is valid; the settings in force are:\n{settings}", file.display()).as_bytes())
}

/// What `webws dev` serves: the settings of the environment, but for where it listens and the
/// broker, which have defaults of their own.
fn dev_config(broker: Option<webws::Broker>, listen: Vec<webws::Listen>) -> Result<Config, Failure> {
    let mut config = read_config(None)?;
    if !listen.is_empty() {
        config.listen = listen;
    } else if std::env::var_os("WEBWS_LISTEN").is_none() {
        let socket = std::env::temp_dir().join("webws-dev.sock");
        config.listen = vec![webws::Listen::Tcp(([127, 0, 0, 1], 8080).into()), webws::Listen::Unix(socket)];
    }
    if let Some(broker) = broker {
        config.broker = broker;
    } else if std::env::var_os("WEBWS_BROKER").is_none() {
        config.broker = webws::Broker::Memory;
    }
    config.endpoints.push(EndpointConfig::plain());
    config.validate().map_err(|error| config_failure(&error))?;
    Ok(config)
}

fn serve(config: Config, extra: Extra) -> Result<(), Failure> {
    // Dropped at the end, which writes the last lines.
    let _logging = logging::start(&config.log).map_err(|error| (1, error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (1, format!("no runtime: {error}")))?;
    runtime.block_on(webws::run_service(config, extra)).map_err(|error| match error {
        ServerError::Config(error) => config_failure(&error),
        other => (1, other.to_string()),
    })
}

/// One page for all: the subcommands' options are sections of it.
fn man_page(out: &mut Vec<u8>) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = clap_mangen::Man::new(command.clone()).section("8");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let man = clap_mangen::Man::new(subcommand.clone());
        writeln!(out, ".SH \"WEBWS {}\"", subcommand.get_name().to_uppercase())?;
        writeln!(out, "{}", subcommand.get_about().map(ToString::to_string).unwrap_or_default())?;
        let mut options = Vec::new();
        man.render_options_section(&mut options)?;
        // The heading of the section above stands for it.
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "");
        out.extend_from_slice(options.as_bytes());
    }
    page.render_extra_section(out)?;
    page.render_version_section(out)
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err((1, format!("stdout: {error}"))),
        _ => Ok(()),
    }
}
