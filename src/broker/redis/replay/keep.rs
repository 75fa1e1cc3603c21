//! Makes a node's replication log where none is, and keeps it: a node drops its log `repl-backlog-ttl` seconds after
//! its last replica left, and takes another replication id. A link that attaches for a moment starts that time again. A
//! visit also tells when the next one is due. May not enter: the wait between two visits (`keeper.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::error::ReplayError;
use super::info::{Continuation, Role};
use super::link::{ReplayLink, Snapshot, look};
use crate::broker::redis::connect::Settings;

/// The longest pause between two visits. Chosen: a sixth of Redis' default `repl-backlog-ttl`, for a node that does not
/// permit CONFIG GET.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What a visit did.
#[derive(Debug)]
pub(crate) struct Upkeep {
    /// Whether the visit made the log.
    pub(crate) is_new: bool,
    /// The pause before the next visit.
    pub(crate) pause: Duration,
}

/// Visits a node: makes its log, or keeps the log for another `repl-backlog-ttl`. The visit ends before it returns.
///
/// # Errors
/// The node has no log that can be kept, or does not permit the visit.
pub(crate) async fn visit(settings: &Settings) -> Result<Upkeep, ReplayError> {
    let limit = settings.response_timeout;
    timeout(limit, visiting(settings)).await.unwrap_or(Err(ReplayError::TooSlow(limit)))
}

async fn visiting(settings: &Settings) -> Result<Upkeep, ReplayError> {
    let mut link = ReplayLink::connect(settings).await?;
    let state = link.state().await?;
    let pause = pause(ttl(&mut link).await?);
    if state.kept.is_some() && (state.role == Role::Replica || state.replicas > 0) {
        // It keeps the log for as long as it has a master or a replica. A Sentinel may take a visitor for a replica.
        return Ok(Upkeep { is_new: false, pause });
    }
    let snapshot = link.prepare().await?;
    if state.kept.is_some() {
        let end = Continuation { replid: state.replid, offset: state.offset, headroom: 0, former_end: None };
        link.continue_log(&end).await?;
        return Ok(Upkeep { is_new: false, pause });
    }
    if snapshot == Snapshot::Data {
        return Err(ReplayError::NeedsReplica);
    }
    link.make_log().await?;
    drop(link);
    if look(settings).await?.kept.is_some() { Ok(Upkeep { is_new: true, pause }) } else { Err(ReplayError::NoLog) }
}

/// The pause between two visits of a node that drops its log `ttl` after the last one; zero is never, `None` unknown.
fn pause(ttl: Option<Duration>) -> Duration {
    match ttl {
        // Even then a node that was restarted has none.
        None | Some(Duration::ZERO) => LONGEST_PAUSE,
        Some(ttl) => (ttl / 3).clamp(Duration::from_millis(300), LONGEST_PAUSE),
    }
}

/// The node's `repl-backlog-ttl`, if it tells.
async fn ttl(link: &mut ReplayLink) -> Result<Option<Duration>, ReplayError> {
    let mut get = redis::cmd("CONFIG");
    get.arg("GET").arg("repl-backlog-ttl");
    let Ok(answer) = link.ask(&get).await? else { return Ok(None) };
    let settings: BTreeMap<String, String> = redis::from_redis_value(answer).unwrap_or_default();
    let seconds = settings.get("repl-backlog-ttl").and_then(|seconds| seconds.parse().ok());
    Ok(seconds.map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_come_well_within_the_time_that_a_log_is_kept() {
        for (ttl, expected) in [
            (None, 600_000),
            (Some(0), 600_000),
            (Some(3_600), 600_000),
            (Some(60), 20_000),
            (Some(3), 1_000),
            (Some(1), 333),
        ] {
            assert_eq!(pause(ttl.map(Duration::from_secs)).as_millis(), expected, "{ttl:?}");
        }
    }
}
