//! Why a client may not do what it asks for: the status and the text of the answer. May not enter: the checks.

use hyper::StatusCode;

use crate::throttle::Throttle;

/// Why a client is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("this endpoint serves known users only, and the proxy names none (claims_required)")]
    Missing,
    #[error("this endpoint serves known users only, and the sender of the request is not trusted (trusted_users)")]
    Untrusted,
    #[error("the client may not use this channel")]
    Channel,
    #[error("this endpoint serves known users only, and the request has no token (claims_required)")]
    NoToken,
    #[error("the token is not valid")]
    Token,
    #[error("the token is not valid yet")]
    Early,
    #[error("what the client was allowed has expired")]
    Expired,
    #[error("the channel's name is not signed with a key of this endpoint")]
    Signature,
    /// A fault of the site.
    #[error("the site's {0}")]
    Malformed(&'static str),
}

impl Denied {
    /// Logs a fault of the site, once a minute.
    pub(super) fn log(self) {
        static MALFORMED: Throttle = Throttle::per_minute();
        if matches!(self, Self::Malformed(_)) && MALFORMED.allows() {
            tracing::error!(
                "a client is refused: {self}; correct what sets the claims: nginx's location, or the tokens"
            );
        }
    }

    /// A malformed field is a fault of the site, not of the client.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Missing
            | Self::Untrusted
            | Self::Channel
            | Self::NoToken
            | Self::Token
            | Self::Early
            | Self::Expired
            | Self::Signature => StatusCode::FORBIDDEN,
        }
    }
}
