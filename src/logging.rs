//! Where log lines go: text on a terminal, the journal under systemd, JSON elsewhere.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

/// Starts logging to stderr or the journal. `WEBWS_LOG` sets the level, default `info`.
///
/// # Errors
/// When `WEBWS_LOG` is no filter.
pub(crate) fn start() -> Result<(), String> {
    let filter = match std::env::var("WEBWS_LOG") {
        Ok(text) => EnvFilter::try_new(text).map_err(|error| format!("WEBWS_LOG: {error}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::registry().with(output()).with(filter).init();
    Ok(())
}

fn output() -> Box<dyn Layer<Registry> + Send + Sync> {
    if io::stderr().is_terminal() {
        return fmt::layer().with_writer(io::stderr).with_target(false).boxed();
    }
    if is_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        return journal.boxed();
    }
    fmt::layer().json().flatten_event(true).with_writer(io::stderr).with_target(false).boxed()
}

/// Whether stderr is the journal's stream: `JOURNAL_STREAM` holds its device and inode
/// (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
