//! Visits a node again and again, so that its replication log is there (`redis.replay = "on"`). May not enter: what a
//! visit does (`keep.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::keep::{Upkeep, visit};
use crate::broker::redis::connect::Settings;
use crate::throttle::Throttle;

/// The pause after a visit that failed. Chosen: a node that is back has a log again before many milestones have passed.
const PAUSE: Duration = Duration::from_secs(5);

/// Makes and keeps a node's log, while polled.
pub(crate) async fn keep(settings: Arc<Settings>) {
    static FAILED: Throttle = Throttle::per_minute();
    let server = settings.server().to_string();
    loop {
        let pause = match visit(&settings).await {
            Ok(Upkeep { is_new, pause }) => {
                if is_new {
                    tracing::info!(server, "{server} now has a replication log, from which webws fills gaps");
                }
                pause
            }
            Err(error) => {
                if FAILED.allows() {
                    tracing::warn!(
                        server,
                        %error,
                        "{server} has no replication log to fill gaps from (redis.replay = \"on\"): {error}"
                    );
                }
                PAUSE
            }
        };
        sleep(pause).await;
    }
}
