//! Reads what a log has between two milestones: [`Between`] decides, without I/O. May not enter: which of it is new to
//! whom.

use bytes::Bytes;

use super::error::ReplayError;
use super::log::Publication;
use super::reader::{ReadLimits, Reading};
use crate::broker::redis::connect::Settings;
use crate::broker::redis::milestone;
use crate::channel::Channel;
use crate::position::{LogPoint, Logged, Milestone, MilestoneId};

/// What a log has between two milestones, as far as it was read.
#[derive(Debug)]
pub(super) struct Between {
    from: MilestoneId,
    until: MilestoneId,
    /// Where the present history begins, until the log is read beyond that.
    promotion: Option<LogPoint>,
    is_behind_start: bool,
    logged: Vec<Logged>,
}

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
    let mut between = Between::new(from, until, reading.promotion(), reading.is_from_promotion());
    loop {
        if let Some(logged) = between.take(&reading.next().await?)? {
            return Ok(logged);
        }
    }
}

impl Between {
    /// For a log that has `promotion` behind its start, or begins at one.
    pub(super) fn new(from: Milestone, until: Milestone, promotion: Option<LogPoint>, is_from_promotion: bool) -> Self {
        // A promotion is no publication: the log is read from there on.
        let is_behind_start = from.is_promotion() && is_from_promotion;
        Self { from: from.id, until: until.id, promotion, is_behind_start, logged: Vec::new() }
    }

    /// Takes the next publication of the log. Returns what is between the milestones, once the second has come.
    ///
    /// # Errors
    /// The log does not have the first milestone.
    pub(super) fn take(&mut self, publication: &Publication<'_>) -> Result<Option<Vec<Logged>>, ReplayError> {
        if let Some(promotion) = self.promotion.take_if(|promotion| publication.offset > promotion.offset) {
            if !self.is_behind_start {
                return Err(ReplayError::Forgotten);
            }
            self.logged.push(Logged::Milestone(Milestone::of_promotion(promotion)));
        }
        let milestone = (publication.channel == milestone::CHANNEL.as_bytes())
            .then(|| std::str::from_utf8(publication.payload).ok()?.parse::<Milestone>().ok())
            .flatten();
        match milestone {
            Some(milestone) if milestone.id == self.until => {
                let logged = std::mem::take(&mut self.logged);
                return if self.is_behind_start { Ok(Some(logged)) } else { Err(ReplayError::Unknown) };
            }
            Some(milestone) if milestone.id == self.from => self.is_behind_start = true,
            Some(milestone) if self.is_behind_start => self.logged.push(Logged::Milestone(milestone)),
            None if self.is_behind_start => self.logged.push(Logged::Publication {
                channel: Channel::copy_from_slice(publication.channel),
                payload: Bytes::copy_from_slice(publication.payload),
            }),
            Some(_) | None => {}
        }
        Ok(None)
    }
}
