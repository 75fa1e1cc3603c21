//! The command line: runs the command that the arguments name, and maps its failure to an exit code.
//!
//! `arguments` defines the command line, `man` the man page; `settings` reads the file and the environment; `nginx`
//! asks a running pair; `logging` writes log lines. Compiled with the feature `cli` only. May not enter: how
//! connections are served (the library).

mod arguments;
mod logging;
mod man;
mod nginx;
mod settings;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use webws::binary::{self, ControlError, Extra, Reading, ServiceError};
use webws::{Config, ConfigError, ServerError};

use self::arguments::{Cli, Command, RunArgs};
use self::settings::Notes;

/// sysexits.h: the command was used wrongly.
const EX_USAGE: u8 = 64;
/// sysexits.h: the configuration has a fault.
const EX_CONFIG: u8 = 78;

/// Runs the command; returns the process' exit code.
pub(crate) fn run() -> ExitCode {
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
            // The message is logged once: by the process that serves, if it has been told.
            if !binary::has_refused_hand_over() {
                logging::complain(&message);
            }
            ExitCode::from(code)
        }
    }
}

/// The fault in a broker's address. clap's own message would repeat the address with its password.
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
            let (config, notes) = run_config(args).inspect_err(|(_, message)| binary::refuse_hand_over(message))?;
            serve(config, &notes, Extra::None)
        }
        Command::Check { nginx: Some(url), config, control, .. } => {
            let control = control_socket(config.as_deref(), control)?;
            let straight = nginx::check(&url, &control).map_err(|why| (1, why))?;
            print(format!("{straight}\n").as_bytes())
        }
        Command::Check { config, quiet, .. } => {
            let config = config.expect("clap requires --config without --nginx");
            check(&config, if quiet { Shown::Faults } else { Shown::All })
        }
        Command::Upgrade { config, control } => request(binary::upgrade, Logged::ByServer, config.as_deref(), control),
        Command::Suspend { config, control } => request(binary::suspend, Logged::ByServer, config.as_deref(), control),
        Command::Log { level, config, control } => {
            request(|path| binary::log_level(path, &level), Logged::Nowhere, config.as_deref(), control)
        }
        Command::Dev { config, broker, listen } => {
            let (config, notes) = dev_config(config.as_deref(), broker, listen)?;
            serve(config, &notes, Extra::TestPage)
        }
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "webws", &mut out);
            print(&out)
        }
        Command::Man => {
            let mut out = Vec::new();
            man::write(&mut out).map_err(|error| (1, error.to_string()))?;
            print(&out)
        }
    }
}

fn run_config(args: RunArgs) -> Result<(Config, Notes), Failure> {
    let mut reading = read_config(args.config.as_deref())?;
    let mut notes = Notes::of(&mut reading);
    notes.note_broker(args.broker.as_ref());
    if !args.listen.is_empty() {
        reading.config.listen = args.listen;
    }
    reading.config.broker = args.broker.unwrap_or(reading.config.broker);
    reading.config.workers = args.workers.unwrap_or(reading.config.workers);
    binary::check_reading(&reading).map_err(|error| config_failure(&error))?;
    Ok((reading.config, notes))
}

fn read_config(file: Option<&Path>) -> Result<Reading, Failure> {
    settings::read(file).map_err(|error| (EX_CONFIG, error))
}

/// Which process logs a failed request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Logged {
    ByServer,
    Nowhere,
}

/// Sends a request to a running webws, and prints the reply.
fn request(
    send: impl FnOnce(&Path) -> Result<String, ControlError>,
    logged: Logged,
    config: Option<&Path>,
    control: Option<PathBuf>,
) -> Result<(), Failure> {
    let control = control_socket(config, control)?;
    let reply = send(&control).map_err(|error| match error {
        // In `ExecReload=`: the server has logged it in the same journal.
        ControlError::Answered { .. } if logged == Logged::ByServer && logging::is_journal() => (1, String::new()),
        error => (1, error.to_string()),
    })?;
    print(format!("{reply}\n").as_bytes())
}

/// The control socket that the arguments name, or the configuration, or the one of the shipped units.
fn control_socket(config: Option<&Path>, control: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(path) = control {
        return Ok(path);
    }
    let reading = read_config(config)?;
    let faults: Vec<_> = reading.faults().map(ToString::to_string).collect();
    if !faults.is_empty() {
        return Err((EX_CONFIG, faults.join("\n")));
    }
    match reading.config.control {
        Some(path) => Ok(path),
        None => settings::shipped_control().map_err(|error| (EX_CONFIG, error)),
    }
}

fn config_failure(error: &ConfigError) -> Failure {
    (EX_CONFIG, error.to_string())
}

/// What `check` prints.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// The settings in force and what Redis says of its log, or all faults and warnings.
    All,
    /// Faults only.
    Faults,
}

fn check(file: &Path, shown: Shown) -> Result<(), Failure> {
    let mut reading = read_config(Some(file))?;
    let notes = Notes::of(&mut reading);
    let checked = binary::check_reading(&reading).map_err(|error| config_failure(&error));
    if shown == Shown::Faults {
        return checked;
    }
    let of_settings = reading.config.warnings();
    let mut stderr = io::stderr().lock();
    for warning in notes.warnings().chain(of_settings.iter().filter(|_| checked.is_ok()).map(String::as_str)) {
        drop(writeln!(stderr, "webws: warning: {warning}"));
    }
    drop(stderr);
    checked?;
    let settings = toml::to_string(&reading.config).map_err(|error| (1, error.to_string()))?;
    print(format!("# {} is valid; the settings in force are:\n{settings}", file.display()).as_bytes())?;
    // As comments: what is printed can be written into a file.
    let lines = runtime()?.block_on(binary::replay_outlook(&reading.config));
    print(lines.iter().map(|line| format!("# {line}\n")).collect::<String>().as_bytes())
}

fn dev_config(
    file: Option<&Path>,
    broker: Option<webws::BrokerConfig>,
    listen: Vec<webws::Listen>,
) -> Result<(Config, Notes), Failure> {
    let mut reading = read_config(file)?;
    let mut notes = Notes::of(&mut reading);
    notes.note_broker(broker.as_ref());
    settings::dev(&mut reading.config, file, broker, listen);
    binary::check_reading(&reading).map_err(|error| config_failure(&error))?;
    Ok((reading.config, notes))
}

fn serve(config: Config, notes: &Notes, extra: Extra) -> Result<(), Failure> {
    // Dropped at the end, which writes the last lines.
    let _logging = logging::start(&config.log).map_err(|error| (1, error))?;
    notes.log();
    runtime()?.block_on(binary::run_service(config, extra)).map_err(|error| match error {
        ServiceError::Server(ServerError::Config(error)) => config_failure(&error),
        ServiceError::Server(ServerError::Listen { ref source, .. })
            if extra == Extra::TestPage && source.kind() == io::ErrorKind::AddrInUse =>
        {
            (1, format!("{error}\nwebws dev --listen tcp:127.0.0.1:8081 listens elsewhere"))
        }
        other => (1, other.to_string()),
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| (1, format!("the runtime cannot start: {error}")))
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err((1, format!("cannot write to stdout: {error}"))),
        _ => Ok(()),
    }
}
