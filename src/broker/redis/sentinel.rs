//! Asks Sentinels who the master is (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>).
//!
//! May not enter: links to the master itself (`connect.rs`).

use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A host and a port.
pub(super) type Place = (String, u16);

/// How long one Sentinel may take; then the next is asked. Chosen: far above a round trip, and three
/// dead ones leave time to connect.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the master called `name` is, as the first of `sentinels` says that answers; begins at a
/// different one each time.
///
/// # Errors
/// When none answers, or none knows the master: what the last one said.
pub(super) async fn master(sentinels: &[Place], name: &str) -> io::Result<Place> {
    let first = fastrand::usize(..sentinels.len().max(1));
    let mut last = io::Error::other("there are no Sentinels");
    for place in (0..sentinels.len()).filter_map(|step| sentinels.get((first + step) % sentinels.len())) {
        let (host, port) = place;
        match timeout(PATIENCE, ask(place, name)).await {
            Ok(Ok(Some(master))) => return Ok(master),
            Ok(Ok(None)) => last = io::Error::other(format!("the Sentinel {host}:{port} knows no master '{name}'")),
            Ok(Err(error)) => last = io::Error::other(format!("the Sentinel {host}:{port}: {error}")),
            Err(_) => last = io::Error::other(format!("the Sentinel {host}:{port} did not answer in {PATIENCE:?}")),
        }
    }
    Err(last)
}

/// Where the master called `name` is, if more than half of `sentinels` agree on that.
pub(super) async fn agreed_master(sentinels: &[Place], name: &str) -> Option<Place> {
    let mut named: Vec<Place> = Vec::new();
    for place in sentinels {
        match timeout(PATIENCE, ask(place, name)).await {
            Ok(Ok(master)) => named.extend(master),
            Ok(Err(error)) => tracing::debug!(%error, "a Sentinel cannot be asked"),
            Err(_) => tracing::debug!("a Sentinel does not answer"),
        }
    }
    let votes = |candidate: &Place| named.iter().filter(|named| *named == candidate).count();
    named.iter().find(|candidate| 2 * votes(candidate) > sentinels.len()).cloned()
}

async fn ask((host, port): &Place, name: &str) -> io::Result<Option<Place>> {
    let stream = TcpStream::connect((host.as_str(), *port)).await?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
    let made = MultiplexedConnection::new_with_config(&greeting, stream, config).await;
    let (mut connection, driver) = made.map_err(io::Error::other)?;
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    tokio::select! {
        answer = question.query_async(&mut connection) => answer.map_err(io::Error::other),
        () = driver => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
