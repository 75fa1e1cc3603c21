//! How bytes reach a node, and where it is. May not enter: what the bytes mean.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream to a node: TCP, TLS or a Unix socket.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Transport for T {}

/// A host and a port.
pub(crate) type HostPort = (String, u16);

/// A step towards a stream, or on it.
pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Whether a poll of a stream changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Made,
    None,
}
