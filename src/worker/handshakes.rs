//! Counts the connections of a worker that are not yet sessions: those in the queue, and those in their handshake.
//!
//! The acceptor's thread and the worker's thread both count. May not enter: requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A worker's count.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    open: AtomicUsize,
    /// Notified when the count falls to zero.
    finished: Arc<Notify>,
}

/// One connection; counted until dropped.
#[derive(Debug)]
pub(crate) struct Handshake(Arc<Handshakes>);

impl Handshakes {
    pub(crate) fn begin(self: &Arc<Self>) -> Handshake {
        self.open.fetch_add(1, Ordering::Relaxed);
        Handshake(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        // The count is written before the notification, and read after it.
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn finished(&self) -> &Arc<Notify> {
        &self.finished
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Release) == 1 {
            self.0.finished.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_one_to_finish_tells() {
        let handshakes = Arc::new(Handshakes::default());
        let (first, second) = (handshakes.begin(), handshakes.begin());
        assert_eq!(handshakes.count(), 2);
        let mut finished = Box::pin(handshakes.finished().notified());
        drop(first);
        assert!(futures_are_pending(&mut finished).await);
        drop(second);
        finished.await;
        assert_eq!(handshakes.count(), 0);
    }

    async fn futures_are_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
    }
}
