//! Warnings that could repeat per connection: logged at once and then once a minute, each time with the count since the
//! last line. Also the line of a gap, and sums: refused handshakes by reason, and gaps caused by a restart.
//!
//! Statics, because the process has one log. Workers call [`tell_due`] to log what is due, a process that ends calls
//! [`tell_all`]. May not enter: a warning that one fault of the process causes once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::throttle::Throttle;

/// Sessions that were not admitted, because the number of sessions is at its limit.
pub(crate) static FULL: Notice = Notice::new(|count, max_sessions| {
    tracing::warn!(
        count,
        max_sessions,
        "the server is full: {count} handshakes got 503, because {max_sessions} WebSockets are open \
         (limits.max_sessions, or the descriptor limit); /readyz says \"full\""
    );
});

/// Connections that were refused before webws read their requests.
pub(crate) static OVERFLOW: Notice = Notice::new(|count, max_handshakes| {
    tracing::warn!(
        count,
        max_handshakes,
        "too many handshakes wait: {count} connections got 503, because {max_handshakes} wait for one worker \
         (limits.max_handshakes)"
    );
});

/// Sessions closed because the process had spent its memory.
pub(crate) static MEMORY: Notice = Notice::new(|count, memory| {
    tracing::warn!(
        count,
        memory,
        "memory is short: {count} WebSockets that used most of it were closed with 1013, because more than {memory} \
         bytes were in use (limits.memory)"
    );
});

/// Handshakes refused because the process had spent its memory.
pub(crate) static NO_MEMORY: Notice = Notice::new(|count, memory| {
    tracing::warn!(
        count,
        memory,
        "memory is short: {count} handshakes got 503, because more than {memory} bytes were in use (limits.memory)"
    );
});

/// Sessions closed because too many bytes waited.
static SLOW: Notice = Notice::new(|count, _| {
    tracing::warn!(
        count,
        "{count} slow WebSockets were closed with 1013: their clients read too slowly, and more than max_queue_bytes \
         waited for each"
    );
});

/// Sessions closed because their sockets took nothing.
static STALLED: Notice = Notice::new(|count, _| {
    tracing::warn!(
        count,
        "{count} stalled WebSockets were closed with 1013: their clients read nothing for stall_timeout"
    );
});

/// Counts a session that ended because of a slow client.
pub(crate) fn session_closed(reason: CloseReason) {
    match reason {
        CloseReason::SlowConsumer => SLOW.add(0),
        CloseReason::Stalled => STALLED.add(0),
        _ => {}
    }
}

const ALL: [&Notice; 6] = [&FULL, &OVERFLOW, &MEMORY, &NO_MEMORY, &SLOW, &STALLED];

/// A warning with a count.
#[derive(Debug)]
pub(crate) struct Notice {
    throttle: Throttle,
    untold: AtomicU64,
    /// A limit for the line, the same each time.
    detail: AtomicU64,
    tell: fn(u64, u64),
}

impl Notice {
    const fn new(tell: fn(u64, u64)) -> Self {
        Self { throttle: Throttle::per_minute(), untold: AtomicU64::new(0), detail: AtomicU64::new(0), tell }
    }

    /// Counts one more, and logs the first of a minute at once.
    pub(crate) fn add(&self, detail: usize) {
        self.detail.store(detail as u64, Ordering::Relaxed);
        self.untold.fetch_add(1, Ordering::Relaxed);
        self.tell_due();
    }

    fn tell_due(&self) {
        if self.untold.load(Ordering::Relaxed) > 0 && self.throttle.allows() {
            self.tell();
        }
    }

    fn tell(&self) {
        // Another thread may have logged the count.
        match self.untold.swap(0, Ordering::Relaxed) {
            0 => {}
            count => (self.tell)(count, self.detail.load(Ordering::Relaxed)),
        }
    }
}

/// The period over which refused handshakes are summed.
const SUMMED_UP: Duration = Duration::from_secs(60);

/// Maximum of different reasons in one line. The rest count as others, because reasons can quote Redis.
const MAX_REASONS: usize = 16;

static REFUSALS: Mutex<Refusals> = Mutex::new(Refusals { since: None, counts: BTreeMap::new(), others: 0 });

/// Refused handshakes.
struct Refusals {
    /// When the first of these was refused.
    since: Option<Instant>,
    counts: Counts,
    /// Refusals with a reason beyond the first [`MAX_REASONS`].
    others: u64,
}

/// By status and reason.
type Counts = BTreeMap<(u16, String), u64>;

/// Counts a refused handshake. `status` is 0 when the connection ended before an answer.
pub(crate) fn handshake_refused(status: u16, why: &str) {
    lock(&REFUSALS).add(status, why);
}

/// The extent of a gap.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The longest gap of those added.
    pub(crate) length_ms: u64,
    pub(crate) channels: usize,
    /// WebSockets that are closed because of the gap.
    pub(crate) closing: usize,
}

/// The period over which the workers' gaps of one restart are summed.
const GATHERED: Duration = Duration::from_millis(500);

static GAPS: Mutex<Gaps> = Mutex::new(Gaps { since: None, missed: BTreeMap::new() });

/// Gaps caused by a restart, by node.
struct Gaps {
    /// When the first of these was added.
    since: Option<Instant>,
    missed: BTreeMap<String, Missed>,
}

/// Logs the gap of a worker's link at once, because the line's time is the gap's end.
pub(crate) fn gap(server: &str, missed: Missed) {
    let Missed { length_ms, channels, closing } = missed;
    tracing::warn!(
        server,
        length_ms,
        channels,
        closing,
        "a gap of {length_ms} ms at {server}: messages published meanwhile on {channels} channels of one worker may be \
         missing; {closing} WebSockets are closed because of the gap (on_gap)"
    );
}

/// Adds a gap caused by a restart. An operator wanted the restart, so all workers share one line at info.
pub(crate) fn restart_gap(server: &str, missed: Missed) {
    let mut gaps = lock(&GAPS);
    gaps.since.get_or_insert_with(Instant::now);
    gaps.missed.entry(server.to_owned()).or_default().add(missed);
}

impl Missed {
    fn add(&mut self, other: Self) {
        self.length_ms = self.length_ms.max(other.length_ms);
        self.channels += other.channels;
        self.closing += other.closing;
    }
}

impl Gaps {
    fn tell(&mut self) {
        self.since = None;
        for (server, Missed { length_ms, channels, closing }) in std::mem::take(&mut self.missed) {
            tracing::info!(
                server,
                length_ms,
                channels,
                closing,
                "a gap of {length_ms} ms at {server} during the restart: messages published meanwhile on {channels} \
                 channels may be missing; {closing} WebSockets are closed because of the gap (on_gap)"
            );
        }
    }
}

/// Logs all lines that are due. Called several times a second.
pub(crate) fn tell_due() {
    ALL.iter().for_each(|notice| notice.tell_due());
    let mut gaps = lock(&GAPS);
    if gaps.since.is_some_and(|since| since.elapsed() >= GATHERED) {
        gaps.tell();
    }
    drop(gaps);
    let mut refused = lock(&REFUSALS);
    if refused.since.is_some_and(|since| since.elapsed() >= SUMMED_UP) {
        refused.tell();
    }
}

/// Logs the rest, at the end of the process.
pub(crate) fn tell_all() {
    ALL.iter().for_each(|notice| notice.tell());
    lock(&GAPS).tell();
    lock(&REFUSALS).tell();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Refusals {
    fn add(&mut self, status: u16, why: &str) {
        self.since.get_or_insert_with(Instant::now);
        let key = (status, why.to_owned());
        if self.counts.len() < MAX_REASONS || self.counts.contains_key(&key) {
            *self.counts.entry(key).or_default() += 1;
        } else {
            self.others += 1;
        }
    }

    fn tell(&mut self) {
        let Some(since) = self.since.take() else { return };
        let (counts, others) = (std::mem::take(&mut self.counts), std::mem::take(&mut self.others));
        let seconds = since.elapsed().as_secs().max(1);
        let refused = counts.values().sum::<u64>() + others;
        let reasons = summary(&counts, others);
        tracing::info!(refused, seconds, reasons, "{refused} handshakes were refused within {seconds} s: {reasons}");
    }
}

/// The reasons with their counts, the most frequent first, then the number of all others.
fn summary(counts: &Counts, others: u64) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let one = |((status, why), count): (&(u16, String), &u64)| match status {
        0 => format!("{count} without an answer ({why})"),
        _ => format!("{count} with {status} ({why})"),
    };
    let mut reasons: Vec<_> = counts.into_iter().map(one).collect();
    if others > 0 {
        reasons.push(format!("{others} for other reasons"));
    }
    reasons.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    static TOLD: AtomicU64 = AtomicU64::new(0);
    static NOTICE: Notice = Notice::new(|count, detail| {
        TOLD.store(count * 1_000 + detail, Ordering::Relaxed);
    });

    #[test]
    fn the_first_is_told_at_once_and_the_rest_by_their_number() {
        NOTICE.add(7);
        assert_eq!(TOLD.load(Ordering::Relaxed), 1_007);
        NOTICE.add(7);
        NOTICE.add(7);
        assert_eq!(TOLD.load(Ordering::Relaxed), 1_007, "within the same minute");
        NOTICE.tell();
        assert_eq!(TOLD.load(Ordering::Relaxed), 2_007);
    }

    #[test]
    fn reasons_are_sorted_by_their_frequency() {
        let counts =
            [((404, "nothing there".to_owned()), 1), ((503, "full".to_owned()), 12), ((0, "gone".to_owned()), 2)];
        let counts = BTreeMap::from(counts);
        assert_eq!(summary(&counts, 0), "12 with 503 (full), 2 without an answer (gone), 1 with 404 (nothing there)");
    }

    #[test]
    fn reasons_beyond_the_limit_are_other_reasons_whatever_their_status() {
        let mut refused = Refusals { since: None, counts: BTreeMap::new(), others: 0 };
        for reason in 0..MAX_REASONS + 3 {
            refused.add(503, &reason.to_string());
        }
        refused.add(503, "0");
        assert_eq!((refused.counts.len(), refused.others), (MAX_REASONS, 3));
        let summary = summary(&refused.counts, refused.others);
        assert!(summary.starts_with("2 with 503 (0), ") && summary.ends_with(", 3 for other reasons"), "{summary}");
        assert!(!summary.contains("without an answer"), "{summary}");
    }
}
