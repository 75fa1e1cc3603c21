//! The client of a request that is refused, as nginx names it, and the one log line about it.
//!
//! Reads hyper's headers, or the bytes of a head that hyper did not parse.
//! May not enter: why a request is refused, and the answer to its client.

use std::os::fd::BorrowedFd;

use hyper::header::{HeaderMap, HeaderValue};

use crate::front::head;
use crate::os;

/// Where a request came from. nginx sets both fields, as shipped.
#[derive(Debug, Default)]
pub(crate) struct Sender<'a> {
    /// X-Real-IP
    address: Option<&'a str>,
    /// X-Request-ID
    request_id: Option<&'a str>,
}

impl<'a> Sender<'a> {
    pub(crate) fn in_headers(headers: &'a HeaderMap) -> Self {
        let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Self { address: value("x-real-ip"), request_id: value("x-request-id") }
    }

    /// From the bytes of a head that is malformed or incomplete.
    pub(crate) fn in_head(head: &'a [u8]) -> Self {
        Self { address: head::field(head, "x-real-ip"), request_id: head::field(head, "x-request-id") }
    }

    /// Logs one refused handshake at debug, for an operator in search of one client.
    pub(crate) fn log_refused(&self, status: u16, why: &str, socket: BorrowedFd<'_>) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let address = self.address.map_or_else(|| os::socket::peer(socket), ToOwned::to_owned);
        let request_id = self.request_id.unwrap_or("none");
        tracing::debug!(
            status,
            why,
            address,
            request_id,
            "a handshake from {address} is refused with {status}: {why} (X-Request-ID: {request_id})"
        );
    }
}
