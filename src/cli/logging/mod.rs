//! The output of log lines: text on a terminal, the journal under systemd, JSON elsewhere. And their level,
//! which can change while the process runs.
//!
//! Every line goes into a `queue`, so that only the queue's writer waits for a reader. May not enter: what a line says.

mod journal;
mod queue;

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::journal::{Entries, Journald};
use self::queue::{Queue, Sink};

/// The level when the setting is invalid.
const DEFAULT_LEVEL: &str = "info";

/// How long the process may wait for the log's reader at its end.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Writes queued lines on drop, within [`LAST_LINES`].
#[derive(Debug)]
pub(crate) struct Logging(Arc<Queue>);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush(LAST_LINES);
    }
}

/// Starts logging to stderr or the journal, at `level`. An invalid level causes a warning, and `info` applies.
///
/// # Errors
/// When the writer's thread cannot be started.
pub(crate) fn start(level: &str) -> Result<Logging, String> {
    let (filter, fault) = match parse(level) {
        Ok(filter) => (filter, None),
        Err(fault) => (EnvFilter::new(DEFAULT_LEVEL), Some(fault)),
    };
    let current = if fault.is_some() { DEFAULT_LEVEL } else { level };
    let (filter, handle) = reload::Layer::new(filter);
    let (output, queue) = output().map_err(|error| format!("the log cannot be written: {error}"))?;
    tracing_subscriber::registry().with(output).with(filter).init();
    // The default hook writes to stderr from the thread that panics.
    std::panic::set_hook(Box::new(log_panic));
    if let Some(fault) = fault {
        tracing::warn!(
            filter = level,
            "log = \"{level}\" (WEBWS_LOG) is ignored: {fault}; the level is {DEFAULT_LEVEL}"
        );
    }
    let current = Mutex::new(current.to_owned());
    webws::binary::on_log_level(move |level| {
        let filter = parse(level)?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        let before = std::mem::replace(&mut *current.lock().unwrap_or_else(PoisonError::into_inner), level.to_owned());
        Ok(format!("the log level is {level} until the process ends; it was {before}"))
    });
    let flushed = queue.clone();
    webws::binary::on_log_flush(move |patience| flushed.flush(patience));
    Ok(Logging(queue))
}

/// Parses a level, or several `TARGET=LEVEL` separated by commas.
///
/// # Errors
/// What is wrong with the text. Unlike in `EnvFilter`, a bare name that is no level is a fault: `EnvFilter` would
/// take the name for a target and silence everything else.
fn parse(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: &str = "error, warn, info, debug, trace or off";
    let directives: Vec<_> = text.split(',').map(str::trim).collect();
    for directive in &directives {
        let level = directive.rsplit('=').next().unwrap_or(directive);
        let is_ours = !directive.contains('=') && (*directive == "webws" || directive.starts_with("webws::"));
        if !is_ours && (level.is_empty() || level.parse::<LevelFilter>().is_err()) {
            return Err(format!(
                "\"{level}\" is not a level: write {LEVELS}, or several TARGET=LEVEL, separated by commas"
            ));
        }
    }
    EnvFilter::try_new(directives.join(",")).map_err(|error| error.to_string())
}

type Output = Box<dyn Layer<Registry> + Send + Sync>;

fn output() -> io::Result<(Output, Arc<Queue>)> {
    if is_journal()
        && let Ok(journald) = Journald::connect()
    {
        let queue = Queue::start(journald, report)?;
        return Ok((Entries(queue.clone()).boxed(), queue));
    }
    let queue = Queue::start(Stderr, report)?;
    let lines = Lines(queue.clone());
    let layer = if io::stderr().is_terminal() {
        fmt::layer().with_writer(lines).with_target(false).boxed()
    } else {
        fmt::layer().json().flatten_event(true).with_writer(lines).with_target(false).boxed()
    };
    Ok((layer, queue))
}

fn report(dropped: u64) {
    tracing::warn!(dropped, "{dropped} log lines were dropped: the reader of the log did not take them in time");
}

struct Stderr;

impl Sink for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        io::stderr().write_all(line)
    }
}

struct Lines(Arc<Queue>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    /// `fmt::Layer` formats a whole line first, and writes it in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!(thread, place, %backtrace, "a panic in thread {thread} at {place}: {message}");
}

/// Writes a fault of the command to stderr, line by line, within [`LAST_LINES`]: the reader may hang. In the
/// journal the lines have the priority of errors (sd-daemon(3)).
pub(crate) fn complain(message: &str) {
    let priority = if is_journal() { "<3>" } else { "" };
    let lines: String = message.lines().map(|line| format!("{priority}webws: {line}\n")).collect();
    let (tell, written) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().spawn(move || {
        // A closed stderr has no reader.
        drop(io::stderr().write_all(lines.as_bytes()));
        tell.send(()).ok();
    });
    if thread.is_ok() {
        // After the deadline the exit code is the only answer.
        written.recv_timeout(LAST_LINES).ok();
    }
}

/// Whether stderr is the journal's stream: `JOURNAL_STREAM` holds its device and inode
/// (systemd.exec(5)).
pub(crate) fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_level_is_a_fault() {
        for good in ["info", "DEBUG", "off", "webws=debug", "warn,webws=debug", "info, webws::broker=debug", "webws"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for wrong in ["verbose", "", "debg", "webws=loud", "info,verbose", "=", "info;debug"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
