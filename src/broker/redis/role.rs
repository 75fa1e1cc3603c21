//! The role of a node. A message published at a replica reaches no subscriber of its master, and a replica does
//! not refuse PUBLISH, which is no write. So each link asks for the role before use and every second.
//!
//! HELLO answers without a right of its own (Redis never refuses it); where HELLO is unknown, ROLE replaces it. In
//! a Redis Cluster the topology decides instead (`cluster.rs`). May not enter: the reaction to a role.

use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use tokio::time::Instant;

use super::error::{is_for_now, is_refusal};
use super::resp::Protocol;

/// How often a link asks. Chosen: for this long, messages published at a former master are in doubt.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// Pause before a server that refuses both questions is asked again. Chosen: the subscriber's audit interval, so
/// that a corrected ACL is noticed then.
const AGAIN: Duration = Duration::from_secs(5);

/// The role that a server reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    Master,
    Replica,
    Sentinel,
    /// The server does not report its role.
    Unknown,
}

/// The command that asks for the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Hello,
    Role,
}

/// A link's knowledge of its server's role.
#[derive(Debug)]
pub(crate) struct RoleWatch {
    protocol: Protocol,
    question: Question,
    /// Whether the server answers one of the questions; true until it has refused both.
    is_told: bool,
    /// When the last question was sent that got the answer [`Rank::Master`].
    master_at: Instant,
    /// When to ask next; `None` if this link may not ask.
    next_at: Option<Instant>,
}

impl Rank {
    /// Whether links leave the server.
    pub(crate) fn is_wrong(self) -> bool {
        matches!(self, Self::Replica | Self::Sentinel)
    }

    /// The role and why webws cannot use the server, to follow the server's name.
    pub(crate) fn fault(self) -> &'static str {
        match self {
            Self::Sentinel => "is a Sentinel, not a master: write redis+sentinel://HOST:PORT/NAME",
            _ => "is a replica, not a master (any more): messages published there do not reach its master",
        }
    }
}

impl RoleWatch {
    /// For a link that speaks this version of the protocol; due at once.
    pub(crate) fn new(protocol: Protocol, now: Instant) -> Self {
        Self { protocol, question: Question::Hello, is_told: true, master_at: now, next_at: Some(now) }
    }

    /// The command to ask with.
    pub(crate) fn question(&self) -> Cmd {
        match self.question {
            Question::Hello => {
                let mut hello = redis::cmd("HELLO");
                // Redis 6.0 requires a version. Any other version would change the link's protocol.
                hello.arg(match self.protocol {
                    Protocol::Resp2 => 2,
                    Protocol::Resp3 => 3,
                });
                hello
            }
            Question::Role => redis::cmd("ROLE"),
        }
    }

    /// When to ask next; `None` if this link may not ask.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.next_at
    }

    /// Whether it is time to ask.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.next_at.is_some_and(|at| at <= now)
    }

    /// Ends the questions: a subscriber may not ask over RESP2.
    pub(crate) fn end(&mut self) {
        self.next_at = None;
    }

    /// The last time at which the server was certainly a master.
    pub(crate) fn master_at(&self) -> Instant {
        self.master_at
    }

    /// Whether the server reports its role.
    pub(crate) fn is_told(&self) -> bool {
        self.is_told
    }

    /// Reads the answer to the question that was sent at `sent`.
    ///
    /// # Errors
    /// When no answer came.
    pub(crate) fn on_answer(&mut self, sent: Instant, answer: Result<Value, RedisError>) -> Result<Rank, RedisError> {
        self.next_at = Some(sent + INTERVAL);
        let rank = match answer {
            Ok(answer) => rank(self.question, &answer),
            // The server is busy for the moment.
            Err(error) if is_for_now(error.code()) => return Ok(Rank::Unknown),
            Err(error) if is_refusal(&error) => Rank::Unknown,
            Err(error) => return Err(error),
        };
        match (rank, self.question) {
            (Rank::Unknown, Question::Hello) => (self.question, self.next_at) = (Question::Role, Some(sent)),
            (Rank::Unknown, Question::Role) => {
                (self.question, self.next_at) = (Question::Hello, Some(sent + AGAIN));
                self.is_told = false;
            }
            (Rank::Master, _) => (self.is_told, self.master_at) = (true, sent),
            (Rank::Replica | Rank::Sentinel, _) => self.is_told = true,
        }
        Ok(rank)
    }
}

#[cfg(test)]
impl RoleWatch {
    /// Of a server that has just said that it is a master.
    pub(crate) fn of_master(protocol: Protocol, now: Instant) -> Self {
        let mut role = Self::new(protocol, now);
        let answer = ["role", "master"].map(|text| Value::SimpleString(text.to_owned()));
        assert_eq!(role.on_answer(now, Ok(Value::Array(answer.to_vec()))).ok(), Some(Rank::Master));
        role
    }
}

fn rank(question: Question, answer: &Value) -> Rank {
    let field = |name: &[u8]| match answer {
        Value::Map(fields) => fields.iter().find(|(key, _)| text(key) == Some(name)).and_then(|(_, value)| text(value)),
        // RESP2 has no maps.
        Value::Array(values) => {
            let mut pairs = values.chunks_exact(2);
            pairs.find_map(|pair| if text(pair.first()?) == Some(name) { text(pair.get(1)?) } else { None })
        }
        _ => None,
    };
    let (role, mode) = match (question, answer) {
        (Question::Role, Value::Array(values)) => (values.first().and_then(text), None),
        (Question::Role, _) => (None, None),
        _ => (field(b"role"), field(b"mode")),
    };
    match (role, mode) {
        (_, Some(b"sentinel")) | (Some(b"sentinel"), _) => Rank::Sentinel,
        // "slave" in ROLE, and from other servers that speak the protocol.
        (Some(b"replica" | b"slave"), _) => Rank::Replica,
        // Among them KeyDB's "active-replica", which forwards publications.
        (Some(_), _) => Rank::Master,
        (None, _) => Rank::Unknown,
    }
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(text) => Some(text),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn hello(mode: &str, role: &str) -> Value {
        Value::Map(vec![(bulk("mode"), bulk(mode)), (bulk("role"), bulk(role)), (bulk("proto"), Value::Int(3))])
    }

    #[test]
    fn roles_are_read_from_all_answers() {
        for (answer, rank) in [
            (hello("standalone", "master"), Rank::Master),
            (hello("standalone", "replica"), Rank::Replica),
            (hello("standalone", "slave"), Rank::Replica),
            (hello("standalone", "active-replica"), Rank::Master),
            (Value::Map(vec![(bulk("mode"), bulk("sentinel"))]), Rank::Sentinel),
            (Value::Array(vec![bulk("mode"), bulk("standalone"), bulk("role"), bulk("replica")]), Rank::Replica),
            (Value::Map(Vec::new()), Rank::Unknown),
            (Value::Okay, Rank::Unknown),
        ] {
            assert_eq!(super::rank(Question::Hello, &answer), rank, "{answer:?}");
        }
        for (role, rank) in [("master", Rank::Master), ("slave", Rank::Replica), ("sentinel", Rank::Sentinel)] {
            let answer = Value::Array(vec![bulk(role), Value::Int(0)]);
            assert_eq!(super::rank(Question::Role, &answer), rank, "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_know_hello_is_asked_otherwise_and_again_later() {
        let refused = || Err(RedisError::from((redis::ErrorKind::Client, "-")));
        let unknown: Result<Value, RedisError> =
            Value::ServerError(redis::parse_redis_value(b"-ERR unknown command\r\n").map_or_else(
                |_| unreachable!("it is an error as a value"),
                |value| match value {
                    Value::ServerError(error) => error,
                    other => unreachable!("{other:?}"),
                },
            ))
            .extract_error();
        let mut watch = RoleWatch::new(Protocol::Resp3, Instant::now());
        assert_eq!(watch.on_answer(Instant::now(), unknown).unwrap(), Rank::Unknown);
        assert_eq!((watch.question, watch.is_told()), (Question::Role, true));
        assert!(watch.on_answer(Instant::now(), refused()).is_err(), "that is no answer");
        let sent = Instant::now();
        tokio::time::advance(INTERVAL).await;
        let master = Value::Array(vec![bulk("master"), Value::Int(0), Value::Array(Vec::new())]);
        assert_eq!(watch.on_answer(sent, Ok(master)).unwrap(), Rank::Master);
        assert_eq!((watch.master_at(), watch.next_at()), (sent, Some(sent + INTERVAL)));
        assert_eq!(watch.on_answer(Instant::now(), Ok(Value::Nil)).unwrap(), Rank::Unknown);
        assert!(!watch.is_told() && !watch.is_due(Instant::now()), "it has refused both questions");
        tokio::time::advance(AGAIN).await;
        assert!(watch.is_due(Instant::now()) && watch.question == Question::Hello);
        assert_eq!(watch.on_answer(Instant::now(), Ok(hello("standalone", "replica"))).unwrap(), Rank::Replica);
        assert!(watch.is_told() && !watch.is_due(Instant::now()));
    }
}
