//! Reads a log as `reader.rs`, `link.rs` and `between.rs` do, without sockets: bytes go in, and questions come out. The
//! decisions and the decoder are the real ones. May not enter: what is read back for whom.

use std::time::Duration;

use tokio::time::Instant;

use super::between::Between;
use super::error::ReplayError;
use super::info::{Continuation, LogState};
use super::log::{Answer, Decoder};
use super::reader::ReadLimits;
use crate::broker::redis::error::LinkError;
use crate::broker::redis::resp::reply_len;
use crate::position::{LogPoint, Logged, Milestone};

/// What a log has between two milestones.
pub(crate) type Read = Result<Vec<Logged>, ReplayError>;

/// A reading that is under way.
#[derive(Debug)]
pub(crate) struct LogReader {
    pub(crate) from: Milestone,
    pub(crate) until: Milestone,
    limits: ReadLimits,
    end: Instant,
    stage: Stage,
}

/// What is awaited.
#[derive(Debug)]
enum Stage {
    Link,
    Replication,
    Cluster {
        replication: String,
    },
    Filter(Continuation, Between),
    Capabilities(Continuation, Between),
    /// Whether the answer to PSYNC has come.
    Log {
        decoder: Decoder,
        offset: u64,
        between: Between,
        has_begun: bool,
    },
}

impl LogReader {
    pub(crate) fn new(from: Milestone, until: Milestone, limits: ReadLimits, now: Instant) -> Self {
        Self { from, until, limits, end: now + limits.max_time, stage: Stage::Link }
    }

    /// Whether it waits for its link.
    pub(crate) fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Link)
    }

    /// When it is given up.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    pub(crate) fn too_slow(&self) -> ReplayError {
        ReplayError::TooSlow(self.limits.max_time)
    }

    /// The link is made. Returns what to send.
    pub(crate) fn on_connected(&mut self) -> Vec<u8> {
        self.stage = Stage::Replication;
        command(&["INFO", "replication"])
    }

    fn start(&self) -> LogPoint {
        self.from.log.expect("only what has a place in a log is read")
    }

    /// Takes bytes that have arrived; sends what follows. Returns what the log has, once that is known.
    pub(crate) fn step(&mut self, arrived: &mut Vec<u8>, is_ended: bool, out: &mut Vec<u8>) -> Option<Read> {
        match self.try_step(arrived, out) {
            Ok(None) if is_ended => Some(Err(LinkError::Closed.into())),
            Ok(read) => read.map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    fn try_step(&mut self, arrived: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<Option<Vec<Logged>>, ReplayError> {
        loop {
            let start = self.start();
            if let Stage::Log { decoder, offset, between, has_begun } = &mut self.stage {
                return read(decoder, *offset, between, has_begun, arrived);
            }
            let Some(answer) = take_answer(arrived)? else { return Ok(None) };
            match std::mem::replace(&mut self.stage, Stage::Link) {
                Stage::Link => panic!("an answer to nothing"),
                Stage::Replication => {
                    self.stage = Stage::Cluster { replication: answer };
                    out.extend(command(&["INFO", "cluster"]));
                }
                Stage::Cluster { replication } => {
                    let state = LogState::parse(&replication, &answer)?;
                    let continuation = state.can_continue(start)?;
                    if state.offset.saturating_sub(start.offset) > self.limits.max_bytes {
                        return Err(ReplayError::TooMuch(self.limits.max_bytes));
                    }
                    let promotion = continuation.former_end.and(state.promotion());
                    let is_from_promotion = state.promotion() == Some(start);
                    let between = Between::new(self.from, self.until, promotion, is_from_promotion);
                    self.stage = Stage::Filter(continuation, between);
                    out.extend(command(&["REPLCONF", "rdb-filter-only", ""]));
                }
                Stage::Filter(continuation, between) => {
                    self.stage = Stage::Capabilities(continuation, between);
                    out.extend(command(&["REPLCONF", "capa", "eof", "capa", "psync2"]));
                }
                Stage::Capabilities(Continuation { replid, offset, .. }, between) => {
                    let next = offset.saturating_add(1).to_string();
                    out.extend(command(&["PSYNC", &replid.to_string(), &next]));
                    self.stage = Stage::Log { decoder: Decoder::new(offset), offset, between, has_begun: false };
                }
                Stage::Log { .. } => unreachable!("looked at before"),
            }
        }
    }
}

/// Reads on in a log.
fn read(
    decoder: &mut Decoder,
    offset: u64,
    between: &mut Between,
    has_begun: &mut bool,
    arrived: &mut Vec<u8>,
) -> Result<Option<Vec<Logged>>, ReplayError> {
    while !arrived.is_empty() {
        let room = decoder.room();
        let len = room.len().min(arrived.len());
        room[..len].copy_from_slice(&arrived[..len]);
        arrived.drain(..len);
        decoder.filled(len);
    }
    if !*has_begun {
        match decoder.answer().map_err(|_| ReplayError::Malformed(offset))? {
            None => return Ok(None),
            Some(Answer::Continue) => *has_begun = true,
            Some(Answer::FullResync) => return Err(ReplayError::FullResync),
            Some(Answer::Refused(refusal)) => return Err(ReplayError::Refused(refusal)),
        }
    }
    while let Some(found) = decoder.next().map_err(|_| ReplayError::Malformed(offset))? {
        if let Some(logged) = between.take(&decoder.publication(&found))? {
            return Ok(Some(logged));
        }
    }
    Ok(None)
}

/// How long clients that come back wait for a log, and a stream that was cut: as in `log_reading.rs`.
pub(crate) fn limits_of_clients() -> ReadLimits {
    ReadLimits { max_time: Duration::from_secs(2), ..ReadLimits::default() }
}

/// Takes an answer that has arrived as a whole.
fn take_answer(arrived: &mut Vec<u8>) -> Result<Option<String>, ReplayError> {
    let Some(len) = reply_len(arrived).expect("the model writes RESP") else { return Ok(None) };
    let answer = redis::parse_redis_value(&arrived[..len]).expect("the model writes RESP").extract_error();
    arrived.drain(..len);
    let answer = answer.map_err(|refusal| ReplayError::Refused(refusal.to_string()))?;
    redis::from_redis_value(answer).map(Some).map_err(|_| ReplayError::Unsupported)
}

fn command(arguments: &[&str]) -> Vec<u8> {
    let mut command = redis::cmd(arguments[0]);
    command.arg(&arguments[1..]);
    command.get_packed_command()
}
