//! Reads a node's replication log from a point on. The link lives for as long as the reading does: to the node it looks
//! like a replica (`min-replicas-to-write`, Sentinel's list), and a link that stayed would count as one.
//!
//! A reader acknowledges nothing: a node waits `repl-timeout` (60 s) before it closes a silent replica, far longer than
//! a reading may take, and an offset that is acknowledged counts for WAIT. May not enter: what a publication means.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use super::error::ReplayError;
use super::link::{ReplayLink, Snapshot};
use super::log::{Decoder, Found, Publication};
use crate::broker::redis::connect::Settings;
use crate::position::LogPoint;

/// Bytes after which the worker's other work gets a turn. Chosen: less than a millisecond of decoding.
const TURN_BYTES: u64 = 256 << 10;

/// How much of a log may be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimits {
    /// From the point on; also the most that is held of one publication.
    pub(crate) max_bytes: u64,
    /// From the first attempt to connect on.
    pub(crate) max_time: Duration,
}

impl Default for ReadLimits {
    /// Chosen: 16 times Redis' default log, and the time for which a client's reconnect may take anyway.
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_time: Duration::from_secs(5) }
    }
}

/// A log that is read. Dropping it closes the link.
pub(crate) struct Reading {
    link: ReplayLink,
    decoder: Decoder,
    limits: ReadLimits,
    end: Instant,
    start: u64,
    promotion: Option<LogPoint>,
    is_from_promotion: bool,
    /// The log's offset when others had a turn last.
    turn: u64,
}

impl Reading {
    /// Opens the log from a point on. Under Sentinel, a replica is asked before the master: a Sentinel may take a
    /// reader at the master for a replica.
    ///
    /// # Errors
    /// The log does not reach back that far, or cannot be read: nothing was asked of the node that costs more than an
    /// answer.
    pub(crate) async fn open(settings: &Settings, from: LogPoint, limits: ReadLimits) -> Result<Self, ReplayError> {
        let (start, end) = (Instant::now(), Instant::now() + limits.max_time);
        let at_replica = async {
            let Some(replica) = settings.replica().await else { return Ok(None) };
            Self::open_at(&replica, from, limits, end).await.map(Some)
        };
        match in_time(start + limits.max_time / 2, limits, at_replica).await {
            Ok(Some(reading)) => return Ok(reading),
            Ok(None) => {}
            // It may be behind its master.
            Err(error) => tracing::debug!(%error, "the replica's replication log is not read: {error}"),
        }
        in_time(end, limits, Self::open_at(settings, from, limits, end)).await
    }

    /// As [`Reading::open`], at the master.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn open_at_master(
        settings: &Settings,
        from: LogPoint,
        limits: ReadLimits,
    ) -> Result<Self, ReplayError> {
        let end = Instant::now() + limits.max_time;
        in_time(end, limits, Self::open_at(settings, from, limits, end)).await
    }

    async fn open_at(
        settings: &Settings,
        from: LogPoint,
        limits: ReadLimits,
        end: Instant,
    ) -> Result<Self, ReplayError> {
        let mut link = ReplayLink::connect(settings).await?;
        let state = link.state().await?;
        let continuation = state.can_continue(from)?;
        if state.offset.saturating_sub(from.offset) > limits.max_bytes {
            return Err(ReplayError::TooMuch(limits.max_bytes));
        }
        let is_certain = state.kept.is_some_and(|kept| kept.is_certain(&continuation));
        if link.prepare().await? == Snapshot::Data && !is_certain {
            return Err(ReplayError::Uncertain);
        }
        let decoder = link.continue_log(&continuation).await?;
        Ok(Self {
            link,
            decoder,
            limits,
            end,
            start: from.offset,
            promotion: continuation.former_end.and(state.promotion()),
            is_from_promotion: state.promotion() == Some(from),
            turn: from.offset,
        })
    }

    /// After a failover, or a restart that kept the history: the point at which the present history continues the former
    /// one, if the log is read from a point in that. Publications behind it were made at the present master. Those that
    /// links heard of the former one may be more than the log has up to there: a count of them must not be applied to
    /// what follows.
    pub(crate) fn promotion(&self) -> Option<LogPoint> {
        self.promotion
    }

    /// Whether the log is read from where the present history began.
    pub(crate) fn is_from_promotion(&self) -> bool {
        self.is_from_promotion
    }

    /// How many bytes of the log were decoded.
    pub(crate) fn bytes(&self) -> u64 {
        self.decoder.offset() - self.start
    }

    /// The next publication. At the end of the log, waits for the next one that is made.
    ///
    /// # Errors
    /// A limit is reached, the link ended, or the bytes are no log. What was read before is of use then only if the
    /// caller needs no more.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Publication<'_>, ReplayError> {
        let found = self.find().await?;
        Ok(self.decoder.publication(&found))
    }

    async fn find(&mut self) -> Result<Found, ReplayError> {
        loop {
            if let Some(found) = self.decoder.next().map_err(|_| ReplayError::Malformed(self.decoder.offset()))? {
                return Ok(found);
            }
            let received = self.decoder.received();
            if received - self.start > self.limits.max_bytes {
                return Err(ReplayError::TooMuch(self.limits.max_bytes));
            }
            if received - self.turn >= TURN_BYTES {
                self.turn = received;
                yield_now().await;
            }
            in_time(self.end, self.limits, self.link.fill(&mut self.decoder)).await?;
        }
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("start", &self.start).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// Limits a step of a reading.
async fn in_time<T>(
    end: Instant,
    limits: ReadLimits,
    act: impl Future<Output = Result<T, ReplayError>>,
) -> Result<T, ReplayError> {
    timeout_at(end, act).await.unwrap_or_else(|_| Err(ReplayError::TooSlow(limits.max_time)))
}
