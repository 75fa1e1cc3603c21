//! Runs code that blocks on a thread of its own. May not enter: what the code does.

use tokio::task::JoinError;

/// Runs `act`, which blocks, on a thread for blocking code.
pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(act).await
}
