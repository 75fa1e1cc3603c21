//! A server: listeners, the workers' start and stop.
//!
//! May not enter: what connections say.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::broker::{memory, redis};
use crate::channel::Channel;
use crate::config::{Broker, Config, ConfigError, Listen, Reading, RedisUrl};
use crate::front::acceptor::{Entrance, Inlet, first};
use crate::front::page::{Pages, TestPage};
use crate::front::upgrade;
use crate::handover::protocol::PortableListener;
use crate::handover::{Heritage, Site};
use crate::message::NotPublished;
use crate::metrics::{Metrics, Shard};
use crate::notice;
use crate::os::descriptors::Lent;
use crate::os::{self, socket_file::FileId};
use crate::worker::handover::Ask;
use crate::worker::{self, BrokerSeed, Order, PublishRequest, WorkerSeed};

/// Messages of [`Publisher`]s that may wait for their worker.
const MAX_REQUESTS: usize = 1_024;

/// What a hand-over may have asked of a worker that has not done it yet.
const MAX_ASKS: usize = 8;

/// Descriptors of connections that are not for sessions: who comes when all places are taken is told so. Listeners,
/// links and epolls are among them.
pub(crate) const NO_SESSIONS: usize = 88;

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration has faults.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", advice(.address, .source))]
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

/// What to do about an address that cannot be listened on.
pub(crate) fn advice(address: &str, error: &io::Error) -> &'static str {
    let tcp = address.strip_prefix("tcp:");
    let is_privileged = tcp.and_then(|tcp| tcp.rsplit(':').next()?.parse().ok()).is_some_and(|port: u16| port < 1024);
    match (error.kind(), tcp) {
        (io::ErrorKind::PermissionDenied, Some(_)) if is_privileged => {
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities= and \
             CapabilityBoundingSet=): choose a higher port, and let nginx have this one"
        }
        (io::ErrorKind::AddrInUse, Some(_)) => {
            "; another process has this port (ss -ltnp shows which): stop it, or choose another port"
        }
        (io::ErrorKind::AddrNotAvailable, Some(_)) => "; this machine has no such address (ip address shows them)",
        (io::ErrorKind::NotFound, None) => {
            "; create the directory first (systemd: RuntimeDirectory= or the .socket unit)"
        }
        (io::ErrorKind::PermissionDenied, None) => {
            "; check the rights on the directory, or run as a user that has them"
        }
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
            os::socket_file::remove_own(path, *id);
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
        Self::check_surroundings(config, &mut faults);
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new(faults)) }
    }

    /// Checks a configuration that may have faults: lists those and what [`Server::check`] finds.
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn check_reading(reading: &Reading) -> Result<(), ConfigError> {
        let mut faults: Vec<String> = reading.faults().map(str::to_owned).collect();
        if faults.is_empty() {
            return Self::check(&reading.config);
        }
        Self::check_surroundings(&reading.config, &mut faults);
        Err(ConfigError::new(faults))
    }

    /// What the settings name.
    fn check_surroundings(config: &Config, faults: &mut Vec<String>) {
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
            && !os::socket_file::has_group(group)
        {
            faults.push(format!("socket_group: there is no group '{group}' (getent group lists all groups)"));
        }
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
            pages: None,
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

    /// Serves the test page at `/` as well, and publishes what is posted to `/dev/publish`. Requests from other
    /// machines' pages, or for other names than this machine's, are refused with 403 then.
    #[must_use]
    pub fn with_test_page(mut self) -> Self {
        self.pages = Some(Arc::new(TestPage::new(&self.config, self.publisher())));
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

    /// How many descriptors connections may have.
    fn for_connections(&self) -> usize {
        os::limit::for_connections(self.links())
    }

    fn links(&self) -> usize {
        self.deployment.as_ref().map_or(0, |deployment| deployment.links(self.seeds.len()))
    }

    /// How many sessions it admits: the setting, or what the descriptor limit allows.
    pub(crate) fn max_sessions(&self) -> usize {
        let possible = self.for_connections().saturating_sub(NO_SESSIONS).max(1);
        match self.config.limits.max_sessions {
            0 => possible,
            limit => limit.min(possible),
        }
    }

    /// How many descriptors `limits.max_sessions` needs, with the links to the broker; 0 where it is not set.
    pub(crate) fn wanted_descriptors(&self) -> usize {
        match self.config.limits.max_sessions {
            0 => 0,
            limit => limit + NO_SESSIONS + os::limit::MAKING_LINKS + 2 * self.links(),
        }
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
        for warning in self.config.warnings() {
            tracing::warn!("{warning}");
        }
        let (max_sessions, for_connections) = (self.max_sessions(), self.for_connections());
        let (orders, ordered) = watch::channel(Order::Serve);
        let (mut inlets, mut ends) = (Vec::new(), Vec::new());
        let mut requests = Some(self.requests.1);
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
            let pages = self.pages.clone();
            let (tell, ended) = oneshot::channel();
            let thread = std::thread::Builder::new()
                .name(format!("webws-{number}"))
                .spawn(move || drop(tell.send(worker::run(seed, |worker| upgrade::serve(worker, accepted, pages)))))
                .map_err(|source| ServerError::Worker { worker: number, source })?;
            inlets.push(Inlet { queue, shard: shard.clone() });
            ends.push(End { ended, thread });
        }
        let retry_after = self.config.limits.retry_after;
        Ok(Running {
            listeners: self.listeners,
            leftover: self.leftover,
            config: self.config,
            deployment: self.deployment,
            ends,
            orders,
            asks,
            entrance: Arc::new(Entrance::new(!self.rests, inlets, retry_after, for_connections)),
        })
    }
}

fn redis_deployment(config: &Config, urls: &[RedisUrl], workers: usize) -> Result<redis::Deployment, ConfigError> {
    let systemd = redis::SystemdCredentials {
        redis: os::systemd::credential("redis-password"),
        sentinel: os::systemd::credential("redis-sentinel-password"),
    };
    redis::Deployment::try_new(config, urls, workers, &systemd)
        .map_err(|error| ConfigError::new(vec![error.to_string()]))
}

fn bind(listen: &Listen, config: &Config) -> io::Result<Listener> {
    let (socket, file) = match listen {
        Listen::Unix(path) => {
            let (socket, id) = os::socket_file::bind_unix(path, config.socket_mode.0, config.socket_group.as_deref())?;
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
    config: Arc<Config>,
    deployment: Option<redis::Deployment>,
    ends: Vec<End>,
    orders: watch::Sender<Order>,
    asks: Vec<mpsc::Sender<Ask>>,
    entrance: Arc<Entrance>,
}

/// How a worker ends.
#[derive(Debug)]
struct End {
    ended: oneshot::Receiver<io::Result<()>>,
    thread: JoinHandle<()>,
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
        self.entrance.shards()
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
            broker: self.config.broker.to_string(),
            control: self.config.control.clone(),
            deployment: self.deployment.clone(),
            entrance: self.entrance.clone(),
        }
    }

    /// The process that this one took over from is gone: its listeners are ours, and those that are not
    /// configured any more are closed.
    pub(crate) fn own_listeners(&mut self) {
        self.listeners.iter_mut().chain(&mut self.leftover).for_each(|listener| listener.owns_file = true);
        for (path, id) in self.listeners.iter().filter_map(|listener| listener.file.as_ref()) {
            let Config { socket_mode, socket_group, .. } = &*self.config;
            if let Err(error) = os::socket_file::grant(path, *id, socket_mode.0, socket_group.as_deref()) {
                let path = path.display();
                tracing::warn!(
                    %error,
                    %path,
                    "{path} keeps its old permissions and group: socket_mode and socket_group cannot be set ({error})"
                );
            }
        }
        self.leftover.clear();
        self.entrance.set_open(true);
    }

    /// Serves until `shutdown` resolves, then drains or leaves.
    pub(crate) async fn run_until(mut self, shutdown: impl Future<Output = Ending>) -> Result<(), ServerError> {
        let sockets: Vec<_> = self.listeners.iter().map(|listener| listener.socket.as_fd()).collect();
        let ending = tokio::select! {
            ending = shutdown => ending,
            (address, source) = self.entrance.accept(&sockets) => return Err(ServerError::Listen { address, source }),
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
        notice::tell_all();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_listened_on_has_its_own_advice() {
        for (address, kind, expected) in [
            ("tcp:127.0.0.1:80", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("tcp:[::1]:443", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("tcp:127.0.0.1:8080", io::ErrorKind::AddrInUse, "another process has this port"),
            ("tcp:192.0.2.1:8080", io::ErrorKind::AddrNotAvailable, "no such address"),
            ("unix:/absent/s", io::ErrorKind::NotFound, "create the directory"),
            ("unix:/root/s", io::ErrorKind::PermissionDenied, "rights on the directory"),
        ] {
            let error = ServerError::Listen { address: address.to_owned(), source: kind.into() }.to_string();
            assert!(error.contains(address) && error.contains(expected), "{error}");
        }
        // A socket's file has its own sentence for that.
        assert_eq!(advice("unix:/s", &io::ErrorKind::AddrInUse.into()), "");
        assert_eq!(advice("tcp:127.0.0.1:8080", &io::ErrorKind::PermissionDenied.into()), "");
    }
}
