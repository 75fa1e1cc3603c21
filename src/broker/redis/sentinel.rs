//! Asks Sentinels who the master is (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! A Sentinel that wants a password gets its own, from `redis.sentinel_*`, or Redis' own where it has none:
//! most deployments have the same for both. May not enter: links to the master itself (`connect.rs`).

use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, Value};
use tokio::time::timeout;

use super::connect::{self, open_at};
use super::credential::Credential;
use super::greeting::without_arguments;
use super::tls::Tls;

/// A host and a port.
pub(super) type Place = (String, u16);

/// How long one Sentinel may take; then the next is asked. Chosen: far above a round trip, and three
/// dead ones leave time to connect.
const PATIENCE: Duration = Duration::from_millis(500);

/// The Sentinels of a master, and how they are spoken to.
#[derive(Debug, Clone)]
pub(super) struct Sentinels {
    pub(super) places: Vec<Place>,
    /// The name by which they know the master.
    pub(super) master: String,
    pub(super) own: Credential,
    pub(super) of_redis: Credential,
    pub(super) tls: Option<Tls>,
}

impl Sentinels {
    /// Where the master is, as the first Sentinel says that answers; begins at a different one each time.
    ///
    /// # Errors
    /// When none answers, or none knows the master: what the last one said.
    pub(super) async fn master(&self) -> io::Result<Place> {
        let first = fastrand::usize(..self.places.len().max(1));
        let mut last = io::Error::other("there are no Sentinels");
        for place in (0..self.places.len()).filter_map(|step| self.places.get((first + step) % self.places.len())) {
            let (host, port) = place;
            match timeout(PATIENCE, self.ask(place)).await {
                Ok(Ok(Some(master))) => return Ok(master),
                Ok(Ok(None)) => {
                    let name = &self.master;
                    last = io::Error::other(format!("the Sentinel {host}:{port} knows no master '{name}'"));
                }
                Ok(Err(error)) => last = io::Error::other(format!("the Sentinel {host}:{port}: {error}")),
                Err(_) => last = io::Error::other(format!("the Sentinel {host}:{port} did not answer in {PATIENCE:?}")),
            }
        }
        Err(last)
    }

    /// Where the master is, if more than half of the Sentinels agree on that.
    pub(super) async fn agreed_master(&self) -> Option<Place> {
        let mut named: Vec<Place> = Vec::new();
        for place in &self.places {
            match timeout(PATIENCE, self.ask(place)).await {
                Ok(Ok(master)) => named.extend(master),
                Ok(Err(error)) => tracing::debug!(%error, "a Sentinel cannot be asked: {error}"),
                Err(_) => tracing::debug!("a Sentinel does not answer"),
            }
        }
        let votes = |candidate: &Place| named.iter().filter(|named| *named == candidate).count();
        named.iter().find(|candidate| 2 * votes(candidate) > self.places.len()).cloned()
    }

    async fn ask(&self, (host, port): &Place) -> io::Result<Option<Place>> {
        let stream = open_at(host, *port, self.tls.as_ref()).await?;
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        // RESP2 without a greeting: every Sentinel speaks it.
        let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        let made = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
        let (mut connection, driver) = made.map_err(io::Error::other)?;
        let answer = tokio::select! {
            answer = self.ask_by(&mut connection) => answer?,
            () = driver => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        redis::from_redis_value(answer).map_err(io::Error::other)
    }

    /// The question, behind AUTH where it has to be.
    async fn ask_by(&self, connection: &mut MultiplexedConnection) -> io::Result<Value> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let own = self.own.read().map_err(io::Error::other)?;
        let mut refusal = None;
        if !own.is_empty() {
            refusal = connect::ask(connection, &own.auth()).await.err();
        }
        let mut answer = connect::ask(connection, &question).await;
        if own.is_empty() && answer.as_ref().is_err_and(wants_password) {
            let of_redis = self.of_redis.read().map_err(io::Error::other)?;
            if !of_redis.is_empty() {
                refusal = connect::ask(connection, &of_redis.auth()).await.err();
                answer = connect::ask(connection, &question).await;
            }
        }
        match answer {
            Ok(answer) => {
                if let Some(refusal) = refusal {
                    tracing::debug!(error = %refusal, "a Sentinel refuses the password and answers without one");
                }
                Ok(answer)
            }
            Err(error) => Err(io::Error::other(format!(
                "{} (user and password of the Sentinels: redis.sentinel_username and redis.sentinel_password_file; \
                 without them, those of Redis are tried)",
                without_arguments(&refusal.unwrap_or(error).to_string())
            ))),
        }
    }
}

fn wants_password(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH")
}
