//! What an accepted request gives its session, as one value from the answer to the session's start. A fact of the
//! request that a session needs gets a field here. May not enter: HTTP, sockets, deadlines.

use std::rc::Rc;

use super::polled::Poll;
use super::subscription::Rights;
use crate::channel::Channel;
use crate::clock::Millis;
use crate::position::Since;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;

/// What a client may do, and how its session looks.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) endpoint: Rc<Endpoint>,
    pub(crate) channel: Channel,
    pub(crate) encoding: Encoding,
    pub(crate) rights: Rights,
    /// From where on a client that comes back wants publications.
    pub(crate) since: Option<Since>,
    /// Of a client that polls, and only of such a client.
    pub(crate) poll: Option<Box<Poll>>,
    /// What is known of the client; `None` where the endpoint asks for nothing.
    pub(crate) claims: Option<Claims>,
}

/// What is known of a client besides its rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The site's name for the user; opaque.
    pub(crate) user: Box<str>,
    /// The time until the session is closed; `None` for no end.
    pub(crate) time_left: Option<Millis>,
}

impl Grant {
    /// The rights that an endpoint grants to all its clients, without a position.
    pub(crate) fn of(endpoint: Rc<Endpoint>, channel: Channel, encoding: Encoding) -> Self {
        let rights = Rights::of(&endpoint.config);
        Self { endpoint, channel, encoding, rights, since: None, poll: None, claims: None }
    }

    /// Takes the rights away that `allowed` does not contain.
    pub(crate) fn claimed(mut self, claims: Claims, allowed: Rights) -> Self {
        self.rights.may_receive &= allowed.may_receive;
        self.rights.may_publish &= allowed.may_publish;
        self.claims = Some(claims);
        self
    }
}
