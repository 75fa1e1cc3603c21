//! Warnings that could repeat per connection: told at once and then once a minute, each time with how many there
//! were since the last line. Also what is summed up: refused handshakes by reason, and the gaps by a restart.
//!
//! Statics, because a log is the process'. Workers [`tell_due`] what is left over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::close::CloseReason;
use crate::throttle::Throttle;

/// Sessions that were not admitted, because there are as many as there may be.
pub(crate) static FULL: Notice = Notice::new(|count, max_sessions| {
    tracing::warn!(
        count,
        max_sessions,
        "the server is full: {count} handshakes got 503, because {max_sessions} WebSockets are open \
         (limits.max_sessions, or the descriptor limit); /readyz says it"
    );
});

/// Connections that were refused before their request was read.
pub(crate) static OVERFLOW: Notice = Notice::new(|count, max_handshakes| {
    tracing::warn!(
        count,
        max_handshakes,
        "too many handshakes wait: {count} connections got 503, because {max_handshakes} wait for one worker \
         (limits.max_handshakes)"
    );
});

/// Sessions closed because too many bytes waited.
static SLOW: Notice = Notice::new(|count, _| {
    tracing::warn!(
        count,
        "{count} slow WebSockets were closed with 1013: more than max_queue_bytes waited for each, because its client \
         reads too slowly"
    );
});

/// Sessions closed because their sockets took nothing.
static STALLED: Notice = Notice::new(|count, _| {
    tracing::warn!(
        count,
        "{count} stalled WebSockets were closed with 1013: the client of each read nothing for stall_timeout"
    );
});

/// A session has ended: the client's slowness is told.
pub(crate) fn session_closed(reason: CloseReason) {
    match reason {
        CloseReason::SlowConsumer => SLOW.add(0),
        CloseReason::Stalled => STALLED.add(0),
        _ => {}
    }
}

const ALL: [&Notice; 4] = [&FULL, &OVERFLOW, &SLOW, &STALLED];

/// A warning with a count.
#[derive(Debug)]
pub(crate) struct Notice {
    throttle: Throttle,
    untold: AtomicU64,
    /// A number for the line, the same each time.
    detail: AtomicU64,
    tell: fn(u64, u64),
}

impl Notice {
    const fn new(tell: fn(u64, u64)) -> Self {
        Self { throttle: Throttle::per_minute(), untold: AtomicU64::new(0), detail: AtomicU64::new(0), tell }
    }

    /// Counts one more; the first of a minute is told at once.
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
        // Another thread may have told it.
        match self.untold.swap(0, Ordering::Relaxed) {
            0 => {}
            count => (self.tell)(count, self.detail.load(Ordering::Relaxed)),
        }
    }
}

/// How long refused handshakes are summed up.
const SUMMED_UP: Duration = Duration::from_secs(60);

/// Reasons told apart in one line; the rest are summed up as others, because reasons can quote Redis.
const MAX_REASONS: usize = 16;

static REFUSED: Mutex<Refused> = Mutex::new(Refused { since: None, counts: BTreeMap::new() });

struct Refused {
    /// Since the first of these.
    since: Option<Instant>,
    counts: BTreeMap<(u16, String), u64>,
}

/// A handshake was refused: with that status, 0 when its connection ended before an answer.
pub(crate) fn handshake_refused(status: u16, why: &str) {
    let mut refused = lock(&REFUSED);
    refused.since.get_or_insert_with(Instant::now);
    let key = (status, why.to_owned());
    let key = if refused.counts.len() < MAX_REASONS || refused.counts.contains_key(&key) {
        key
    } else {
        (0, "other reasons".to_owned())
    };
    *refused.counts.entry(key).or_default() += 1;
}

/// What was missed in a gap.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missed {
    /// The longest.
    pub(crate) length_ms: u64,
    pub(crate) channels: usize,
    /// WebSockets that are closed for it.
    pub(crate) closing: usize,
}

/// How long the workers' gaps by one restart are gathered.
const GATHERED: Duration = Duration::from_millis(500);

static GAPS: Mutex<Gaps> = Mutex::new(Gaps { since: None, missed: BTreeMap::new() });

/// Gaps by a restart, by server.
struct Gaps {
    /// Since the first of these.
    since: Option<Instant>,
    missed: BTreeMap<String, Missed>,
}

/// A worker's link was away. Told at once: the line's time is the gap's end.
pub(crate) fn gap(server: &str, missed: Missed) {
    let Missed { length_ms, channels, closing } = missed;
    tracing::warn!(
        server,
        length_ms,
        channels,
        closing,
        "a gap of {length_ms} ms at {server}: messages published meanwhile on {channels} channels of one worker may be \
         missing; {closing} WebSockets are closed for it (on_gap)"
    );
}

/// There was no process for a moment, as an operator wanted: told once for all workers, and no warning.
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
                "a gap of {length_ms} ms at {server} by the restart: messages published meanwhile on {channels} \
                 channels may be missing; {closing} WebSockets are closed for it (on_gap)"
            );
        }
    }
}

/// Tells what is due: called some times a second.
pub(crate) fn tell_due() {
    ALL.iter().for_each(|notice| notice.tell_due());
    let mut gaps = lock(&GAPS);
    if gaps.since.is_some_and(|since| since.elapsed() >= GATHERED) {
        gaps.tell();
    }
    drop(gaps);
    let mut refused = lock(&REFUSED);
    if refused.since.is_some_and(|since| since.elapsed() >= SUMMED_UP) {
        refused.tell();
    }
}

/// Tells what is left, at the end.
pub(crate) fn tell_all() {
    ALL.iter().for_each(|notice| notice.tell());
    lock(&GAPS).tell();
    lock(&REFUSED).tell();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Refused {
    fn tell(&mut self) {
        let Some(since) = self.since.take() else { return };
        let counts = std::mem::take(&mut self.counts);
        let seconds = since.elapsed().as_secs().max(1);
        let refused: u64 = counts.values().sum();
        let reasons = summary(&counts);
        tracing::info!(refused, seconds, reasons, "{refused} handshakes were refused within {seconds} s: {reasons}");
    }
}

/// The most frequent first.
fn summary(counts: &BTreeMap<(u16, String), u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let one = |((status, why), count): &(&(u16, String), &u64)| match status {
        0 => format!("{count} without an answer ({why})"),
        _ => format!("{count} with {status} ({why})"),
    };
    counts.iter().map(one).collect::<Vec<_>>().join(", ")
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
    fn reasons_stand_by_their_frequency() {
        let counts =
            [((404, "nothing there".to_owned()), 1), ((503, "full".to_owned()), 12), ((0, "gone".to_owned()), 2)];
        let counts = BTreeMap::from(counts);
        assert_eq!(summary(&counts), "12 with 503 (full), 2 without an answer (gone), 1 with 404 (nothing there)");
    }
}
