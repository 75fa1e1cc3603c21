//! Asks Sentinels for the master's address (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! A Sentinel that wants a password gets its own, from `redis.sentinel_*`, or Redis' own where it has none:
//! most deployments have the same for both. May not enter: links to the master itself (`connect.rs`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult, Value};
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
        let ask = |place| -> Asking<'_> { (place, Box::pin(self.ask(place, limit, on_slow))) };
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

    /// Asks one Sentinel, at the first of its addresses that answers.
    async fn ask(
        &self,
        (host, port): &HostPort,
        limit: Duration,
        on_slow: &dyn Fn(&LinkError),
    ) -> Result<Option<HostPort>, LinkError> {
        let mut race = Race::new(dial::look_up(host, *port, limit, on_slow).await?, limit);
        while let Some((address, stream)) = race.next().await {
            let address = address.to_string();
            let unreachable = |error| LinkError::Unreachable(address.clone(), error);
            let asked = async {
                let securing = async { secure(self.tls.as_ref(), host, stream).await.map_err(unreachable) };
                let transport = within(Step::Tls, &address, limit, securing).await?;
                let asking = async { self.ask_on(transport).await.map_err(unreachable)? };
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
    async fn ask_on(&self, stream: Box<dyn Transport>) -> io::Result<Result<Option<HostPort>, LinkError>> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        // RESP2 without a greeting: every Sentinel speaks it.
        let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        let made = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
        let (mut connection, driver) = made.map_err(io::Error::other)?;
        let answer = tokio::select! {
            answer = self.ask_by(&mut connection) => answer?,
            () = driver => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        match answer {
            Ok(answer) => redis::from_redis_value(answer).map(Ok).map_err(io::Error::other),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// The question, after AUTH where a password is set.
    async fn ask_by(&self, connection: &mut MultiplexedConnection) -> io::Result<Result<Value, LinkError>> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let own = self.own.read().map_err(io::Error::other)?;
        let mut refusal = None;
        if !own.is_empty() {
            refusal = ask(connection, &own.auth()).await.err();
        }
        let mut answer = ask(connection, &question).await;
        if own.is_empty() && answer.as_ref().is_err_and(wants_password) {
            let of_redis = self.of_redis.read().map_err(io::Error::other)?;
            if !of_redis.is_empty() {
                refusal = ask(connection, &of_redis.auth()).await.err();
                answer = ask(connection, &question).await;
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
async fn ask(connection: &mut MultiplexedConnection, command: &redis::Cmd) -> RedisResult<Value> {
    connection.send_packed_command(command).await.and_then(Value::extract_error)
}

/// The number of Sentinels that name the same master as the answer at `place`.
fn votes(named: &[HostPort], place: usize) -> usize {
    named.iter().filter(|other| Some(*other) == named.get(place)).count()
}

fn wants_password(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH")
}
