//! Why a client may not do what it asks for: the status and the text of the answer. May not enter: the checks.

use hyper::StatusCode;

/// Why a client is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("this endpoint serves known users only, and the proxy names none (claims_required)")]
    Missing,
    #[error("this endpoint serves known users only, and the sender of the request is not trusted (trusted_users)")]
    Untrusted,
    #[error("the client may not use this channel")]
    Channel,
    #[error("what the proxy allows the client has expired")]
    Expired,
    #[error("the channel's name is not signed with a key of this endpoint")]
    Signature,
    #[error("the proxy's {0}")]
    Malformed(&'static str),
}

impl Denied {
    /// A malformed field is a fault of the site, not of the client.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Missing | Self::Untrusted | Self::Channel | Self::Expired | Self::Signature => StatusCode::FORBIDDEN,
        }
    }
}
