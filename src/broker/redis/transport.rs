//! How bytes reach a node, and where it is. May not enter: what the bytes mean.

use tokio::io::{AsyncRead, AsyncWrite};

/// A stream to a node: TCP, TLS or a Unix socket.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Transport for T {}

/// A host and a port.
pub(crate) type HostPort = (String, u16);
