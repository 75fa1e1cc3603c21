//! The floor: a server that joins WebSockets to Redis channels with as little work as possible.
//!
//! One event loop per worker, Redis' replies parsed by hand, a frame built once per publication, one raw `send` of the
//! batch per subscriber. The handshake and the wire are webws' defaults. The floor has no liveness checks, hardly any
//! limits, and does not reconnect. A server's cost above the floor is the price of its features. May not enter:
//! features of webws, whose price the floor shows.

mod handshake;
mod redis;
mod worker;

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{EventfdFlags, eventfd};
use webws::Listen;

use crate::args::FloorArgs;
use worker::{Counts, Worker};

/// Connections that may wait to be accepted: `somaxconn`'s default.
const BACKLOG: i32 = 4096;

/// A deliberate fault in every N-th publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: FaultKind,
    every: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultKind {
    Lose,
    Duplicate,
    Reorder,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "write lose:N, duplicate:N or reorder:N; every N-th publication is hit".to_owned();
        let (kind, every) = text.split_once(':').ok_or_else(usage)?;
        let kind = match kind {
            "lose" => FaultKind::Lose,
            "duplicate" => FaultKind::Duplicate,
            "reorder" => FaultKind::Reorder,
            _ => return Err(usage()),
        };
        let every = every.parse().ok().filter(|every| *every > 0).ok_or_else(usage)?;
        Ok(Self { kind, every })
    }
}

/// State that all workers share.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// Connections accepted for a worker, and the worker's waker.
    inboxes: Vec<(Mutex<Vec<OwnedFd>>, OwnedFd)>,
    next: AtomicUsize,
}

impl Shared {
    fn wake(&self, worker: usize) {
        if let Some((_, waker)) = self.inboxes.get(worker) {
            // A full waker means that the worker is awake already.
            rustix::io::write(waker, &1_u64.to_ne_bytes()).ok();
        }
    }

    /// Hands a connection to the next worker in turn.
    fn hand_over(&self, socket: OwnedFd) {
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.inboxes.len();
        if let Some((inbox, _)) = self.inboxes.get(worker) {
            inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(socket);
            self.wake(worker);
        }
    }

    fn take(&self, worker: usize) -> Vec<OwnedFd> {
        let inbox = self.inboxes.get(worker).map(|(inbox, _)| inbox);
        inbox
            .map(|inbox| std::mem::take(&mut *inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
            .unwrap_or_default()
    }
}

/// Serves until SIGTERM or SIGINT, then prints the counts.
///
/// # Errors
/// Why the floor cannot serve, as a sentence.
pub(crate) fn serve(args: &FloorArgs) -> Result<(), String> {
    if args.workers == 0 || args.workers > 1024 {
        return Err("--workers is not between 1 and 1024".to_owned());
    }
    let system = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("{what}: {error}")
    };
    webws_limit()?;
    // Blocked before the first thread, so that all inherit it.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|error| format!("signals: {error}"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| format!("signalfd: {error}"))?;
    let listener = listen(&args.listen)?;
    let waker = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(|waker| (Mutex::default(), waker));
    let inboxes = (0..args.workers).map(|_| waker()).collect::<Result<_, _>>();
    let inboxes = inboxes.map_err(|error| format!("eventfd: {error}"))?;
    let shared = Arc::new(Shared { stop: AtomicBool::new(false), inboxes, next: AtomicUsize::new(0) });
    let worker = |place| Worker::new(place, Arc::clone(&shared), &args.redis, args.fault);
    let mut workers = (0..args.workers).map(worker).collect::<Result<Vec<_>, _>>()?;
    // The first one stays on this thread: with one worker, the process has one thread.
    let mut first = workers.remove(0);
    first.accept_on(listener, signals).map_err(system("epoll"))?;
    let spawn = |worker: Worker| thread::Builder::new().name("floor".to_owned()).spawn(|| worker.run());
    let threads = workers.into_iter().map(spawn).collect::<Result<Vec<_>, _>>().map_err(system("a thread"))?;
    let mut counts = first.run()?;
    for thread in threads {
        counts.add(&thread.join().map_err(|_| "a worker panicked: its message is above".to_owned())??);
    }
    if let Listen::Unix(path) = &args.listen {
        std::fs::remove_file(path).map_err(system("removing the socket"))?;
    }
    let Counts { connections, messages, deliveries, sends, published, kept, dropped } = counts;
    // The reader of stdout may be gone.
    drop(writeln!(
        std::io::stderr(),
        "floor: {connections} connections, {messages} messages from Redis, {deliveries} deliveries in {sends} sends, \
         {published} published; {kept} sends were not taken whole, {dropped} connections dropped for it"
    ));
    Ok(())
}

/// The soft descriptor limit becomes the hard one.
fn webws_limit() -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|error| format!("raising the descriptor limit: {error}"))
}

fn listen(address: &Listen) -> Result<OwnedFd, String> {
    let fault = |error: std::io::Error| format!("--listen {address}: {error}");
    let socket: OwnedFd = match address {
        Listen::Unix(path) => {
            // A file that a dead process left.
            if path.exists() && UnixStream::connect(path).is_err() {
                std::fs::remove_file(path).map_err(fault)?;
            }
            let listener = UnixListener::bind(path).map_err(fault)?;
            // nginx' workers run as another user, and this serves nothing but measurements.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(fault)?;
            listener.set_nonblocking(true).map_err(fault)?;
            listener.into()
        }
        Listen::Tcp(address) => {
            let listener = TcpListener::bind(address).map_err(fault)?;
            listener.set_nonblocking(true).map_err(fault)?;
            listener.into()
        }
        _ => return Err(format!("--listen {address}: the floor listens on unix:PATH and tcp:ADDRESS:PORT only")),
    };
    rustix::net::listen(&socket, BACKLOG).map_err(|error| format!("--listen {address}: {error}"))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_kind_and_a_number() {
        assert_eq!("lose:500".parse(), Ok(Fault { kind: FaultKind::Lose, every: 500 }));
        for text in ["lose", "lose:0", "lose:x", "burn:3"] {
            assert!(text.parse::<Fault>().unwrap_err().contains("lose:N"), "{text}");
        }
    }
}
