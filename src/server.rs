//! A server: listeners, the acceptor that deals connections out, the workers' start and stop.
//!
//! May not enter: what connections say.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::{NotPublished, memory, redis};
use crate::config::{Broker, Config, ConfigError, Listen, RedisUrl};
use crate::endpoint::Channel;
use crate::handover::protocol::PortableListener;
use crate::handover::{CountsWaiting, Gate, Heritage, Site};
use crate::http::{self, Accepted, Pages, TEST_PAGE};
use crate::metrics::{Counter, Metrics, Shard};
use crate::os::descriptors::Lent;
use crate::os::{self, socket::FileId};
use crate::throttle::Throttle;
use crate::worker::handover::Ask;
use crate::worker::{self, BrokerSeed, Order, PublishRequest, WorkerSeed};

/// Connections accepted before the others have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Messages of [`Publisher`]s that may wait for their worker.
const MAX_REQUESTS: usize = 1_024;

/// What a hand-over may have asked of a worker that has not done it yet.
const MAX_ASKS: usize = 8;

/// Descriptors kept back from sessions: listeners, links, logs, epolls, a spare.
const RESERVED_DESCRIPTORS: usize = 128;

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration has faults.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", advice(.source))]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The sockets that systemd handed over are not what is expected.
    #[error("socket activation: {0}")]
    Activation(String),
    /// This process was started to take over from another, and could not: that one goes on.
    #[error("nothing was taken over: {0}")]
    HandOver(String),
    /// The control socket cannot be made.
    #[error("control: {0}")]
    Control(String),
    /// A worker could not start or ended before its time.
    #[error("worker {worker}: {source}")]
    Worker {
        /// Its number, from 0.
        worker: usize,
        /// What ended it.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; create the directory first (systemd: RuntimeDirectory= or the .socket unit)",
        io::ErrorKind::PermissionDenied => "; check the rights on the directory, or run as a user that has them",
        _ => "",
    }
}

/// A WebSocket server on listeners of its own or yours. Made with [`Server::bind`] or
/// [`Server::on`], run with [`Server::run`].
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let mut config = webws::Config::default();
/// config.broker = "memory".parse()?;
/// let listener = std::os::unix::net::UnixListener::bind(
///     # { let dir = std::env::temp_dir().join(format!("webws-doc-{}", std::process::id()));
///     # if dir.exists() { std::fs::remove_file(&dir)?; }
///     # dir }
/// )?;
/// let server = webws::Server::on(config, vec![listener.into()])?;
/// let publisher = server.publisher();
/// let shutdown = async { /* when your program ends */ };
/// server.run(shutdown).await?;
/// assert!(publisher.publish("chat:zhang", "too late").await.is_err());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    config: Arc<Config>,
    listeners: Vec<Listener>,
    seeds: Vec<BrokerSeed>,
    metrics: Metrics,
    shards: Arc<[Arc<Shard>]>,
    pages: Pages,
    requests: (mpsc::Sender<PublishRequest>, mpsc::Receiver<PublishRequest>),
    /// The Redis that it uses, if it does.
    deployment: Option<redis::Deployment>,
    /// Whether its workers begin at rest, because another process' sessions are to come.
    rests: bool,
    /// Listeners of another process that are not configured here.
    leftover: Vec<Listener>,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    /// What was configured; none when somebody gave it to us.
    listen: Option<Listen>,
    /// The socket file that was made for it.
    file: Option<(PathBuf, FileId)>,
    /// Whether that is removed at the end: not while, or since, it is another process'.
    owns_file: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, id)) = self.file.as_ref().filter(|_| self.owns_file) {
            os::socket::remove_own(path, *id);
        }
    }
}

impl Server {
    /// A server that listens where `config.listen` says. The sockets accept from now on.
    ///
    /// # Errors
    /// A fault in the configuration, a file it names that cannot be read, or an address that
    /// cannot be listened on.
    pub fn bind(config: Config) -> Result<Self, ServerError> {
        let mut server = Self::on(config, Vec::new())?;
        if server.config.listen.is_empty() {
            return Err(ConfigError::new(vec!["listen is empty: write one address at least".to_owned()]).into());
        }
        for listen in &server.config.listen {
            let listener = bind(listen, &server.config);
            server
                .listeners
                .push(listener.map_err(|source| ServerError::Listen { address: listen.to_string(), source })?);
        }
        Ok(server)
    }

    /// A server that takes over from another process with these listeners: those that systemd gave, or
    /// those that are still configured; what is configured and not among them is bound. Its workers
    /// rest, and nobody is accepted.
    pub(crate) fn taking_over(config: Config, heritage: Heritage) -> Result<Self, ServerError> {
        let mut server = Self::on(config, Vec::new())?;
        server.rests = true;
        if let Some(deployment) = &server.deployment {
            deployment.inherit(heritage.homes);
        }
        let mut given = Vec::new();
        for (portable, socket) in heritage.listeners {
            let address = portable.address.as_deref().map(str::parse::<Listen>).transpose()?;
            let file = match (&address, portable.file) {
                (Some(Listen::Unix(path)), Some((device, inode))) => Some((path.clone(), FileId { device, inode })),
                _ => None,
            };
            given.push(Listener { socket, listen: address, file, owns_file: false });
        }
        if given.iter().any(|listener| listener.listen.is_none()) {
            server.listeners = given;
            return Ok(server);
        }
        for listen in server.config.listen.clone() {
            let place = given.iter().position(|listener| listener.listen.as_ref() == Some(&listen));
            let listener = match place {
                Some(place) => Ok(given.swap_remove(place)),
                None => bind(&listen, &server.config),
            };
            server
                .listeners
                .push(listener.map_err(|source| ServerError::Listen { address: listen.to_string(), source })?);
        }
        // What is not configured any more is closed when the old process has gone: until then, it may
        // need it.
        server.leftover = given;
        Ok(server)
    }

    /// Checks a configuration as far as it can be without starting: the settings, and what they
    /// name (the password's and the certificates' files, the socket's group).
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn check(config: &Config) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if let Err(error) = config.validate() {
            faults.extend(error.faults().map(str::to_owned));
        }
        if config.listen.is_empty() {
            faults.push("listen is empty: write one address at least".to_owned());
        }
        if let Broker::Redis(urls) = &config.broker {
            for url in urls {
                if let Err(error) = redis_deployment(config, std::slice::from_ref(url), 1) {
                    faults.extend(error.faults().map(str::to_owned));
                }
            }
        }
        if let Some(group) = &config.socket_group
            && !os::socket::has_group(group)
        {
            faults.push(format!("socket_group: there is no group '{group}'"));
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new(faults)) }
    }

    /// A server on listeners that exist already: `UnixListener` and `TcpListener` of std
    /// both convert into `OwnedFd`. `config.listen` is not used.
    ///
    /// # Errors
    /// A fault in the configuration, a file it names that cannot be read, or a descriptor that
    /// is not open.
    pub fn on(config: Config, listeners: Vec<OwnedFd>) -> Result<Self, ServerError> {
        config.validate()?;
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let deployment = match &config.broker {
            Broker::Memory => None,
            Broker::Redis(urls) => Some(redis_deployment(&config, urls, workers)?),
        };
        let seeds = match &deployment {
            None => memory::bus(workers).into_iter().map(BrokerSeed::Memory).collect(),
            Some(deployment) => (0..workers).map(|_| BrokerSeed::Redis(deployment.clone())).collect(),
        };
        let shards: Arc<[_]> = (0..workers).map(|_| Arc::new(Shard::new())).collect();
        let mut server = Self {
            config: Arc::new(config),
            listeners: Vec::new(),
            seeds,
            metrics: Metrics::new(shards.clone()),
            shards,
            pages: &[],
            requests: mpsc::channel(MAX_REQUESTS),
            deployment,
            rests: false,
            leftover: Vec::new(),
        };
        for socket in listeners {
            if !os::socket::is_listening(socket.as_fd()) {
                let source = io::Error::other("it is no listening stream socket (ListenStream= in the .socket unit)");
                return Err(ServerError::Listen { address: os::socket::address(socket.as_fd()), source });
            }
            os::socket::prepare_listener(socket.as_fd())
                .map_err(|source| ServerError::Listen { address: "the given socket".to_owned(), source })?;
            server.listeners.push(Listener { socket, listen: None, file: None, owns_file: false });
        }
        Ok(server)
    }

    /// Its workers begin at rest, and nobody is accepted, because another process' sessions are to come.
    pub(crate) fn resting(self) -> Self {
        Self { rests: true, ..self }
    }

    /// Serves the test page at `/` as well.
    #[must_use]
    pub fn with_test_page(mut self) -> Self {
        self.pages = TEST_PAGE;
        self
    }

    /// Publishes through this server's broker, for as long as it runs.
    pub fn publisher(&self) -> Publisher {
        Publisher { requests: self.requests.0.clone() }
    }

    /// The server's counts.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.seeds.len()
    }

    /// Where it listens, for a log line.
    pub(crate) fn addresses(&self) -> String {
        let addresses = self.listeners.iter().map(|listener| os::socket::address(listener.socket.as_fd()));
        addresses.collect::<Vec<_>>().join(", ")
    }

    /// Serves until `shutdown` resolves, then drains: accepts no more, closes the sessions
    /// with 1001 spread over `drain_time`, and ends. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When a worker cannot start or ends before its time.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server at once: all connections are closed without a word.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let drain = async {
            shutdown.await;
            Ending::Drain
        };
        self.start()?.run_until(drain).await
    }

    /// Starts the workers.
    pub(crate) fn start(self) -> Result<Running, ServerError> {
        let (orders, ordered) = watch::channel(Order::Serve);
        let (mut inlets, mut ends) = (Vec::new(), Vec::new());
        let mut requests = Some(self.requests.1);
        let max_sessions = match self.config.limits.max_sessions {
            0 => os::limit::descriptors().saturating_sub(RESERVED_DESCRIPTORS).max(1),
            limit => limit,
        };
        let mut asks = Vec::new();
        for (number, (broker, shard)) in self.seeds.into_iter().zip(self.shards.iter()).enumerate() {
            let (queue, accepted) = mpsc::channel(self.config.limits.max_handshakes);
            let (ask, asked) = mpsc::channel(MAX_ASKS);
            asks.push(ask);
            let seed = WorkerSeed {
                config: self.config.clone(),
                broker,
                shard: shard.clone(),
                metrics: self.metrics.clone(),
                max_sessions,
                requests: requests.take(),
                orders: ordered.clone(),
                asks: asked,
                rests: self.rests,
            };
            let pages = self.pages;
            let (tell, ended) = oneshot::channel();
            let thread = std::thread::Builder::new()
                .name(format!("webws-{number}"))
                .spawn(move || drop(tell.send(worker::run(seed, |worker| http::serve(worker, accepted, pages)))))
                .map_err(|source| ServerError::Worker { worker: number, source })?;
            inlets.push(Inlet { queue, shard: shard.clone() });
            ends.push(End { ended, thread });
        }
        let overflow = overflow_answer(self.config.limits.retry_after);
        Ok(Running {
            listeners: self.listeners,
            leftover: self.leftover,
            broker: self.config.broker.to_string(),
            deployment: self.deployment,
            inlets: inlets.into(),
            ends,
            orders,
            asks,
            gate: Arc::new(Gate::new(!self.rests)),
            overflow,
        })
    }
}

fn redis_deployment(config: &Config, urls: &[RedisUrl], workers: usize) -> Result<redis::Deployment, ConfigError> {
    let credential = os::systemd::credential("redis-password");
    redis::Deployment::try_new(config, urls, workers, credential.as_deref())
        .map_err(|error| ConfigError::new(vec![error.to_string()]))
}

fn bind(listen: &Listen, config: &Config) -> io::Result<Listener> {
    let (socket, file) = match listen {
        Listen::Unix(path) => {
            let (socket, id) = os::socket::bind_unix(path, config.socket_mode.0, config.socket_group.as_deref())?;
            (socket, Some((path.clone(), id)))
        }
        Listen::Tcp(address) => (std::net::TcpListener::bind(address)?.into(), None),
    };
    let listener = Listener { socket, listen: Some(listen.clone()), file, owns_file: true };
    os::socket::prepare_listener(listener.socket.as_fd())?;
    Ok(listener)
}

/// A server whose workers run.
#[derive(Debug)]
pub(crate) struct Running {
    listeners: Vec<Listener>,
    leftover: Vec<Listener>,
    broker: String,
    deployment: Option<redis::Deployment>,
    inlets: Arc<[Inlet]>,
    ends: Vec<End>,
    orders: watch::Sender<Order>,
    asks: Vec<mpsc::Sender<Ask>>,
    gate: Arc<Gate>,
    /// The answer to connections beyond `limits.max_handshakes`.
    overflow: Bytes,
}

/// Where connections go into a worker.
#[derive(Debug)]
struct Inlet {
    queue: mpsc::Sender<Accepted>,
    shard: Arc<Shard>,
}

/// How a worker ends.
#[derive(Debug)]
struct End {
    ended: oneshot::Receiver<io::Result<()>>,
    thread: JoinHandle<()>,
}

impl Inlet {
    /// Sessions it has and connections that wait to become one.
    fn load(&self) -> u64 {
        self.shard.sessions() + self.waiting() as u64
    }

    fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

impl CountsWaiting for Arc<[Inlet]> {
    fn waiting(&self) -> usize {
        self.iter().map(Inlet::waiting).sum()
    }
}

/// How a server ends that was not broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It closes its sessions.
    Drain,
    /// Another process has them.
    Leave,
}

impl End {
    fn result(told: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Result<()> {
        told.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    }
}

impl Running {
    /// Each worker's counts, for a watchdog.
    pub(crate) fn shards(&self) -> Vec<Arc<Shard>> {
        self.inlets.iter().map(|inlet| inlet.shard.clone()).collect()
    }

    /// What can be handed over, for as long as this runs.
    pub(crate) fn site(&self) -> Site {
        let portable = |listener: &Listener| {
            let address = listener.listen.as_ref().map(ToString::to_string);
            let file = listener.file.as_ref().map(|(_, id)| (id.device, id.inode));
            (PortableListener { address, file }, Lent::from(&listener.socket))
        };
        Site {
            asks: self.asks.clone(),
            listeners: self.listeners.iter().map(portable).collect(),
            broker: self.broker.clone(),
            deployment: self.deployment.clone(),
            gate: self.gate.clone(),
            waiting: Arc::new(self.inlets.clone()),
        }
    }

    /// The process that this one took over from is gone: its listeners are ours, and those that are not
    /// configured any more are closed.
    pub(crate) fn own_listeners(&mut self) {
        self.listeners.iter_mut().chain(&mut self.leftover).for_each(|listener| listener.owns_file = true);
        self.leftover.clear();
        self.gate.set(true);
    }

    /// Serves until `shutdown` resolves, then drains or leaves.
    pub(crate) async fn run_until(mut self, shutdown: impl Future<Output = Ending>) -> Result<(), ServerError> {
        let ending = tokio::select! {
            ending = shutdown => ending,
            error = accept_all(&self.listeners, &self.inlets, &self.overflow, &self.gate) => {
                return Err(error);
            }
            error = first_end(&mut self.ends) => return Err(error),
        };
        if ending == Ending::Leave {
            self.listeners.iter_mut().for_each(|listener| listener.owns_file = false);
            for worker in &self.asks {
                drop(worker.send(Ask::Leave).await);
            }
        }
        // Nobody new; what waits in the backlog stays there for the next process when the
        // socket is systemd's, and is refused by the kernel when it was ours.
        self.listeners.clear();
        if ending == Ending::Drain {
            self.orders.send_replace(Order::Drain);
        }
        for (worker, End { ended, thread }) in self.ends.into_iter().enumerate() {
            let result = End::result(ended.await);
            // To tell its end was the thread's last act.
            drop(thread.join());
            result.map_err(|source| ServerError::Worker { worker, source })?;
        }
        Ok(())
    }
}

async fn first_end(ends: &mut [End]) -> ServerError {
    let ended = ends.iter_mut().enumerate().map(|(worker, end)| {
        Box::pin(async move {
            let result = End::result((&mut end.ended).await);
            let source = result.err().unwrap_or_else(|| io::Error::other("it ended before its time"));
            ServerError::Worker { worker, source }
        })
    });
    first(ended.collect()).await
}

/// Accepts on all listeners; returns only when one cannot be used any more.
async fn accept_all(listeners: &[Listener], inlets: &[Inlet], overflow: &Bytes, gate: &Gate) -> ServerError {
    let mut refusing = JoinSet::new();
    let mut sockets = Vec::new();
    for listener in listeners {
        match os::readiness::readable(listener.socket.as_fd()) {
            Ok(socket) => sockets.push(socket),
            Err(source) => {
                return ServerError::Listen { address: os::socket::address(listener.socket.as_fd()), source };
            }
        }
    }
    if sockets.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let readable = sockets.iter().map(|socket| Box::pin(socket.readable()));
        let mut guard = match first(readable.collect()).await {
            Ok(guard) => guard,
            Err(source) => return ServerError::Listen { address: "a listener".to_owned(), source },
        };
        gate.is_open().await;
        let accepted = gate.pass(|| {
            for _ in 0..ACCEPTS_PER_TURN {
                match os::socket::accept(guard.get_inner().as_fd()) {
                    Ok(socket) => deal(inlets, socket, overflow, &mut refusing),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        guard.clear_ready();
                        break;
                    }
                    // The peer was faster.
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        if let Some(Err(error)) = accepted {
            wait_for_room(&error).await;
        }
        while refusing.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

/// The first of several futures; the others are dropped.
async fn first<F: Future + Unpin>(mut futures: Vec<F>) -> F::Output {
    std::future::poll_fn(|cx| {
        for future in &mut futures {
            if let ready @ std::task::Poll::Ready(_) = std::pin::Pin::new(future).poll(cx) {
                return ready;
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Out of descriptors or memory: the backlog keeps what comes until there is room.
async fn wait_for_room(error: &io::Error) {
    static NO_ROOM: Throttle = Throttle::per_minute();
    if NO_ROOM.allows() {
        tracing::error!(%error, "connections cannot be accepted: raise LimitNOFILE or lower limits.max_sessions");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn deal(inlets: &[Inlet], socket: OwnedFd, overflow: &Bytes, refusing: &mut JoinSet<()>) {
    static OVERFLOW: Throttle = Throttle::per_minute();
    let Some(inlet) = inlets.iter().min_by_key(|inlet| inlet.load()) else { return };
    if let Err(full) = inlet.queue.try_send(Accepted { socket, at: Instant::now() }) {
        inlet.shard.add(Counter::HandshakesRefused, 1);
        if OVERFLOW.allows() {
            tracing::warn!("too many handshakes wait: answering 503 (limits.max_handshakes)");
        }
        if refusing.len() < MAX_REQUESTS {
            refusing.spawn(refuse(full.into_inner().socket, overflow.clone()));
        }
    }
}

fn overflow_answer(retry_after: Duration) -> Bytes {
    let seconds = retry_after.as_secs().max(1);
    let head = format!("503 Service Unavailable\r\nRetry-After: {seconds}");
    http::plain_answer(&head, "too many handshakes wait: try again in a while")
}

/// Answers without looking at the request.
async fn refuse(socket: OwnedFd, answer: Bytes) {
    let Ok(socket) = os::readiness::readable(socket) else { return };
    // The request is read first: closing with unread bytes would reset the connection.
    let request = async {
        let mut buffer = [0; 4096];
        let mut guard = socket.readable().await?;
        guard.try_io(|socket| os::socket::receive(socket.as_fd(), &mut buffer)).unwrap_or(Ok(0))?;
        os::socket::send_bytes(socket.as_fd(), &answer)
    };
    if !matches!(tokio::time::timeout(Duration::from_secs(1), request).await, Ok(Ok(_))) {
        tracing::trace!("a refused client did not wait for its answer");
    }
}

/// Publishes messages as any Redis client would with `PUBLISH`; cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    requests: mpsc::Sender<PublishRequest>,
}

impl Publisher {
    /// Publishes `payload` on `channel` (its full name, as `chat:zhang`) and waits for the
    /// broker's word. Messages of one publisher leave in the order of the calls.
    ///
    /// # Errors
    /// When it was not published, or nobody knows: see [`NotPublished`].
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the message may be published or not.
    pub async fn publish(&self, channel: impl Into<Bytes>, payload: impl Into<Bytes>) -> Result<(), NotPublished> {
        let (tell, told) = oneshot::channel();
        let request = PublishRequest { channel: Channel::from(channel.into()), payload: payload.into(), tell };
        self.requests.send(request).await.map_err(|_| NotPublished::Unavailable)?;
        told.await.unwrap_or(Err(NotPublished::Unavailable))
    }
}
