//! What the links to a node do with its replication log: one worker keeps it, and each reads it where a stream was cut
//! or for clients that come back. May not enter: which publications of a log are new to whom.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::connect::Settings;
use super::replay::{ReadLimits, ReplayError, keep, read_between};
use crate::position::{Logged, Milestone};

/// How much of a log is read for clients that come back: they wait for it in their handshake.
const READ_BACK: ReadLimits = ReadLimits { max_bytes: 16 << 20, max_time: Duration::from_secs(2) };

/// What a node's log has between two milestones.
pub(super) type Read = Result<Vec<Logged>, ReplayError>;

type Reading = Pin<Box<dyn Future<Output = Read>>>;

/// The readings of a node's log that are under way.
pub(super) struct LogReading {
    /// Keeps the log, if this worker does.
    upkeep: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// Continues the subscriber's stream.
    cut: Option<Reading>,
    /// For clients that come back, between these milestones.
    back: Option<(Milestone, Milestone, Reading)>,
}

impl LogReading {
    pub(super) fn new(settings: &Arc<Settings>, is_to_keep: bool) -> Self {
        let upkeep = is_to_keep.then(|| keep(settings.clone()));
        Self { upkeep: upkeep.map(|upkeep| Box::pin(upkeep) as _), cut: None, back: None }
    }

    /// Keeps the log.
    pub(super) fn poll_upkeep(&mut self, cx: &mut Context<'_>) {
        if let Some(upkeep) = &mut self.upkeep {
            let kept = upkeep.as_mut().poll(cx);
            debug_assert!(kept.is_pending(), "a log is kept for ever");
        }
    }

    /// No stream is to be continued.
    pub(super) fn forget_cut(&mut self) {
        self.cut = None;
    }

    /// What the log has between two milestones, to continue a stream that was cut.
    pub(super) fn poll_cut(
        &mut self,
        settings: &Arc<Settings>,
        from: Milestone,
        until: Milestone,
        cx: &mut Context<'_>,
    ) -> Poll<Read> {
        let cut = self.cut.get_or_insert_with(|| {
            let settings = settings.clone();
            Box::pin(async move { read_between(&settings, from, until, ReadLimits::default()).await })
        });
        let read = cut.as_mut().poll(cx);
        if read.is_ready() {
            self.cut = None;
        }
        read
    }

    /// Reads the log between two milestones, for clients that come back; false while it is read for others.
    pub(super) fn read_back(&mut self, settings: &Arc<Settings>, from: Milestone, until: Milestone) -> bool {
        if self.back.is_some() {
            return false;
        }
        let settings = settings.clone();
        let reading = async move { read_between(&settings, from, until, READ_BACK).await };
        self.back = Some((from, until, Box::pin(reading)));
        true
    }

    /// The two milestones, and what the log has between them.
    pub(super) fn poll_back(&mut self, cx: &mut Context<'_>) -> Poll<(Milestone, Milestone, Read)> {
        let Some((from, until, reading)) = &mut self.back else { return Poll::Pending };
        let Poll::Ready(read) = reading.as_mut().poll(cx) else { return Poll::Pending };
        let (from, until) = (*from, *until);
        self.back = None;
        Poll::Ready((from, until, read))
    }
}
