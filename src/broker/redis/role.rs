//! What a server is. A message that is published at a replica reaches nobody at its master, and PUBLISH is no
//! write that a replica would refuse: so each link asks, before it is used and every second from then on.
//!
//! HELLO answers that without a right of its own (it is never refused); ROLE stands in for it where HELLO is
//! unknown. In a Redis Cluster the topology decides instead (`cluster.rs`). May not enter: what follows from it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tokio::time::Instant;

use super::connect::{ask, is_for_now, is_refusal};

/// How often a link asks. Chosen: what is published at a server that is no master any more is in doubt for
/// this long.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// What a server says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    Master,
    Replica,
    Sentinel,
    /// It does not say.
    Unknown,
}

/// How a server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Hello,
    Role,
    None,
}

/// A link's knowledge of its server's role.
#[derive(Debug)]
pub(super) struct Watch {
    version: u8,
    question: Question,
    /// When the question was sent last that was answered with [`Rank::Master`].
    master_at: Instant,
    next_at: Instant,
}

impl Rank {
    /// Whether links leave it.
    pub(super) fn is_wrong(self) -> bool {
        matches!(self, Self::Replica | Self::Sentinel)
    }

    /// What it is and why that is of no use, to follow the server's name.
    pub(super) fn fault(self) -> &'static str {
        match self {
            Self::Sentinel => "is a Sentinel, not a master: write redis+sentinel://HOST:PORT/NAME",
            _ => "is a replica, not a master (any more): messages published there do not reach its master",
        }
    }
}

impl Watch {
    /// Of a link that speaks that version of the protocol.
    pub(super) fn new(version: u8) -> Self {
        Self { version, question: Question::Hello, master_at: Instant::now(), next_at: Instant::now() }
    }

    /// The command to ask with, now; `None` where the server does not say.
    pub(super) fn question(&self) -> Option<Cmd> {
        match self.question {
            Question::Hello => {
                let mut hello = redis::cmd("HELLO");
                // Redis 6.0 wants a version; another one than the link's would change it.
                hello.arg(self.version);
                Some(hello)
            }
            Question::Role => Some(redis::cmd("ROLE")),
            Question::None => None,
        }
    }

    /// When to ask next; `None` where the server does not say.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.is_told().then_some(self.next_at)
    }

    /// Whether it is time to ask.
    pub(super) fn is_due(&self) -> bool {
        self.next_at().is_some_and(|at| at <= Instant::now())
    }

    /// Until when the server was certainly a master.
    pub(super) fn master_at(&self) -> Instant {
        self.master_at
    }

    /// Whether the server says what it is.
    pub(super) fn is_told(&self) -> bool {
        self.question != Question::None
    }

    /// What the answer to a question that was sent at `sent` means.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn on_answer(&mut self, sent: Instant, answer: Result<Value, RedisError>) -> Result<Rank, RedisError> {
        self.next_at = sent + INTERVAL;
        let rank = match answer {
            Ok(answer) => rank(self.question, &answer),
            // Busy for the moment.
            Err(error) if is_for_now(error.code()) => return Ok(Rank::Unknown),
            Err(error) if is_refusal(&error) => Rank::Unknown,
            Err(error) => return Err(error),
        };
        match rank {
            Rank::Master => self.master_at = sent,
            Rank::Unknown => {
                self.question = if self.question == Question::Hello { Question::Role } else { Question::None };
                self.next_at = sent;
            }
            Rank::Replica | Rank::Sentinel => {}
        }
        Ok(rank)
    }

    /// Asks, by all ways there are.
    ///
    /// # Errors
    /// When no answer comes.
    pub(super) async fn ask(&mut self, connection: &mut MultiplexedConnection) -> Result<Rank, RedisError> {
        while let Some(question) = self.question() {
            let (before, sent) = (self.question, Instant::now());
            let answer = ask(connection, &question).await;
            let rank = self.on_answer(sent, answer)?;
            if rank != Rank::Unknown || self.question == before {
                return Ok(rank);
            }
        }
        Ok(Rank::Unknown)
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
        // "slave" in ROLE, and of others that speak the protocol.
        (Some(b"replica" | b"slave"), _) => Rank::Replica,
        // Among them KeyDB's "active-replica", which passes on what is published.
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
    async fn a_server_that_does_not_know_hello_is_asked_otherwise_and_then_no_more() {
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
        let mut watch = Watch::new(3);
        assert_eq!(watch.on_answer(Instant::now(), unknown).unwrap(), Rank::Unknown);
        assert_eq!((watch.question, watch.is_told()), (Question::Role, true));
        assert!(watch.on_answer(Instant::now(), refused()).is_err(), "that is no answer");
        let sent = Instant::now();
        tokio::time::advance(INTERVAL).await;
        let master = Value::Array(vec![bulk("master"), Value::Int(0), Value::Array(Vec::new())]);
        assert_eq!(watch.on_answer(sent, Ok(master)).unwrap(), Rank::Master);
        assert_eq!((watch.master_at(), watch.next_at()), (sent, Some(sent + INTERVAL)));
        assert_eq!(watch.on_answer(Instant::now(), Ok(Value::Nil)).unwrap(), Rank::Unknown);
        assert!(!watch.is_told() && watch.question().is_none());
    }
}
