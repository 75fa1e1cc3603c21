//! A TCP proxy in front of Redis that misbehaves on command.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What it does with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Keeps them, as a network does that loses packets: they come when it is over.
    Hold,
    /// Passes them so much later.
    Delay(Duration),
    /// Passes them one by one.
    Trickle,
    /// Swallows what Redis says to subscribers.
    Deafen,
    /// Ends a subscriber's connection in the middle of the next message.
    CutInMessage,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: AtomicU16,
    mode: watch::Sender<Mode>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// One connection, seen from the middle.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    is_subscriber: AtomicBool,
    reset: Notify,
}

impl Proxy {
    /// A proxy in front of the Redis at `upstream` on this machine.
    pub(crate) async fn start(upstream: u16) -> Proxy {
        Proxy::start_on(([127, 0, 0, 1], 0).into(), upstream).await
    }

    /// The same on an address of this machine.
    pub(crate) async fn start_on(address: SocketAddr, upstream: u16) -> Proxy {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, connections) = (watch::Sender::new(Mode::Pass), Mutex::default());
        let shared = Arc::new(Shared { upstream: AtomicU16::new(upstream), mode, connections });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Proxy { port, shared, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Leads new connections elsewhere; those that are open stay.
    pub(crate) fn lead_to(&self, upstream: u16) {
        self.shared.upstream.store(upstream, Ordering::Relaxed);
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.each(|connection| connection.reset.notify_one());
    }

    /// Says `bytes` to Redis in the name of each subscriber.
    pub(crate) fn say_as_subscriber(&self, bytes: &[u8]) {
        self.each(|connection| {
            if connection.is_subscriber.load(Ordering::Relaxed) {
                assert_eq!(connection.server.try_write(bytes).unwrap(), bytes.len());
            }
        });
    }

    fn each(&self, act: impl FnMut(&Arc<Connection>)) {
        self.shared.connections.lock().unwrap().iter().for_each(act);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.reset();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            // Who connects while nothing passes has to wait as well.
            shared.mode.subscribe().wait_for(|mode| *mode != Mode::Hold).await.unwrap();
            let Ok(server) = TcpStream::connect(("127.0.0.1", shared.upstream.load(Ordering::Relaxed))).await else {
                return;
            };
            server.set_nodelay(true).unwrap();
            client.set_nodelay(true).unwrap();
            let connection =
                Arc::new(Connection { client, server, is_subscriber: AtomicBool::new(false), reset: Notify::new() });
            shared.connections.lock().unwrap().push(connection.clone());
            tokio::select! {
                _ = pump(&connection, Way::ToRedis, &shared.mode) => {}
                _ = pump(&connection, Way::FromRedis, &shared.mode) => {}
                () = connection.reset.notified() => {
                    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&connection.client.as_fd(), sockopt::Linger, &at_once).unwrap();
                }
            }
            shared.connections.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &connection));
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToRedis,
    FromRedis,
}

/// Moves bytes one way until an end.
async fn pump(connection: &Connection, way: Way, mode: &watch::Sender<Mode>) -> io::Result<()> {
    let (from, to) = match way {
        Way::ToRedis => (&connection.client, &connection.server),
        Way::FromRedis => (&connection.server, &connection.client),
    };
    let mut modes = mode.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        from.readable().await?;
        let read = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        if way == Way::ToRedis && contains(read, b"webws-subscriber") {
            connection.is_subscriber.store(true, Ordering::Relaxed);
        }
        let to_subscriber = way == Way::FromRedis && connection.is_subscriber.load(Ordering::Relaxed);
        let mode = *modes.wait_for(|mode| *mode != Mode::Hold).await.unwrap();
        match mode {
            Mode::Pass | Mode::Hold => write_all(to, read).await?,
            Mode::Delay(delay) => {
                tokio::time::sleep(delay).await;
                write_all(to, read).await?;
            }
            Mode::Trickle => {
                for byte in read.chunks(1) {
                    write_all(to, byte).await?;
                    tokio::task::yield_now().await;
                }
            }
            Mode::Deafen if to_subscriber => {}
            Mode::CutInMessage if to_subscriber && contains(read, b"chat:") => {
                write_all(to, &read[..read.len() - 3]).await?;
                return Ok(());
            }
            Mode::Deafen | Mode::CutInMessage => write_all(to, read).await?,
        }
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
