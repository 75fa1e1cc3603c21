//! Why a replication log is not read, in sentences for an operator. May not enter: what follows from a refusal.

use std::time::Duration;

use crate::broker::redis::error::LinkError;

/// The rights that reading a log needs, as ACL SETUSER takes them. Tried with Redis 7.0 and 8.2 and with Valkey 9.1.
pub(crate) const RIGHTS: &str = "+info +replconf +psync";

/// Why the publications behind a point of a log cannot be had.
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
    #[error("the replication log is of another history: Redis was restarted, or lost its log, and forgot")]
    OtherHistory,
    #[error(
        "the replication log ends at {end}, before offset {wanted}: a failover lost what the former master wrote last"
    )]
    NeverArrived { wanted: u64, end: u64 },
    #[error("a replica does not tell where the history of its former master ends")]
    NoMaster,
    #[error("Redis does not permit reading its replication log: {refusal} (the ACL user needs {RIGHTS})")]
    NotPermitted { refusal: String },
    #[error("the server does not describe its replication log as Redis does")]
    Unsupported,
    #[error(
        "the point is near the end of what the replication log keeps, and Redis before 7.0 would answer with all of \
         its data if the log no longer reached back that far"
    )]
    Uncertain,
    #[error("Redis before 7.0 cannot make a replication log without sending all of its data: attach a replica")]
    NeedsReplica,
    #[error("Redis does not continue its replication log: {0}")]
    Refused(String),
    #[error("Redis offers a full resynchronisation instead of its replication log, which moved on meanwhile")]
    FullResync,
    #[error("the replication log has more than {0} bytes since then")]
    TooMuch(u64),
    #[error("the replication log was not read within {0:?}")]
    TooSlow(Duration),
    #[error("the replication log cannot be decoded behind offset {0}")]
    Malformed(u64),
    #[error("the last milestone does not say where it is in the replication log (the ACL user needs +info)")]
    Unplaced,
    #[error("the replication log does not have the milestone from which it is to be read")]
    Unknown,
    #[error("a failover lost the last milestone that was heard")]
    Forgotten,
    #[error(transparent)]
    Link(#[from] LinkError),
}
