//! Asks Sentinels for the master's address, and for the replica from which its log can be read
//! (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! All are asked side by side; most of the answers decide. A Sentinel that wants a password gets its own, from
//! `redis.sentinel_*`, or Redis' own where it has none: most deployments have the same for both. May not enter: links
//! to the master itself (`connect.rs`).

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, RedisResult, Value};
use tokio::time::{Instant, timeout_at};

use super::credential::Credential;
use super::dial::{self, Race, first_of, within};
use super::error::{LinkError, Step, is_refusal};
use super::greeting::without_arguments;
use super::tls::{Tls, secure};
use super::transport::{HostPort, Transport};

/// How long the first answer waits for others to agree, before it is used alone. Chosen: far above a round trip, and a
/// small part of a failover.
const GRACE: Duration = Duration::from_millis(250);

/// The Sentinels of a master, and how to talk to them.
#[derive(Debug, Clone)]
pub(super) struct Sentinels {
    pub(super) places: Vec<HostPort>,
    /// The name of the master at the Sentinels.
    pub(super) master: String,
    pub(super) own: Credential,
    pub(super) of_redis: Credential,
    pub(super) tls: Option<Tls>,
}

/// The answers of the Sentinels.
#[derive(Debug, Default)]
struct Answers {
    /// The masters that Sentinels have named, one answer each.
    named: Vec<HostPort>,
    failed: Vec<LinkError>,
}

/// A question to the Sentinel with this index.
type Asking<'a> = (&'a HostPort, Pin<Box<dyn Future<Output = Result<Option<HostPort>, LinkError>> + 'a>>);

impl Sentinels {
    /// The address of the master: that of most Sentinels, or else that of the first answers. Each step of a question
    /// may take `limit`; `on_slow` is called when a look-up takes longer, and the look-up continues.
    ///
    /// # Errors
    /// When no Sentinel answers, or none knows the master: the reason of each.
    pub(super) async fn master(&self, limit: Duration, on_slow: &dyn Fn(&LinkError)) -> Result<HostPort, LinkError> {
        let Answers { mut named, failed } = self.ask_all(limit, GRACE, on_slow).await;
        let most = (0..named.len()).rev().max_by_key(|place| votes(&named, *place));
        most.map(|place| named.swap_remove(place)).ok_or(LinkError::Each(failed))
    }

    /// The address of the master, if more than half of the Sentinels agree.
    pub(super) async fn agreed_master(&self, limit: Duration) -> Option<HostPort> {
        let debug = |error: &LinkError| tracing::debug!(%error, "a Sentinel cannot be asked: {error}");
        let Answers { named, failed } = self.ask_all(limit, limit, &debug).await;
        failed.iter().for_each(debug);
        self.agreed(&named).cloned()
    }

    fn agreed<'a>(&self, named: &'a [HostPort]) -> Option<&'a HostPort> {
        let place = (0..named.len()).find(|place| 2 * votes(named, *place) > self.places.len())?;
        named.get(place)
    }

    /// Asks all Sentinels at the same time, until they agree or `grace` has passed since one named a master. A Sentinel
    /// that drops packets does not delay the others.
    async fn ask_all(&self, limit: Duration, grace: Duration, on_slow: &dyn Fn(&LinkError)) -> Answers {
        let question = self.question("GET-MASTER-ADDR-BY-NAME");
        let ask = |place| -> Asking<'_> { (place, Box::pin(self.ask(place, &question, limit, on_slow))) };
        let mut asking: Vec<_> = self.places.iter().map(ask).collect();
        let mut answers = Answers::default();
        let mut end = None;
        while !asking.is_empty() && self.agreed(&answers.named).is_none() {
            let answer = first_of(&mut asking);
            let ((host, port), answer) = match end {
                None => answer.await,
                Some(end) => match timeout_at(end, answer).await {
                    Ok(answer) => answer,
                    Err(_) => break,
                },
            };
            let error = match answer {
                Ok(Some(master)) => {
                    answers.named.push(master);
                    end = end.or_else(|| Some(Instant::now() + grace));
                    continue;
                }
                Ok(None) => LinkError::UnknownMaster(self.master.clone()),
                Err(error) => error,
            };
            answers.failed.push(LinkError::Sentinel(format!("{host}:{port}"), Box::new(error)));
        }
        answers
    }

    /// The address of the replica that is in order and has most of the master's log, as the first Sentinel says that
    /// answers.
    pub(super) async fn replica(&self, limit: Duration) -> Option<HostPort> {
        let debug = |error: &LinkError| tracing::debug!(%error, "a Sentinel cannot be asked for replicas: {error}");
        let question = self.question("REPLICAS");
        for place in &self.places {
            match self.ask::<Vec<BTreeMap<String, String>>>(place, &question, limit, &debug).await {
                Ok(replicas) => return best(&replicas),
                Err(error) => debug(&error),
            }
        }
        None
    }

    fn question(&self, about: &str) -> Cmd {
        let mut question = redis::cmd("SENTINEL");
        question.arg(about).arg(&self.master);
        question
    }

    /// Asks one Sentinel, at the first of its addresses that answers.
    async fn ask<T: FromRedisValue>(
        &self,
        (host, port): &HostPort,
        question: &Cmd,
        limit: Duration,
        on_slow: &dyn Fn(&LinkError),
    ) -> Result<T, LinkError> {
        let mut race = Race::new(dial::look_up(host, *port, limit, on_slow).await?, limit);
        while let Some((address, stream)) = race.next().await {
            let address = address.to_string();
            let unreachable = |error| LinkError::Unreachable(address.clone(), error);
            let asked = async {
                let securing = async { secure(self.tls.as_ref(), host, stream).await.map_err(unreachable) };
                let transport = within(Step::Tls, &address, limit, securing).await?;
                let asking = async { self.ask_on(transport, question).await.map_err(unreachable)? };
                within(Step::Sentinel, &address, limit, asking).await
            };
            match asked.await {
                Err(error) => race.fail(error),
                asked => return asked,
            }
        }
        Err(race.into_error())
    }

    /// Asks on a connection; a refusal is an answer.
    async fn ask_on<T: FromRedisValue>(
        &self,
        stream: Box<dyn Transport>,
        question: &Cmd,
    ) -> io::Result<Result<T, LinkError>> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        // RESP2 without a greeting: every Sentinel speaks it.
        let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        let made = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
        let (mut connection, driver) = made.map_err(io::Error::other)?;
        let answer = tokio::select! {
            answer = self.ask_by(&mut connection, question) => answer?,
            () = driver => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        match answer {
            Ok(answer) => redis::from_redis_value(answer).map(Ok).map_err(io::Error::other),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The question, after AUTH where a password is set.
    async fn ask_by(
        &self,
        connection: &mut MultiplexedConnection,
        question: &Cmd,
    ) -> io::Result<Result<Value, LinkError>> {
        let own = self.own.read().map_err(io::Error::other)?;
        let mut refusal = None;
        if !own.is_empty() {
            refusal = ask(connection, &own.auth()).await.err();
        }
        let mut answer = ask(connection, question).await;
        if own.is_empty() && answer.as_ref().is_err_and(wants_password) {
            let of_redis = self.of_redis.read().map_err(io::Error::other)?;
            if !of_redis.is_empty() {
                refusal = ask(connection, &of_redis.auth()).await.err();
                answer = ask(connection, question).await;
            }
        }
        match answer {
            Ok(answer) => {
                if let Some(refusal) = refusal {
                    tracing::debug!(error = %refusal, "a Sentinel refuses the password and answers without one");
                }
                Ok(Ok(answer))
            }
            Err(error) if !is_refusal(&error) => Err(io::Error::other(error)),
            Err(error) => {
                let refusal = refusal.unwrap_or(error).to_string();
                Ok(Err(LinkError::NotTold(without_arguments(&refusal).to_string())))
            }
        }
    }
}

/// Sends one command; an error that the Sentinel answers is an error.
async fn ask(connection: &mut MultiplexedConnection, command: &Cmd) -> RedisResult<Value> {
    connection.send_packed_command(command).await.and_then(Value::extract_error)
}

/// The replica that follows its master, is reachable, and has received most (`SENTINEL REPLICAS`).
fn best(replicas: &[BTreeMap<String, String>]) -> Option<HostPort> {
    let field = |replica: &BTreeMap<String, String>, name| replica.get(name).cloned().unwrap_or_default();
    // Other flags are faults: s_down, disconnected and the like.
    let is_in_order =
        |replica: &&BTreeMap<_, _>| field(replica, "flags") == "slave" && field(replica, "master-link-status") == "ok";
    let received = |replica: &&BTreeMap<_, _>| field(replica, "slave-repl-offset").parse::<u64>().unwrap_or(0);
    let best = replicas.iter().filter(is_in_order).max_by_key(received)?;
    // A port of 0 is a reader of the log, and no replica.
    let port = field(best, "port").parse().ok().filter(|port| *port != 0)?;
    Some((field(best, "ip"), port))
}

/// The number of Sentinels that name the same master as the answer at `place`.
fn votes(named: &[HostPort], place: usize) -> usize {
    named.iter().filter(|other| Some(*other) == named.get(place)).count()
}

fn wants_password(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_replica_is_in_order_and_has_most_of_the_log() {
        let replica = |port: &str, flags: &str, link: &str, offset: &str| {
            let fields = [
                ("ip", "10.0.0.1"),
                ("port", port),
                ("flags", flags),
                ("master-link-status", link),
                ("slave-repl-offset", offset),
            ];
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        let all = [
            replica("1", "slave", "ok", "9"),
            replica("2", "slave", "ok", "10"),
            replica("3", "slave", "err", "99"),
            replica("4", "s_down,slave,disconnected", "ok", "99"),
        ];
        assert_eq!(best(&all), Some(("10.0.0.1".to_owned(), 2)));
        assert_eq!(best(&all[2..]), None);
        assert_eq!(best(&[replica("0", "slave", "ok", "9")]), None);
        assert_eq!(best(&[BTreeMap::new()]), None);
    }
}
