//! Runs what waits on a thread made for waiting.

use tokio::task::JoinError;

/// Runs what waits on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(act).await
}
