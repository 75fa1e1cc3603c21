//! Reads a node's replication log, for tests against real servers. May not enter: a test's judgement.

use std::fmt::Debug;
use std::time::Duration;

use crate::broker::redis::replay::{
    LogState, Publication, ReadLimits, Reading, ReplayError, Upkeep, look, publications, visit,
};
use crate::broker::redis::{NodeSettings, Replid, SystemdCredentials};
use crate::config::{BrokerConfig, RedisConfig};
use crate::position::LogPoint;

/// A node whose log can be read.
#[derive(Debug)]
pub struct Log(NodeSettings);

/// A point in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The replication id, in hexadecimal digits.
    pub replid: [u8; 40],
    /// The offset of the last byte before the point.
    pub offset: u64,
}

/// A publication that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The channel's name.
    pub channel: Vec<u8>,
    /// What was published.
    pub payload: Vec<u8>,
    /// The offset of the log behind it.
    pub offset: u64,
}

impl Point {
    fn in_log(self) -> LogPoint {
        let replid = std::str::from_utf8(&self.replid).ok().and_then(Replid::parse);
        replid.expect("the digits of an id").at(self.offset)
    }
}

impl Log {
    /// The log of the node at `url`.
    ///
    /// # Panics
    /// The address is none.
    #[must_use]
    pub fn at(url: &str) -> Self {
        let BrokerConfig::Redis(urls) = url.parse().expect("an address") else { panic!("an address of Redis") };
        let url = urls.first().expect("one address at least");
        let settings = NodeSettings::try_new(url, &RedisConfig::default(), &SystemdCredentials::default());
        Self(settings.expect("settings without files"))
    }

    /// The end of the log.
    ///
    /// # Errors
    /// The name of the reason.
    pub async fn end(&self) -> Result<Point, String> {
        let state: LogState = look(&self.0).await.map_err(name)?;
        state.kept.ok_or_else(|| name(ReplayError::NoLog))?;
        let replid = state.replid.to_string().as_bytes().try_into().expect("an id has 40 digits");
        Ok(Point { replid, offset: state.offset })
    }

    /// Reads from `point` to the publication with the payload `last`.
    ///
    /// # Errors
    /// The name of the reason.
    pub async fn read(
        &self,
        point: Point,
        last: &[u8],
        max_bytes: u64,
        max_time: Duration,
    ) -> Result<Vec<Published>, String> {
        let limits = ReadLimits { max_bytes, max_time };
        let mut reading = Reading::open(&self.0, point.in_log(), limits).await.map_err(name)?;
        let mut found = Vec::new();
        loop {
            let Publication { channel, payload, offset } = reading.next().await.map_err(name)?;
            found.push(Published { channel: channel.to_vec(), payload: payload.to_vec(), offset });
            if payload == last {
                return Ok(found);
            }
        }
    }

    /// The last offset of the former history, if `point` is in it.
    ///
    /// # Errors
    /// The name of the reason.
    pub async fn former_end(&self, point: Point) -> Result<Option<u64>, String> {
        let reading = Reading::open(&self.0, point.in_log(), ReadLimits::default()).await.map_err(name)?;
        Ok(reading.promotion().map(|promotion| promotion.offset))
    }

    /// Makes or keeps the log: whether it is new, and the pause before the next visit.
    ///
    /// # Errors
    /// The name of the reason.
    pub async fn visit(&self) -> Result<(bool, Duration), String> {
        let Upkeep { is_new, pause, .. } = visit(&self.0).await.map_err(name)?;
        Ok((is_new, pause))
    }
}

/// Decodes a log that arrives in pieces of `piece` bytes: the number of its publications, and their bytes.
#[must_use]
pub fn decode(log: &[u8], piece: usize) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    publications(log, piece, |payload| {
        count += 1;
        bytes += payload.len() as u64;
    });
    (count, bytes)
}

/// The variant of an error, and what is in it.
fn name(error: impl Debug) -> String {
    format!("{error:?}")
}
