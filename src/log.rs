//! Connects the library with the process' log: the number of dropped lines, the level that `webws log` sets on the
//! control socket, and the flush before another process logs as well. The program owns the subscriber of tracing.
//!
//! Statics, because a process has one log, however many servers run in the process. May not enter: the output of lines
//! (`cli/logging`).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type SetLevel = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;
type Flush = Box<dyn Fn(Duration) + Send + Sync>;

static DROPPED: AtomicU64 = AtomicU64::new(0);
static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();
static FLUSH: OnceLock<Flush> = OnceLock::new();

/// How long a hand-over waits for the log's reader.
const PATIENCE: Duration = Duration::from_millis(200);

/// Counts a log line that was dropped because the log's reader did not take the line in time.
/// [`Metrics`](crate::Metrics) show the sum. For programs with a lossy log, as the binary.
pub fn count_dropped_log_line() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// Log lines dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Sets what `webws log LEVEL` does in this process: `set` gets the level, and returns a sentence for the operator.
/// Only the first call counts.
pub fn on_log_level(set: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static) {
    // A program starts its one subscriber once.
    SET_LEVEL.set(Box::new(set)).ok();
}

/// Sets how to write the log's queue before another process logs as well: `flush` returns when the queue is empty, or
/// after the given time. Only the first call counts.
pub fn on_log_flush(flush: impl Fn(Duration) + Send + Sync + 'static) {
    // As above.
    FLUSH.set(Box::new(flush)).ok();
}

/// Writes queued lines, if the reader takes them soon. Blocks: not for async code.
pub(crate) fn flush() {
    if let Some(flush) = FLUSH.get() {
        flush(PATIENCE);
    }
}

/// Changes the level.
///
/// # Errors
/// The level is invalid, or this program's level cannot change.
pub(crate) fn set_level(level: &str) -> Result<String, String> {
    SET_LEVEL.get().map_or_else(|| Err("the log level of this program cannot change".to_owned()), |set| set(level))
}
