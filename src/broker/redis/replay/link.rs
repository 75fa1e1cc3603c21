//! A link to a node for its replication log: what INFO says of the log, and the request to continue it. May not enter:
//! what is read from the log (`reader.rs`).

use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::error::ReplayError;
use super::info::{Continuation, LogState};
use super::log::{Answer, Decoder};
use crate::broker::redis::connect::{Purpose, Settings};
use crate::broker::redis::error::{LinkError, is_not_allowed, refusal_text};
use crate::broker::redis::greeting;
use crate::broker::redis::transport::Transport;

/// A link that has asked for no log yet.
pub(super) struct ReplayLink {
    pub(super) transport: Box<dyn Transport>,
    address: String,
    /// How long an answer may take.
    limit: Duration,
}

/// What a node would send with a full resynchronisation, before the link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Snapshot {
    /// An empty one, of some 300 bytes.
    Empty,
    /// All of its data.
    Data,
}

/// What a node says of its log, on a link of its own.
///
/// # Errors
/// The node does not say, or cannot be reached.
pub(crate) async fn look(settings: &Settings) -> Result<LogState, ReplayError> {
    ReplayLink::connect(settings).await?.state().await
}

impl ReplayLink {
    /// Connects to the node and greets it.
    ///
    /// # Errors
    /// What each address did.
    pub(super) async fn connect(settings: &Settings) -> Result<Self, ReplayError> {
        let on_slow = |error: &LinkError| tracing::debug!(%error, "the link for the replication log is late: {error}");
        let greeted = settings.connect(Purpose::Replay, &on_slow).await?;
        Ok(Self { transport: greeted.transport, address: greeted.greeting.address, limit: settings.response_timeout })
    }

    /// What the node says of its log.
    ///
    /// # Errors
    /// It does not, or the link ended.
    pub(super) async fn state(&mut self) -> Result<LogState, ReplayError> {
        let replication = self.info("replication").await?;
        let cluster = self.info("cluster").await?;
        LogState::parse(&replication, &cluster)
    }

    async fn info(&mut self, section: &str) -> Result<String, ReplayError> {
        let mut info = redis::cmd("INFO");
        info.arg(section);
        let answer = self.ask(&info).await?.map_err(|refusal| refused(&refusal))?;
        redis::from_redis_value(answer).map_err(|_| ReplayError::Unsupported)
    }

    /// Prepares the link for PSYNC: what the node would send instead of its log.
    ///
    /// # Errors
    /// The node does not permit it, or the link ended.
    pub(super) async fn prepare(&mut self) -> Result<Snapshot, ReplayError> {
        // The filter names what a snapshot is to have besides nothing (Redis 7.0, `rdb-filter-only` in replication.c).
        let mut filter = redis::cmd("REPLCONF");
        filter.arg("rdb-filter-only").arg("");
        let snapshot = match self.ask(&filter).await? {
            Ok(_) => Snapshot::Empty,
            Err(refusal) if is_not_allowed(&refusal) => return Err(refused(&refusal)),
            Err(_) => Snapshot::Data,
        };
        // A replica with a filter has to take snapshots of unknown length (`eof`), which a node starts after a delay.
        let mut capabilities = redis::cmd("REPLCONF");
        capabilities.arg("capa").arg("eof").arg("capa").arg("psync2");
        self.ask(&capabilities).await?.map_err(|refusal| refused(&refusal))?;
        Ok(snapshot)
    }

    /// Asks for the log from `continuation` on; what follows the answer is in the decoder.
    ///
    /// # Errors
    /// The node does not continue: the link is closed, and nothing of a snapshot is read.
    pub(super) async fn continue_log(&mut self, continuation: &Continuation) -> Result<Decoder, ReplayError> {
        let offset = continuation.offset;
        self.psync(&continuation.replid.to_string(), &offset.saturating_add(1).to_string()).await?;
        let mut decoder = Decoder::new(offset);
        loop {
            match decoder.answer().map_err(|_| ReplayError::Malformed(offset))? {
                Some(Answer::Continue) => return Ok(decoder),
                Some(Answer::FullResync) => return Err(ReplayError::FullResync),
                Some(Answer::Refused(refusal)) if refusal.starts_with("NOPERM") => {
                    return Err(ReplayError::NotPermitted { refusal });
                }
                Some(Answer::Refused(refusal)) => return Err(ReplayError::Refused(refusal)),
                None => {}
            }
            self.fill(&mut decoder).await?;
        }
    }

    /// Makes a log where none is: the node makes one for its first replica, before that gets a snapshot. Waits for
    /// the node's first byte only, and so costs no child process where snapshots are diskless and delayed (Redis 7.0's
    /// defaults, `repl-diskless-sync-delay`).
    ///
    /// # Errors
    /// The node refuses.
    pub(super) async fn make_log(&mut self) -> Result<(), ReplayError> {
        self.psync("?", "-1").await?;
        let mut decoder = Decoder::new(0);
        let first = self.fill(&mut decoder).await?;
        if first != b'-' {
            return Ok(());
        }
        loop {
            if let Some(Answer::Refused(refusal)) = decoder.answer().map_err(|_| ReplayError::Malformed(0))? {
                let is_permission = refusal.starts_with("NOPERM");
                return Err(if is_permission {
                    ReplayError::NotPermitted { refusal }
                } else {
                    ReplayError::Refused(refusal)
                });
            }
            self.fill(&mut decoder).await?;
        }
    }

    async fn psync(&mut self, replid: &str, offset: &str) -> Result<(), ReplayError> {
        let mut psync = redis::cmd("PSYNC");
        psync.arg(replid).arg(offset);
        let sent = async {
            self.transport.write_all(&psync.get_packed_command()).await?;
            self.transport.flush().await
        };
        sent.await.map_err(|error| LinkError::Unreachable(self.address.clone(), error).into())
    }

    /// Reads what there is, at least a byte; returns the first one.
    pub(super) async fn fill(&mut self, decoder: &mut Decoder) -> Result<u8, ReplayError> {
        let room = decoder.room();
        let read = self.transport.read(room).await;
        let len = read.map_err(|error| LinkError::Unreachable(self.address.clone(), error))?;
        let first = room.first().copied().filter(|_| len > 0).ok_or(LinkError::Closed)?;
        decoder.filled(len);
        Ok(first)
    }

    /// One command; a refusal is an answer.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Result<Value, RedisError>, ReplayError> {
        let answer = timeout(self.limit, greeting::ask(&mut *self.transport, command)).await;
        let answer = answer.map_err(|_| LinkError::Silent(self.address.clone(), self.limit))?;
        let answer = answer.map_err(|error| LinkError::Unreachable(self.address.clone(), error))?;
        Ok(answer.extract_error())
    }
}

/// What a refusal means.
fn refused(refusal: &RedisError) -> ReplayError {
    let text = refusal_text(refusal);
    if is_not_allowed(refusal) { ReplayError::NotPermitted { refusal: text } } else { ReplayError::Refused(text) }
}
