//! Why a replication log is not read, in sentences for an operator. May not enter: what follows from a refusal.

use std::time::Duration;

use crate::broker::redis::error::LinkError;

/// The rights that reading a log needs, as ACL SETUSER takes them. Tried with Redis 7.0 and 8.2 and with Valkey 9.1.
pub(crate) const RIGHTS: &str = "+info +replconf +psync";

/// Why the publications after a point of a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error("Redis runs in cluster mode, where publications are not in the replication log")]
    Cluster,
    #[error("Redis keeps no replication log: no replica was attached within repl-backlog-ttl")]
    NoLog,
    #[error(
        "the replication log is {missing} bytes too short: it keeps {kept} bytes (set repl-backlog-size above {size} \
         in redis.conf)"
    )]
    TooShort { missing: u64, kept: u64, size: u64 },
    #[error("the replication log belongs to a different history: Redis was restarted or lost its log")]
    OtherHistory,
    #[error(
        "the replication log ends at {end}, before offset {wanted}: a failover lost what the former master wrote last"
    )]
    NeverArrived { wanted: u64, end: u64 },
    #[error("the replica does not report where its former master's history ends")]
    NoMaster,
    #[error("Redis does not permit reading its replication log: {refusal} (the ACL user needs {RIGHTS})")]
    NotPermitted { refusal: String },
    #[error("the server does not describe its replication log as Redis does")]
    Unsupported,
    #[error(
        "the requested point is about to drop out of the replication log; Redis before 7.0 would then send its whole \
         data set, so webws does not ask"
    )]
    Uncertain,
    #[error("Redis before 7.0 cannot make a replication log without sending all of its data: attach a replica")]
    NeedsReplica,
    #[error("Redis does not continue its replication log: {0}")]
    Refused(String),
    #[error("Redis offers a full resynchronisation, because its replication log no longer reaches back far enough")]
    FullResync,
    #[error("the replication log has more than {0} bytes since then")]
    TooMuch(u64),
    #[error("the replication log was not read within {0:?}")]
    TooSlow(Duration),
    #[error("the replication log cannot be decoded after offset {0}")]
    Malformed(u64),
    #[error("the last milestone does not say where it is in the replication log (the ACL user needs +info)")]
    Unplaced,
    #[error("the replication log does not contain the milestone to read from")]
    Unknown,
    #[error("a failover lost the last milestone that webws received")]
    Forgotten,
    #[error(transparent)]
    Link(#[from] LinkError),
}
