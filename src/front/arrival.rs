//! How a handshake came: straight from nginx, or proxied and why. The answer to `webws check --nginx`.
//!
//! That command announces the key of its handshake on the control socket. webws tells the way of this one handshake,
//! and tells nothing to other clients. May not enter: channels, sessions, sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY};
use tokio::time::Instant;

use crate::proxied::Proxied;

/// The field in which nginx/webws-straight-location.conf says why it proxies.
const WHY: &str = "x-webws-straight";

/// How long an announced handshake is waited for. Chosen: longer than the command waits for nginx.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most announced handshakes; the oldest ones are forgotten.
const MAX_ANNOUNCED: usize = 16;

/// The keys of announced handshakes, and when each was announced.
static ANNOUNCED: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Whether there may be announced handshakes: other handshakes do not wait for the lock.
static IS_ANY: AtomicBool = AtomicBool::new(false);

fn announced() -> MutexGuard<'static, Vec<(String, Instant)>> {
    ANNOUNCED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Announces a handshake with this `Sec-WebSocket-Key`.
pub(crate) fn announce(key: &str) {
    let mut announced = announced();
    if announced.len() >= MAX_ANNOUNCED {
        announced.remove(0);
    }
    announced.push((key.to_owned(), Instant::now()));
    IS_ANY.store(true, Ordering::Release);
}

/// Why nginx has proxied a request, if its location hands clients off.
pub(super) fn why_proxied(headers: &HeaderMap) -> Option<Proxied> {
    headers.get(WHY)?.to_str().ok().map(Proxied::of)
}

/// The line for an announced handshake, which is not announced any more; `None` for all others.
pub(super) fn told(headers: &HeaderMap, is_handed_off: bool) -> Option<String> {
    if !IS_ANY.load(Ordering::Acquire) {
        return None;
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let mut announced = announced();
    announced.retain(|(_, at)| at.elapsed() < PATIENCE);
    let place = announced.iter().position(|(ours, _)| Some(ours.as_bytes()) == key);
    if let Some(place) = place {
        announced.remove(place);
    }
    IS_ANY.store(!announced.is_empty(), Ordering::Release);
    place.map(|_| line(why_proxied(headers), is_handed_off))
}

fn line(why: Option<Proxied>, is_handed_off: bool) -> String {
    match why {
        _ if is_handed_off => "straight: nginx gave webws the client's own socket".to_owned(),
        Some(reason) => format!("proxied: {}: {}", reason.label(), reason.explained()),
        None => "proxied: the location in nginx hands no clients off: include webws-straight-location.conf (README, Straight)"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(key: &'static str, why: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
        headers.extend(why.map(|why| (hyper::header::HeaderName::from_static(WHY), HeaderValue::from_static(why))));
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_announced_handshake_is_told_once_and_in_time() {
        let (mine, other) = (headers("bWluZSBtaW5lIG1pbmUgbQ==", Some("no; reason=tls")), headers("other", None));
        assert_eq!(told(&mine, true), None, "not announced");
        announce("bWluZSBtaW5lIG1pbmUgbQ==");
        assert_eq!((told(&other, true), told(&HeaderMap::new(), true)), (None, None));
        let first = told(&mine, false).unwrap();
        assert!(first.starts_with("proxied: tls: "), "{first}");
        assert_eq!(told(&mine, false), None, "announced once");
        announce("bWluZSBtaW5lIG1pbmUgbQ==");
        tokio::time::advance(PATIENCE).await;
        assert_eq!(told(&mine, false), None, "too late");
        // However many are announced and never come.
        for _ in 0..2 * MAX_ANNOUNCED {
            announce("never");
        }
        announce("other");
        assert!(told(&other, true).unwrap().starts_with("straight: "));
        assert!(announced().len() <= MAX_ANNOUNCED);
    }

    #[test]
    fn a_location_that_hands_no_clients_off_is_told_from_one_that_could_not() {
        assert!(line(None, false).contains("webws-straight-location.conf"));
        for reason in Proxied::ALL {
            let line = line(Some(reason), false);
            assert!(line.starts_with(&format!("proxied: {}: ", reason.label())) && line.len() > 30, "{line}");
        }
    }
}
