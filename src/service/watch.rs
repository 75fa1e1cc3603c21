//! Tasks beside the server: systemd's watchdog, and the second signal to stop. May not enter: how a server stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::metrics::Shard;
use crate::os;
use crate::signals::Signals;

/// Resolves at the second signal to stop. After `suspend`, systemd sends the first one.
pub(super) async fn second_signal(told: oneshot::Receiver<(Signals, bool)>) {
    let Ok((mut signals, is_suspended)) = told.await else { return std::future::pending().await };
    if is_suspended {
        signals.stop().await;
    }
    signals.stop().await;
}

/// Feeds systemd's watchdog while every worker makes progress; never resolves.
pub(super) async fn watchdog(shards: Vec<Arc<Shard>>) {
    let Some(period) = os::systemd::watchdog_period() else { return std::future::pending().await };
    let mut seen: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
    // systemd listens to a process that takes over only from the hand-over on: the first notification is due at once.
    os::systemd::notify_watchdog();
    loop {
        tokio::time::sleep((period / 3).max(Duration::from_millis(200))).await;
        let now: Vec<u64> = shards.iter().map(|shard| shard.beats()).collect();
        if seen.iter().zip(&now).all(|(before, now)| now > before) {
            os::systemd::notify_watchdog();
        }
        seen = now;
    }
}
