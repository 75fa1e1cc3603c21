//! A server before its workers run: checked, bound, and started.
//!
//! May not enter: what connections say.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::error::ServerError;
use super::listener::{Listener, bind, prepare};
use super::running::{End, Ending, Running};
use crate::broker::{memory, redis};
use crate::config::{BrokerConfig, Config, ConfigError, ConfigFault, Listen, Reading, RedisUrl};
use crate::front::acceptor::{Entrance, Inlet};
use crate::front::access::Access;
use crate::front::page::{Pages, TestPage};
use crate::front::upgrade;
use crate::handover::Heritage;
use crate::memory::Budget;
use crate::metrics::{Metrics, Shard};
use crate::os::{self, socket_file::FileId};
use crate::worker::{self, BrokerSeed, Command, Handshakes, Mailbox, Publisher, WorkerSeed};

/// Descriptors besides those of sessions: listeners, links, epolls, and connections that are refused because the
/// server is full.
pub(crate) const NO_SESSIONS: usize = 88;

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
    /// Each worker's.
    mailboxes: Vec<(mpsc::Sender<Command>, mpsc::Receiver<Command>)>,
    /// The Redis deployment; none with the embedded broker.
    deployment: Option<redis::Deployment>,
    /// Whether the workers start quiesced, because sessions of another process follow.
    awaits_sessions: bool,
    /// Listeners of another process that are not configured here.
    leftover: Vec<Listener>,
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
            return Err(ConfigError::new(vec!["listen is empty: write at least one address".to_owned()]).into());
        }
        for listen in &server.config.listen {
            server.listeners.push(bind(listen, &server.config)?);
        }
        Ok(server)
    }

    /// A server that takes over the listeners of another process. Sockets from systemd are all kept. Of others, those
    /// still configured are kept, and missing ones are bound. The workers are quiesced, and no connection is accepted.
    pub(crate) fn taking_over(config: Config, heritage: Heritage) -> Result<Self, ServerError> {
        let mut server = Self::on(config, Vec::new())?;
        server.awaits_sessions = true;
        if let Some(deployment) = &server.deployment {
            deployment.inherit(heritage.homes);
        }
        let mut given = Vec::new();
        for (snapshot, socket) in heritage.listeners {
            let address = snapshot.address.as_deref().map(str::parse::<Listen>).transpose()?;
            let file = match (&address, snapshot.file) {
                (Some(Listen::Unix(path) | Listen::Handoff(path)), Some((device, inode))) => {
                    Some((path.clone(), FileId { device, inode }))
                }
                _ => None,
            };
            given.push(Listener { socket, listen: address, file, owns_file: false });
        }
        if given.iter().any(|listener| listener.listen.is_none()) {
            server.listeners = given;
            return Ok(server);
        }
        for listen in server.config.listen.clone() {
            let index = given.iter().position(|listener| listener.listen.as_ref() == Some(&listen));
            let listener = match index {
                Some(index) => given.swap_remove(index),
                None => bind(&listen, &server.config)?,
            };
            server.listeners.push(listener);
        }
        // Listeners that are no longer configured are closed after the old process' end: it may still resume.
        server.leftover = given;
        Ok(server)
    }

    /// Checks a configuration without starting a server: the settings, and what they name (files of passwords and
    /// certificates, the socket's group).
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn check(config: &Config) -> Result<(), ConfigError> {
        let mut faults = config.validate().map_or_else(ConfigError::into_faults, |()| Vec::new());
        Self::check_surroundings(config, &mut faults);
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new(faults)) }
    }

    /// Checks what the settings name.
    fn check_surroundings(config: &Config, faults: &mut Vec<ConfigFault>) {
        if config.listen.is_empty() {
            faults.push("listen is empty: write at least one address".to_owned().into());
        }
        Access::check(config, faults);
        if let BrokerConfig::Redis(urls) = &config.broker {
            for url in urls {
                if let Err(error) = redis_deployment(config, std::slice::from_ref(url), 1) {
                    faults.extend(error.into_faults());
                }
            }
        }
        if let Some(group) = &config.socket_group
            && !os::socket_file::has_group(group)
        {
            faults.push(format!("socket_group: there is no group '{group}' (getent group lists all groups)").into());
        }
        if let Some(user) = &config.handoff_user
            && os::socket_file::user(user).is_none()
        {
            faults.push(format!("handoff_user: there is no user '{user}' (getent passwd lists all users)").into());
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
        let mut faults = Vec::new();
        Access::check(&config, &mut faults);
        if !faults.is_empty() {
            return Err(ConfigError::new(faults).into());
        }
        let workers = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let deployment = match &config.broker {
            BrokerConfig::Memory => None,
            BrokerConfig::Redis(urls) => Some(redis_deployment(&config, urls, workers)?),
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
            mailboxes: (0..workers).map(|_| worker::mailbox()).collect(),
            deployment,
            awaits_sessions: false,
            leftover: Vec::new(),
        };
        for socket in listeners {
            prepare(socket.as_fd())
                .map_err(|source| ServerError::Listen { address: os::socket::address(socket.as_fd()), source })?;
            server.listeners.push(Listener { socket, listen: None, file: None, owns_file: false });
        }
        Ok(server)
    }

    /// Starts with quiesced workers and accepts no connection, because sessions of another process follow.
    pub(crate) fn awaiting_sessions(self) -> Self {
        Self { awaits_sessions: true, ..self }
    }

    /// Serves the test page at `/` as well, and publishes what is posted to `/dev/publish`. Refuses requests from pages
    /// of other machines, or for other names than this machine's, with 403.
    pub(crate) fn with_test_page(mut self) -> Self {
        self.pages = Some(Arc::new(TestPage::new(&self.config, self.publisher())));
        self
    }

    /// Publishes through this server's broker, for as long as it runs.
    #[expect(clippy::missing_panics_doc, reason = "a server has a worker at least")]
    pub fn publisher(&self) -> Publisher {
        let (first, _) = self.mailboxes.first().expect("a server has a worker at least");
        Publisher::through(Mailbox::of(first))
    }

    /// The server's counts.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The number of workers.
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

    /// The most sessions that are admitted: the setting, or what the descriptor limit allows.
    pub(crate) fn max_sessions(&self) -> usize {
        let possible = self.for_connections().saturating_sub(NO_SESSIONS).max(1);
        match self.config.limits.max_sessions {
            0 => possible,
            limit => limit.min(possible),
        }
    }

    /// What the process may use beyond its start, in bytes: the setting, or half of what it could have at all.
    pub(crate) fn memory(&self) -> usize {
        match self.config.limits.memory {
            0 => os::limit::memory().map_or(usize::MAX, |all| all / 2),
            limit => limit,
        }
    }

    /// How many descriptors `limits.max_sessions` needs, with the links to the broker; 0 where it is not set.
    pub(crate) fn wanted_descriptors(&self) -> usize {
        match self.config.limits.max_sessions {
            0 => 0,
            limit => limit + NO_SESSIONS + os::limit::MAKING_LINKS + 2 * self.links(),
        }
    }

    /// The addresses of all listeners, for a log line.
    pub(crate) fn addresses(&self) -> String {
        let addresses = self.listeners.iter().map(|listener| os::socket::address(listener.socket.as_fd()));
        addresses.collect::<Vec<_>>().join(", ")
    }

    /// Serves until `shutdown` resolves, then drains: accepts no more connections, closes the sessions with 1001 spread
    /// over `drain_time`, and ends. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When a worker cannot start, or ends before the server.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server at once: all connections are closed without a close frame.
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
        let budget = Budget::new(self.memory());
        let (max_sessions, for_connections) = (self.max_sessions(), self.for_connections());
        let (mut inlets, mut ends, mut mailboxes) = (Vec::new(), Vec::new(), Vec::new());
        let all: Vec<_> = self.mailboxes.iter().map(|(sender, _)| Mailbox::of(sender)).collect();
        let seeds = self.seeds.into_iter().zip(self.shards.iter()).zip(self.mailboxes);
        for (number, ((broker, shard), (sender, mailbox))) in seeds.enumerate() {
            let (queue, accepted) = mpsc::channel(self.config.limits.max_handshakes);
            let handshakes = Arc::new(Handshakes::default());
            let seed = WorkerSeed {
                config: self.config.clone(),
                broker,
                shard: shard.clone(),
                metrics: self.metrics.clone(),
                max_sessions,
                budget,
                mailbox,
                own: Mailbox::of(&sender),
                siblings: all
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != number)
                    .map(|(_, of)| of.clone())
                    .collect(),
                handshakes: handshakes.clone(),
                awaits_sessions: self.awaits_sessions,
            };
            let pages = self.pages.clone();
            let (tell, ended) = oneshot::channel();
            let thread = std::thread::Builder::new()
                .name(format!("webws-{number}"))
                .spawn(move || drop(tell.send(worker::run(seed, |worker| upgrade::serve(worker, accepted, pages)))))
                .map_err(|source| ServerError::Worker { worker: number, source })?;
            inlets.push(Inlet { queue, shard: shard.clone(), handshakes });
            ends.push(End { ended, thread });
            mailboxes.push(sender);
        }
        let retry_after = self.config.limits.retry_after;
        Ok(Running {
            listeners: self.listeners,
            leftover: self.leftover,
            config: self.config,
            deployment: self.deployment,
            ends,
            mailboxes,
            entrance: Arc::new(Entrance::new(!self.awaits_sessions, inlets, retry_after, for_connections)),
        })
    }
}

/// Checks a configuration that was read, perhaps with faults: lists the faults of reading and of [`Server::check`].
///
/// # Errors
/// All faults, one sentence each.
pub fn check_reading(reading: &Reading) -> Result<(), ConfigError> {
    if reading.faults.is_empty() {
        return Server::check(&reading.config);
    }
    let mut faults = reading.faults.clone();
    Server::check_surroundings(&reading.config, &mut faults);
    Err(ConfigError::new(faults))
}

pub(super) fn redis_deployment(
    config: &Config,
    urls: &[RedisUrl],
    workers: usize,
) -> Result<redis::Deployment, ConfigError> {
    let systemd = redis::SystemdCredentials {
        redis: os::systemd::credential("redis-password"),
        sentinel: os::systemd::credential("redis-sentinel-password"),
    };
    redis::Deployment::try_new(config, urls, workers, &systemd)
        .map_err(|error| ConfigError::new([ConfigFault::caused_by(error)]))
}
