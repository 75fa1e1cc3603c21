//! Many sessions are closed spread over a time: at a drain, and behind a gap.
//!
//! Clients that are closed at one instant come back at one instant. May not enter: why sessions are closed.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::seed::Order;
use super::state::Worker;
use crate::close::CloseReason;
use crate::metrics::Counter;

/// How long the end waits beyond all other times: for the replies to close frames.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How often some more sessions are closed, when closing is spread over a time.
const SPREAD_STEP: Duration = Duration::from_millis(10);

/// How many of `total` have their turn after `elapsed`, evenly over `time` and one at least.
fn share_of(total: usize, elapsed: Duration, time: Duration) -> usize {
    let share = elapsed.as_secs_f64() / time.as_secs_f64().max(f64::MIN_POSITIVE);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to total, or more")]
    let count = (share * total as f64) as usize;
    count.saturating_add(1).min(total)
}

impl Worker {
    pub(super) async fn serve_and_drain(&self, orders: &mut watch::Receiver<Order>) {
        if orders.wait_for(|order| *order == Order::Drain).await.is_err() {
            return;
        }
        self.is_draining.set(true);
        let mut open = self.core.borrow().open_keys();
        fastrand::shuffle(&mut open);
        self.core.borrow_mut().hub.stop_pacing();
        self.flush();
        let start = Instant::now();
        // Those with texts that the broker has not answered for wait for its word, within the
        // time that their endpoints give it.
        let patience = self.config.endpoints.iter().map(|endpoint| endpoint.publish_timeout).max();
        let deadline = start + self.config.drain_time + patience.unwrap_or_default() + LAST_WORDS;
        let (total, mut closed) = (open.len(), 0);
        loop {
            let closed_by_now = share_of(total, start.elapsed(), self.config.drain_time);
            let now = self.now();
            open.retain(|key| {
                if closed >= closed_by_now || self.core.borrow_mut().has_unpublished(*key) {
                    return true;
                }
                closed += 1;
                self.guarded(*key, now, |core| core.close(*key, CloseReason::GoingAway, now));
                false
            });
            self.after_reading();
            tokio::time::sleep(SPREAD_STEP).await;
            let is_done = open.is_empty() && self.handshakes.get() == 0 && self.core.borrow().is_idle();
            if is_done || Instant::now() >= deadline {
                break;
            }
        }
        // What was taken and not answered for is counted when the broker's side is dropped.
        let left = self.core.borrow().outbox.waiting() as u64;
        if left > 0 {
            self.shard.add(Counter::TextsLost, left);
            tracing::warn!(
                left,
                "{left} messages of clients were still unpublished at the end of drain_time and are lost"
            );
        }
    }

    /// Closes those whose messages may be missing, spread over a time.
    pub(super) async fn close_gapped(self: Rc<Self>) {
        loop {
            self.gap.notified().await;
            self.is_closing_gapped.set(true);
            let mut keys = std::mem::take(&mut *self.gapped.borrow_mut());
            fastrand::shuffle(&mut keys);
            let (start, total) = (Instant::now(), keys.len());
            while !keys.is_empty() {
                if self.is_resting.get() {
                    tokio::time::sleep(SPREAD_STEP).await;
                    continue;
                }
                let left = total - share_of(total, start.elapsed(), self.config.drain_time);
                let now = self.now();
                for key in keys.drain(left..) {
                    self.guarded(key, now, |core| core.close(key, CloseReason::Gap, now));
                }
                self.after_reading();
                tokio::time::sleep(SPREAD_STEP).await;
            }
            self.is_closing_gapped.set(!self.gapped.borrow().is_empty());
        }
    }
}
