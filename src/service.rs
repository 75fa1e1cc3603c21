//! A server as a systemd service: sockets and signals in, READY, STOPPING and WATCHDOG out.
//!
//! Works the same without systemd. May not enter: how connections are served.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::Config;
use crate::metrics::Shard;
use crate::os;
use crate::server::{Server, ServerError};

/// The name a socket has in its `.socket` unit (`FileDescriptorName=`).
const SOCKET_NAME: &str = "ws";

/// What the service does beside its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extra {
    /// Nothing.
    None,
    /// It serves the test page at `/`.
    TestPage,
}

/// Runs a server as the binary does: on the sockets that systemd handed over, else on
/// `config.listen`; until SIGTERM or SIGINT, then drains. A second signal ends it at once.
///
/// # Errors
/// As [`Server::bind`] and [`Server::run`], and when the sockets handed over are not ours.
pub async fn run_service(config: Config, extra: Extra) -> Result<(), ServerError> {
    if let Err(error) = os::limit::raise_descriptors() {
        tracing::debug!(%error, "the descriptor limit stays as it is");
    }
    let signals = |kind| signal(kind).map_err(|error| ServerError::Activation(format!("signals: {error}")));
    let (mut term, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let broker = config.broker.to_string();
    let server = listen(config)?;
    let server = if extra == Extra::TestPage { server.with_test_page() } else { server };
    let (metrics, workers, addresses) = (server.metrics(), server.workers(), server.addresses());
    let running = server.start()?;
    tracing::info!(listen = addresses, broker, workers, "webws {} serves", env!("CARGO_PKG_VERSION"));
    os::systemd::notify_ready(&format!("serving on {addresses}"));
    let watchdog = watchdog(running.shards());
    let (tell, told) = oneshot::channel();
    let serving = running.run_until(async {
        first_of(&mut term, &mut interrupt).await;
        tracing::info!(sessions = metrics.sessions(), "stopping: no new connections, closing the open ones");
        os::systemd::notify_stopping("closing connections");
        // The streams themselves: a second signal may be in them already.
        tell.send((term, interrupt)).ok();
    });
    tokio::select! {
        ended = serving => {
            tracing::info!("stopped: {metrics}");
            ended
        }
        () = second_signal(told) => {
            tracing::warn!("stopped at once by a second signal: {metrics}");
            Ok(())
        }
        () = watchdog => Ok(()),
    }
}

fn listen(config: Config) -> Result<Server, ServerError> {
    let handed_over = os::systemd::take_listeners().map_err(|error| ServerError::Activation(error.to_string()))?;
    if handed_over.is_empty() {
        return Server::bind(config);
    }
    // systemd-socket-activate names them "unknown" unless told otherwise.
    if let Some((_, name)) = handed_over.iter().find(|(_, name)| name != SOCKET_NAME && name != "unknown") {
        return Err(ServerError::Activation(format!(
            "a socket is called '{name}', but only '{SOCKET_NAME}' is served: set FileDescriptorName={SOCKET_NAME} in the .socket unit"
        )));
    }
    Server::on(config, handed_over.into_iter().map(|(socket, _)| socket).collect())
}

async fn first_of(term: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn second_signal(told: oneshot::Receiver<(Signal, Signal)>) {
    match told.await {
        Ok((mut term, mut interrupt)) => first_of(&mut term, &mut interrupt).await,
        Err(_) => std::future::pending().await,
    }
}

/// Feeds systemd's watchdog while every worker makes progress; resolves never.
async fn watchdog(shards: Vec<Arc<Shard>>) {
    let Some(period) = os::systemd::watchdog_period() else { return std::future::pending().await };
    let mut seen: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
    loop {
        tokio::time::sleep((period / 3).max(Duration::from_millis(200))).await;
        let now: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
        if seen.iter().zip(&now).all(|(before, now)| now > before) {
            os::systemd::notify_watchdog();
        }
        seen = now;
    }
}
