//! Reads what a log has between two milestones. May not enter: which of it is new to whom.

use bytes::Bytes;

use super::error::ReplayError;
use super::reader::{ReadLimits, Reading};
use crate::broker::redis::connect::Settings;
use crate::broker::redis::milestone;
use crate::channel::Channel;
use crate::position::{Logged, Milestone};

/// Reads what was published between two milestones.
///
/// # Errors
/// The log cannot be read, or does not have one of the milestones.
pub(crate) async fn read_between(
    settings: &Settings,
    from: Milestone,
    until: Milestone,
    limits: ReadLimits,
) -> Result<Vec<Logged>, ReplayError> {
    let log = from.log.ok_or(ReplayError::Unplaced)?;
    let mut reading = if from.is_promotion() {
        // Only a master knows where it was promoted.
        Reading::open_at_master(settings, log, limits).await?
    } else {
        Reading::open(settings, log, limits).await?
    };
    let mut promotion = reading.promotion();
    // A promotion is no publication: the log is read from there on.
    let (mut is_behind_start, mut logged) = (from.is_promotion() && reading.is_from_promotion(), Vec::new());
    loop {
        let publication = reading.next().await?;
        if let Some(promotion) = promotion.take_if(|promotion| publication.offset > promotion.offset) {
            if !is_behind_start {
                return Err(ReplayError::Forgotten);
            }
            logged.push(Logged::Milestone(Milestone::of_promotion(promotion)));
        }
        let milestone = (publication.channel == milestone::CHANNEL.as_bytes())
            .then(|| std::str::from_utf8(publication.payload).ok()?.parse::<Milestone>().ok())
            .flatten();
        match milestone {
            Some(milestone) if milestone.id == until.id => {
                return if is_behind_start { Ok(logged) } else { Err(ReplayError::Unknown) };
            }
            Some(milestone) if milestone.id == from.id => is_behind_start = true,
            Some(milestone) if is_behind_start => logged.push(Logged::Milestone(milestone)),
            None if is_behind_start => logged.push(Logged::Publication {
                channel: Channel::copy_from_slice(publication.channel),
                payload: Bytes::copy_from_slice(publication.payload),
            }),
            Some(_) | None => {}
        }
    }
}
