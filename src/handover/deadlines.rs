//! All deadlines of a hand-over in one table, and the order that they must have.
//!
//! The old process and the new one wait for each other in turn. The side that waits gives up later than the side
//! that works. So the reason of a failure reaches the log of the process that continues to serve.
//! May not enter: the steps themselves.

use std::time::Duration;

/// The new process introduces itself. Chosen: as long as a unit's start may take.
pub(super) const HELLO: Duration = Duration::from_secs(20);

/// The new process is connected and subscribed; the old process serves meanwhile.
pub(super) const READY: Duration = Duration::from_secs(45);

/// A worker of the new process makes its links.
pub(super) const LINKS: Duration = Duration::from_secs(10);

/// The same worker subscribes the channels of the sessions to come.
pub(super) const SUBSCRIBING: Duration = Duration::from_secs(20);

/// The same worker subscribes the channels added since, while the old process is quiesced.
pub(super) const LATE_SUBSCRIBING: Duration = Duration::from_secs(4);

/// A lost link is made again before the marker is set. Subscribing the marker's channel may take as long once more.
pub(super) const MARKER: Duration = Duration::from_secs(5);

/// The histories of all workers are sent, while they serve. Chosen: 64 MB of one worker take a fraction of a second.
pub(super) const HISTORIES: Duration = Duration::from_secs(5);

/// Handshakes that have begun become sessions before a worker is quiesced. Chosen: nginx sends whole requests, so
/// handshakes take milliseconds unless a client holds one back.
pub(super) const HANDSHAKES: Duration = Duration::from_secs(2);

/// Redis answers for the messages sent to it; later, the marker arrives. No session is served meanwhile.
pub(super) const STANDSTILL: Duration = Duration::from_secs(2);

/// One message of the other process arrives, while no session is served.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// The old process sets the marker, finishes its handshakes and is quiesced; the new process waits.
pub(super) const LONG_STEP: Duration = Duration::from_secs(60);

/// The old process ends after a successful hand-over.
pub(super) const LEAVING: Duration = Duration::from_secs(10);

/// The refusal of a process that has ended is read.
pub(super) const LAST_WORD: Duration = Duration::from_millis(200);

/// A process that seems to end gets this long to exit with its own status; then it is killed.
pub(super) const ENDING: Duration = Duration::from_millis(200);

/// A whole hand-over at its slowest. Each of its steps has several messages.
pub(crate) const LONGEST: Duration =
    sum(&[HELLO, READY, MARKER, MARKER, HISTORIES, STEP, HANDSHAKES, STANDSTILL, STEP, STEP, STEP, STEP]);

const fn sum(parts: &[Duration]) -> Duration {
    let mut total = Duration::ZERO;
    let mut rest = parts;
    while let [first, others @ ..] = rest {
        total = total.saturating_add(*first);
        rest = others;
    }
    total
}

const fn is_before(work: &[Duration], patience: Duration) -> bool {
    sum(work).as_millis() < patience.as_millis()
}

// The steps of the new process before `Ready`, and how long the old process waits for that message.
const _: () = assert!(is_before(&[LINKS, SUBSCRIBING, MARKER, MARKER], READY));
// The steps of the old process until it is quiesced, and how long the new process waits for them.
const _: () = assert!(is_before(&[MARKER, MARKER, HISTORIES, STEP, HANDSHAKES, STANDSTILL, STEP], LONG_STEP));
// Each step of a worker that the other process waits for as for one message.
const _: () = assert!(is_before(&[STANDSTILL], STEP));
const _: () = assert!(is_before(&[LATE_SUBSCRIBING], STEP));
// A process that has ended is waited for less long than one that works.
const _: () = assert!(is_before(&[LAST_WORD, ENDING], STEP));
const _: () = assert!(is_before(&[STEP], LEAVING));
