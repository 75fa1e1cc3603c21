//! From a host's name to a TCP connection: the look-up, then the addresses, each with its own deadline.
//!
//! A [`Race`] starts the next address when one has failed or has been silent for a moment (RFC 8305). The caller
//! decides which address to use: one that takes connections may still lead to a server that does not answer.
//! Look-ups of one name are shared. May not enter: TLS, Redis' protocol.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::error::{LinkError, Step};

/// How long a look-up may take. The resolver waits 5 s for each of up to three nameservers, and asks all of
/// them twice (resolv.conf(5)). With less time, a dead nameserver would hide the name.
const LOOK_UP: Duration = Duration::from_secs(30);

/// How long an address may be silent before the next attempt starts as well (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Limits a step of an attempt at `address`.
///
/// # Errors
/// The fault, or that nothing came within `limit`.
pub(super) async fn within<T>(
    step: Step,
    address: &str,
    limit: Duration,
    act: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    timeout(limit, act).await.unwrap_or_else(|_| Err(LinkError::Late { step, address: address.to_owned(), limit }))
}

/// The addresses of `host`, in the order of attempts. Calls `on_slow` when the look-up takes longer than
/// `patience`; the look-up continues.
///
/// # Errors
/// When the name is not found, or not in [`LOOK_UP`].
pub(super) async fn look_up(
    host: &str,
    port: u16,
    patience: Duration,
    on_slow: &dyn Fn(&LinkError),
) -> Result<Vec<SocketAddr>, LinkError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let failed = |error| LinkError::LookUp(host.to_owned(), error);
    let mut told = looking_up(host, port).map_err(failed)?;
    let end = Instant::now() + LOOK_UP;
    let found = tokio::select! {
        found = answer(&mut told) => found,
        () = sleep(patience) => {
            on_slow(&LinkError::LookUpSlow(host.to_owned(), patience));
            let found = timeout_at(end, answer(&mut told)).await;
            found.map_err(|_| LinkError::LookUpSlow(host.to_owned(), LOOK_UP))?
        }
    };
    let found = found.map_err(failed)?;
    if found.is_empty() {
        return Err(failed(io::Error::other("the name has no address")));
    }
    Ok(interleaved(found))
}

/// What the resolver finds; `None` until then.
type Found = watch::Receiver<Option<io::Result<Vec<SocketAddr>>>>;

/// Joins the look-up of this name that is under way for any worker, or starts one. So each name holds one thread
/// while the resolver does not answer.
fn looking_up(host: &str, port: u16) -> io::Result<Found> {
    static UNDER_WAY: Mutex<BTreeMap<(String, u16), Found>> = Mutex::new(BTreeMap::new());
    // Each change is one call: a panic leaves no half of one.
    let under_way = || UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = under_way();
    let name = (host.to_owned(), port);
    if let Some(found) = all.get(&name).filter(|found| found.has_changed().is_ok()) {
        return Ok(found.clone());
    }
    let (tell, found) = watch::channel(None);
    let key = name.clone();
    // A separate thread: a runtime would wait for the resolver when the runtime ends.
    std::thread::Builder::new().name("webws-look-up".to_owned()).spawn(move || {
        let found = (key.0.as_str(), key.1).to_socket_addrs().map(Vec::from_iter);
        under_way().remove(&key);
        // All attempts may have been given up.
        tell.send_replace(Some(found));
    })?;
    all.insert(name, found.clone());
    Ok(found)
}

async fn answer(found: &mut Found) -> io::Result<Vec<SocketAddr>> {
    match found.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Ok(found))) => Ok(found.clone()),
        // An error cannot be cloned.
        Ok(Some(Err(error))) => Err(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        }),
        Ok(None) | Err(_) => Err(io::Error::other("the resolver's thread ended")),
    }
}

/// Alternates the families, beginning with the one that the resolver prefers (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_kind = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == is_first_kind);
    let mut turns = [first, second];
    let mut all = Vec::new();
    while turns.iter().any(|turn| !turn.is_empty()) {
        all.extend(turns.iter_mut().filter_map(VecDeque::pop_front));
    }
    all
}

type Connecting = Pin<Box<dyn Future<Output = Result<TcpStream, LinkError>>>>;

/// Attempts at several addresses. Yields each connection as soon as it is made.
pub(super) struct Race {
    /// Addresses without an attempt yet.
    waiting: VecDeque<SocketAddr>,
    running: Vec<(SocketAddr, Connecting)>,
    next_at: Instant,
    limit: Duration,
    failed: Vec<LinkError>,
}

impl Race {
    /// Each address may take `limit`.
    pub(super) fn new(addresses: Vec<SocketAddr>, limit: Duration) -> Self {
        Self { waiting: addresses.into(), running: Vec::new(), next_at: Instant::now(), limit, failed: Vec::new() }
    }

    /// The next connection; `None` when all addresses were tried.
    pub(super) async fn next(&mut self) -> Option<(SocketAddr, TcpStream)> {
        loop {
            let is_due = self.running.is_empty() || self.next_at <= Instant::now();
            if is_due && let Some(address) = self.waiting.pop_front() {
                self.running.push((address, connecting(address, self.limit)));
                self.next_at = Instant::now() + STAGGER;
            }
            if self.running.is_empty() {
                return None;
            }
            let (next_at, has_more) = (self.next_at, !self.waiting.is_empty());
            tokio::select! {
                (address, made) = first_of(&mut self.running) => match made {
                    Ok(stream) => return Some((address, stream)),
                    Err(error) => self.fail(error),
                },
                () = sleep_until(next_at), if has_more => {}
            }
        }
    }

    /// The last connection is of no use: starts the next address at once.
    pub(super) fn fail(&mut self, error: LinkError) {
        self.failed.push(error);
        self.next_at = Instant::now();
    }

    /// The faults, address by address.
    pub(super) fn into_error(mut self) -> LinkError {
        match self.failed.len() {
            1 => self.failed.remove(0),
            _ => LinkError::Each(self.failed),
        }
    }
}

fn connecting(address: SocketAddr, limit: Duration) -> Connecting {
    Box::pin(async move {
        let name = address.to_string();
        within(Step::Connect, &name, limit, async {
            let stream = TcpStream::connect(address).await;
            let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            stream.map_err(|error| LinkError::Unreachable(name.clone(), error))
        })
        .await
    })
}

/// Removes and returns the first of `running` that is done; pends while there are none.
pub(super) async fn first_of<K, F: Future + Unpin>(running: &mut Vec<(K, F)>) -> (K, F::Output) {
    poll_fn(|cx| {
        for place in 0..running.len() {
            let Some((_, future)) = running.get_mut(place) else { break };
            if let Poll::Ready(output) = Pin::new(future).poll(cx) {
                let (key, _) = running.swap_remove(place);
                return Poll::Ready((key, output));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never_slow(error: &LinkError) {
        panic!("{error}");
    }

    #[test]
    fn families_take_turns_and_the_preferred_one_begins() {
        let parse = |all: &[&str]| all.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(interleaved(found), parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]));
        let found = parse(&["1.1.1.1:1", "[::1]:1"]);
        assert_eq!(interleaved(found.clone()), found);
    }

    #[tokio::test]
    async fn an_address_that_is_of_no_use_makes_room_for_the_next() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let found = look_up("localhost", port, LOOK_UP, &never_slow).await.unwrap();
        assert!(found.iter().all(|address| address.port() == port && address.ip().is_loopback()), "{found:?}");
        let alive: SocketAddr = ([127, 0, 0, 1], port).into();
        let mut race = Race::new(vec![dead, alive, alive], LOOK_UP);
        assert_eq!(race.next().await.unwrap().0, alive);
        race.fail(LinkError::Closed);
        assert_eq!(race.next().await.unwrap().0, alive);
        race.fail(LinkError::Closed);
        assert!(race.next().await.is_none());
        let error = race.into_error().to_string();
        assert!(error.starts_with(&format!("{dead} cannot be reached")), "{error}");
        assert_eq!(error.matches("; ").count(), 2, "{error}");
    }
}
