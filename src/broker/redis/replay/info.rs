//! What `INFO` says of a node's replication log, and whether the log can be read from a point on
//! (<https://redis.io/docs/latest/commands/info/>,
//! <https://redis.io/docs/latest/operate/oss_and_stack/management/replication/>).
//!
//! The decision comes before any PSYNC: a node that cannot continue starts a full resynchronisation instead. The
//! conditions are those of `masterTryPartialResynchronization` in Redis' `replication.c`. May not enter: bytes,
//! sockets.

use super::error::ReplayError;
use crate::broker::redis::replid::Replid;
use crate::position::LogPoint;

/// A node's part in replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Master,
    /// Relays its master's log, under the same id and offsets.
    Replica,
}

/// A node's replication log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) role: Role,
    /// How many replicas follow this node.
    pub(crate) replicas: u64,
    pub(crate) replid: Replid,
    /// The history that this node continued when it was promoted, and the first offset that is not in that history.
    former: Option<(Replid, u64)>,
    /// The offset of the last byte written.
    pub(crate) offset: u64,
    /// The part of the log that is kept; `None` where nothing is.
    pub(crate) kept: Option<Kept>,
}

/// The part of a log that a node keeps (Redis calls it the replication backlog).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The offset of the first byte.
    pub(crate) first: u64,
    /// Bytes kept at present.
    pub(crate) len: u64,
    /// Bytes kept at most: `repl-backlog-size`.
    pub(crate) size: u64,
}

/// A point from which a log can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Continuation {
    /// The id to ask for: the node's present or former one.
    pub(crate) replid: Replid,
    /// The offset of the last byte that is not to be read.
    pub(crate) offset: u64,
    /// Bytes that may be written before the log no longer reaches back that far.
    pub(crate) headroom: u64,
    /// The last offset of the former history, if the point is in it. What the former node wrote behind it is not in
    /// this log, though links may have heard it.
    pub(crate) former_end: Option<u64>,
}

impl LogState {
    /// Parses the answers to `INFO replication` and `INFO cluster`.
    ///
    /// # Errors
    /// The node is part of a cluster, or does not say what Redis says.
    pub(crate) fn parse(replication: &str, cluster: &str) -> Result<Self, ReplayError> {
        // In cluster mode, PUBLISH goes over the cluster's bus and not into the log.
        if field(cluster, "cluster_enabled").is_some_and(|enabled| enabled != "0") {
            return Err(ReplayError::Cluster);
        }
        Self::parse_replication(replication).ok_or(ReplayError::Unsupported)
    }

    fn parse_replication(info: &str) -> Option<Self> {
        let number = |name| field(info, name)?.parse::<u64>().ok();
        let former = Replid::parse(field(info, "master_replid2")?).filter(|replid| replid.is_set());
        let is_active = number("repl_backlog_active")? == 1;
        let kept = Kept {
            first: number("repl_backlog_first_byte_offset")?,
            len: number("repl_backlog_histlen")?,
            size: number("repl_backlog_size")?,
        };
        Some(Self {
            role: match field(info, "role")? {
                "master" => Role::Master,
                "slave" | "replica" => Role::Replica,
                _ => return None,
            },
            replicas: number("connected_slaves")?,
            replid: Replid::parse(field(info, "master_replid")?)?,
            // -1 where there is no former history.
            former: former.zip(number("second_repl_offset")),
            offset: number("master_repl_offset")?,
            kept: is_active.then_some(kept),
        })
    }

    /// The end of the log.
    pub(crate) fn end(&self) -> LogPoint {
        self.replid.at(self.offset)
    }

    /// The point at which the present history continued the former one. A replica that followed late takes an earlier
    /// one.
    pub(crate) fn promotion(&self) -> Option<LogPoint> {
        let (_, foreign) = self.former?;
        Some(self.replid.at(foreign.saturating_sub(1)))
    }

    /// Whether the log can be read from a point on.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn can_continue(&self, point: LogPoint) -> Result<Continuation, ReplayError> {
        let (kept, offset) = (self.kept.ok_or(ReplayError::NoLog)?, point.offset);
        let next = offset.saturating_add(1);
        let (replid, former_end) = match self.former {
            _ if self.replid.has(point) => (self.replid, None),
            Some((former, foreign)) if former.has(point) => (former, Some(foreign.saturating_sub(1))),
            _ => return Err(ReplayError::OtherHistory),
        };
        if former_end.is_some() && self.role == Role::Replica {
            return Err(ReplayError::NoMaster);
        }
        // What the former master wrote last never reached this node.
        if let Some(end) = former_end.filter(|end| offset > *end) {
            return Err(ReplayError::NeverArrived { wanted: next, end });
        }
        let end = kept.first.saturating_add(kept.len);
        if next > end {
            return Err(ReplayError::NeverArrived { wanted: next, end: end.saturating_sub(1) });
        }
        if next < kept.first {
            return Err(ReplayError::TooShort { missing: kept.first - next, kept: kept.len, size: kept.size });
        }
        let free = kept.size.saturating_sub(kept.len);
        Ok(Continuation { replid, offset, headroom: next - kept.first + free, former_end })
    }
}

impl Kept {
    /// The headroom that makes a continuation certain: what a node writes between INFO and PSYNC is far less. Chosen:
    /// an eighth of the log.
    pub(crate) fn is_certain(self, continuation: &Continuation) -> bool {
        continuation.headroom >= self.size / 8
    }
}

/// The value of a line `name:value`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLID: &str = "02b538e5c34cd82e52b386fb9baafcd9fcb6091e";
    const FORMER: &str = "c6f60bcfc9b63ea1ae7c72e2d0878fc417be8b2b";
    const NONE: &str = "0000000000000000000000000000000000000000";

    /// As Redis 7.0.15 answers, with a log of 1,000 bytes of which 400 from 601 on are kept.
    fn info(changes: &[(&str, &str)]) -> String {
        let fields = [
            ("role", "master"),
            ("connected_slaves", "0"),
            ("master_failover_state", "no-failover"),
            ("master_replid", REPLID),
            ("master_replid2", NONE),
            ("master_repl_offset", "1000"),
            ("second_repl_offset", "-1"),
            ("repl_backlog_active", "1"),
            ("repl_backlog_size", "400"),
            ("repl_backlog_first_byte_offset", "601"),
            ("repl_backlog_histlen", "400"),
        ];
        let line = |(name, value): &(&str, &str)| {
            let value = changes.iter().find(|(changed, _)| changed == name).map_or(*value, |(_, value)| *value);
            format!("{name}:{value}\r\n")
        };
        format!("# Replication\r\n{}", fields.iter().map(line).collect::<String>())
    }

    fn state(changes: &[(&str, &str)]) -> LogState {
        LogState::parse(&info(changes), "# Cluster\r\ncluster_enabled:0\r\n").unwrap()
    }

    fn point(replid: &str, offset: u64) -> LogPoint {
        Replid::parse(replid).unwrap().at(offset)
    }

    #[test]
    fn a_log_is_what_info_says() {
        let state = state(&[]);
        assert_eq!((state.role, state.replicas, state.offset), (Role::Master, 0, 1_000));
        assert_eq!(state.replid.to_string(), REPLID);
        assert_eq!(state.end(), point(REPLID, 1_000));
        assert_eq!(state.kept, Some(Kept { first: 601, len: 400, size: 400 }));
        assert_eq!(self::state(&[("role", "slave")]).role, Role::Replica);
        assert_eq!(self::state(&[("repl_backlog_active", "0")]).kept, None);
    }

    #[test]
    fn what_is_no_log_of_redis_is_said_so() {
        for (changes, cluster) in [
            (vec![], "cluster_enabled:1\r\n"),
            (vec![("role", "sentinel")], ""),
            (vec![("master_replid", "")], ""),
            (vec![("master_replid", "ä")], ""),
            (vec![("master_repl_offset", "-1")], ""),
            (vec![("repl_backlog_active", "")], ""),
        ] {
            let error = LogState::parse(&info(&changes), cluster).unwrap_err();
            let is_right = match cluster {
                "" => matches!(error, ReplayError::Unsupported),
                _ => matches!(error, ReplayError::Cluster),
            };
            assert!(is_right, "{changes:?} {cluster}: {error}");
        }
        // A proxy, or another server that speaks the protocol.
        assert!(matches!(LogState::parse("", ""), Err(ReplayError::Unsupported)));
        assert!(LogState::parse(&info(&[]), "").is_ok(), "a server without clusters has no such section");
    }

    #[test]
    fn a_log_continues_from_its_first_byte_to_its_end() {
        let state = state(&[]);
        for (offset, headroom) in [(600, 0), (601, 1), (999, 399), (1_000, 400)] {
            let continuation = state.can_continue(point(REPLID, offset)).unwrap();
            assert_eq!((continuation.replid, continuation.offset), (state.replid, offset));
            assert_eq!(continuation.headroom, headroom);
        }
        let is_short = |offset, bytes| {
            let error = state.can_continue(point(REPLID, offset)).unwrap_err();
            matches!(error, ReplayError::TooShort { missing, kept: 400, size: 400 } if missing == bytes)
        };
        assert!(is_short(599, 1) && is_short(0, 600));
        for offset in [1_001, u64::MAX] {
            let error = state.can_continue(point(REPLID, offset)).unwrap_err();
            assert!(matches!(error, ReplayError::NeverArrived { end: 1_000, .. }), "{error}");
        }
    }

    #[test]
    fn a_log_that_is_not_full_has_room_and_an_empty_one_continues_at_its_end() {
        let room = state(&[("repl_backlog_size", "1048576")]);
        let continuation = room.can_continue(point(REPLID, 600)).unwrap();
        assert_eq!(continuation.headroom, 1_048_576 - 400);
        assert!(room.kept.unwrap().is_certain(&continuation));
        let full = state(&[]);
        let is_certain = |offset| full.kept.unwrap().is_certain(&full.can_continue(point(REPLID, offset)).unwrap());
        assert!(!is_certain(649) && is_certain(650));
        let empty = state(&[
            ("master_repl_offset", "0"),
            ("repl_backlog_first_byte_offset", "1"),
            ("repl_backlog_histlen", "0"),
        ]);
        assert!(empty.can_continue(point(REPLID, 0)).is_ok() && empty.can_continue(point(REPLID, 1)).is_err());
    }

    #[test]
    fn a_promoted_replica_continues_its_masters_history_up_to_the_promotion() {
        let state = state(&[("master_replid2", FORMER), ("second_repl_offset", "801")]);
        for offset in [600, 800] {
            let continuation = state.can_continue(point(FORMER, offset)).unwrap();
            assert_eq!((continuation.replid.to_string(), continuation.offset), (FORMER.to_owned(), offset));
            assert_eq!(continuation.former_end, Some(800));
        }
        let error = state.can_continue(point(FORMER, 801)).unwrap_err();
        assert!(matches!(error, ReplayError::NeverArrived { wanted: 802, end: 800 }), "{error}");
        assert!(matches!(state.can_continue(point(FORMER, 500)), Err(ReplayError::TooShort { missing: 100, .. })));
        assert_eq!(state.can_continue(point(REPLID, 900)).unwrap().former_end, None);
        assert_eq!((state.promotion(), self::state(&[]).promotion()), (Some(point(REPLID, 800)), None));
        // A replica that followed late takes an earlier offset for the end.
        let replica = self::state(&[("role", "slave"), ("master_replid2", FORMER), ("second_repl_offset", "801")]);
        assert!(matches!(replica.can_continue(point(FORMER, 700)), Err(ReplayError::NoMaster)));
        assert!(replica.can_continue(point(REPLID, 700)).is_ok());
    }

    #[test]
    fn a_log_of_another_history_or_none_does_not_continue() {
        assert!(matches!(state(&[]).can_continue(point(FORMER, 700)), Err(ReplayError::OtherHistory)));
        // The zeros stand for no id, and are none that a position could name.
        assert!(matches!(state(&[]).can_continue(point(NONE, 700)), Err(ReplayError::OtherHistory)));
        let none = state(&[("repl_backlog_active", "0")]);
        assert!(matches!(none.can_continue(point(REPLID, 1_000)), Err(ReplayError::NoLog)));
    }
}
