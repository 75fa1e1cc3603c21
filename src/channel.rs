//! The name of a Pub/Sub channel, and the refusal of its subscription.
//!
//! Every room may name a channel. May not enter: how a request names its channel (`protocol/endpoint.rs`).

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

use bytes::Bytes;

/// The name of a Pub/Sub channel as the broker knows it: any bytes. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Channel(Bytes);

impl Channel {
    /// A name that is known at compile time.
    #[cfg(test)]
    pub(crate) const fn from_static(name: &'static [u8]) -> Self {
        Self(Bytes::from_static(name))
    }

    /// A name whose bytes are borrowed.
    pub(crate) fn copy_from_slice(name: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(name))
    }

    /// The name's bytes, shared.
    #[cfg(feature = "internals")]
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Channel {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Channel {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Channel {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Channel {
    fn from(name: Bytes) -> Self {
        Self(name)
    }
}

impl From<String> for Channel {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl From<Vec<u8>> for Channel {
    fn from(name: Vec<u8>) -> Self {
        Self(name.into())
    }
}

/// Readable, with escapes for bytes that are not ASCII.
impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Why the broker refuses the subscription of a channel: a sentence for an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SubscriptionRefused(pub(crate) Rc<str>);
