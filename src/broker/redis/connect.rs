//! Makes a stream to a node: TCP, TLS or a Unix socket, then the greeting, the link's name and the role. The redis
//! crate takes over a publisher's stream. May not enter: the use of a link.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, Value};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::credential::{Credential, SystemdCredentials};
use super::dial::{self, Race, within};
use super::error::{LinkError, SettingsError, Step};
use super::greeting::{self, GreetingError};
use super::milestone::MilestoneUse;
use super::node_state::{Greeting, Terms};
use super::resp::Protocol;
use super::role::{Rank, RoleWatch};
use super::sentinel::Sentinels;
use super::tls::{self, Tls, Trust, secure};
use super::transport::{HostPort, Transport};
use super::wrong_port;
use crate::config::{RedisAddress, RedisConfig, RedisUrl, ReplayPolicy};

/// How often each link asks the Sentinels whether its master was replaced. A master that dies ends its links; this
/// question detects one that was replaced and still runs.
const ASK_SENTINELS: Duration = Duration::from_secs(1);

/// Everything needed to make links, checked once at start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    url: RedisUrl,
    credential: Credential,
    tls: Option<Tls>,
    sentinels: Option<Sentinels>,
    /// Whether the topology decides which node is a master.
    is_cluster_node: bool,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_reconnect_delay: Duration,
    is_resp2_told: Arc<AtomicBool>,
    /// What milestones are for, and whether the replication log may be read.
    milestones: MilestoneUse,
    may_replay: bool,
    /// Whether webws makes and keeps the log.
    pub(super) keeps_log: bool,
}

/// Moves the bytes of a publishing link while polled.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()>>>;

/// A stream to a node, after the greeting.
pub(super) struct Greeted {
    pub(super) transport: Box<dyn Transport>,
    pub(super) greeting: Greeting,
}

/// The purpose of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Subscriber,
    Publisher,
    /// Asks a cluster for its topology.
    Topology,
    /// Reads the replication log.
    Replay,
}

impl Purpose {
    /// The link's name in CLIENT LIST.
    fn name(self) -> &'static str {
        match self {
            Self::Subscriber => "webws-subscriber",
            Self::Publisher => "webws-publisher",
            Self::Topology => "webws-topology",
            Self::Replay => "webws-replay",
        }
    }

    /// Whether a server of this rank is of no use. A replica relays its master's replication log.
    fn is_wrong(self, rank: Rank) -> bool {
        rank.is_wrong() && !(self == Self::Replay && rank == Rank::Replica)
    }
}

/// Gives a stream to the redis crate. The connection works only while its driver is polled.
///
/// # Errors
/// The crate's own.
pub(super) async fn multiplex(transport: Box<dyn Transport>) -> Result<(MultiplexedConnection, Driver), LinkError> {
    // The greeting is over: the crate sends none of its own.
    let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
    // Deadlines are ours: the crate's default of 500 ms would fail a slow server's answers.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let made = MultiplexedConnection::new_with_config(&greeting, transport, config).await;
    let (connection, driver) = made.map_err(LinkError::Ended)?;
    Ok((connection, Box::pin(driver)))
}

impl Settings {
    /// Checks what can be checked without a connection.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that TLS cannot check.
    pub(crate) fn try_new(
        url: &RedisUrl,
        config: &RedisConfig,
        systemd: &SystemdCredentials,
    ) -> Result<Self, SettingsError> {
        if let Some(database) = url.database.as_deref().filter(|database| *database != "0") {
            tracing::warn!(
                database,
                "the broker's address names database {database}, which is ignored: all databases share \
                 the Pub/Sub channels"
            );
        }
        let (tls, host) = match &url.address {
            RedisAddress::Tls(host, _) => (true, Some(host)),
            RedisAddress::Cluster { tls, .. } | RedisAddress::Sentinel { tls, .. } => (*tls, None),
            RedisAddress::Tcp(..) | RedisAddress::Unix(_) => (false, None),
        };
        let tls = if tls { Some(Tls::try_new(config)?) } else { None };
        if let (Some(tls), Some(host)) = (&tls, host) {
            tls.check_host(host)?;
        }
        let credential = Credential::of_redis(url, config, systemd)?;
        let sentinels = match &url.address {
            RedisAddress::Sentinel { sentinels, master, .. } => Some(Sentinels {
                places: sentinels.clone(),
                master: master.clone(),
                own: Credential::of_sentinels(config, systemd),
                of_redis: credential.clone(),
                tls: tls.clone(),
            }),
            _ => None,
        };
        let settings = Self {
            url: url.clone(),
            credential,
            tls,
            sentinels,
            is_cluster_node: false,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            max_reconnect_delay: config.max_reconnect_delay,
            is_resp2_told: Arc::default(),
            milestones: MilestoneUse::Nothing,
            may_replay: false,
            keeps_log: false,
        };
        settings.credential.read()?;
        if let Some(sentinels) = &settings.sentinels {
            sentinels.own.read()?;
        }
        Ok(settings)
    }

    /// The address of the server, without its password.
    pub(super) fn server(&self) -> &RedisUrl {
        &self.url
    }

    /// The host and port of the server, if it has them.
    pub(super) fn place(&self) -> Option<HostPort> {
        match &self.url.address {
            RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port) => Some((host.clone(), *port)),
            RedisAddress::Unix(_) | RedisAddress::Sentinel { .. } | RedisAddress::Cluster { .. } => None,
        }
    }

    /// The same settings for one node of a cluster.
    pub(super) fn at(&self, (host, port): HostPort) -> Self {
        let address = if self.tls.is_some() { RedisAddress::Tls(host, port) } else { RedisAddress::Tcp(host, port) };
        Self { url: RedisUrl { address, ..self.url.clone() }, is_cluster_node: true, ..self.clone() }
    }

    /// With milestones, unless no endpoint has a history and the log is not to be read.
    pub(super) fn with_replay(self, has_history: bool, policy: ReplayPolicy) -> Self {
        let milestones = match policy {
            _ if has_history => MilestoneUse::Positions,
            ReplayPolicy::On => MilestoneUse::Positions,
            ReplayPolicy::Auto => MilestoneUse::Gaps,
            ReplayPolicy::Off => MilestoneUse::Nothing,
        };
        Self { milestones, may_replay: policy != ReplayPolicy::Off, keeps_log: policy == ReplayPolicy::On, ..self }
    }

    /// The same settings for a replica of the master that the Sentinels name; `None` without Sentinels, or where no
    /// replica is in order.
    pub(super) async fn replica(&self) -> Option<Self> {
        let place = self.sentinels.as_ref()?.replica(self.connect_timeout).await?;
        Some(Self { sentinels: None, is_cluster_node: false, ..self.at(place) })
    }

    /// The terms of the links.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            server: self.url.to_string(),
            marker_name: self.url.mark_name(),
            response_timeout: self.response_timeout,
            max_reconnect_delay: self.max_reconnect_delay,
            is_in_cluster: self.is_cluster_node || matches!(self.url.address, RedisAddress::Cluster { .. }),
            milestones: self.milestones,
            may_replay: self.may_replay,
        }
    }

    /// Makes a stream and greets the node. Calls `on_slow` when a look-up takes longer than it should; the look-up
    /// continues.
    ///
    /// # Errors
    /// The fault of each address.
    pub(super) async fn connect(&self, purpose: Purpose, on_slow: &dyn Fn(&LinkError)) -> Result<Greeted, LinkError> {
        let limit = self.connect_timeout;
        let unreachable = |error| self.unreachable(error);
        let (host, port, master) = match (&self.url.address, &self.sentinels) {
            (RedisAddress::Unix(path), _) => {
                let address = self.url.to_string();
                let connecting = async { UnixStream::connect(path).await.map_err(unreachable) };
                let stream = within(Step::Connect, &address, limit, connecting).await?;
                return self.greet(purpose, Box::new(stream), address, None).await;
            }
            (_, Some(sentinels)) => {
                let master = sentinels.master(limit, on_slow).await?;
                (master.0.clone(), master.1, Some(master))
            }
            (RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port), _) => (host.clone(), *port, None),
            (RedisAddress::Sentinel { .. } | RedisAddress::Cluster { .. }, _) => {
                // Each node of a cluster has links of its own.
                let nowhere = io::ErrorKind::AddrNotAvailable;
                return Err(unreachable(io::Error::new(nowhere, "no node of the cluster owns the slot")));
            }
        };
        let mut race = Race::new(dial::look_up(&host, port, limit, on_slow).await?, limit);
        while let Some((address, stream)) = race.next().await {
            let address = address.to_string();
            let made = async {
                let securing = async {
                    let secured = secure(self.tls.as_ref(), &host, stream).await;
                    secured.map_err(|error| LinkError::Unreachable(address.clone(), error))
                };
                let transport = within(Step::Tls, &address, limit, securing).await?;
                self.greet(purpose, transport, address.clone(), master.clone()).await
            };
            match made.await {
                Err(error) => race.fail(wrong_port::explain(&self.url.address, error)),
                made => return made,
            }
        }
        Err(race.into_error())
    }

    /// Logs in, and asks which server answers.
    async fn greet(
        &self,
        purpose: Purpose,
        mut transport: Box<dyn Transport>,
        address: String,
        master: Option<HostPort>,
    ) -> Result<Greeted, LinkError> {
        let at = address.clone();
        within(Step::Greeting, &at, self.connect_timeout, async {
            let protocol = self.introduce(purpose, &mut *transport).await?;
            let mut role = RoleWatch::new(protocol, Instant::now());
            // In a cluster, the topology tells the role of a node.
            if purpose != Purpose::Topology && !self.is_cluster_node {
                let rank = self.ask_role(&mut *transport, &mut role).await?;
                if purpose.is_wrong(rank) {
                    return Err(LinkError::NoMaster(address, rank.fault()));
                }
            }
            Ok(Greeted { transport, greeting: Greeting { protocol, address, role, master } })
        })
        .await
    }

    /// HELLO, AUTH and the link's name.
    async fn introduce(&self, purpose: Purpose, transport: &mut dyn Transport) -> Result<Protocol, LinkError> {
        let login = self.credential.read().map_err(|error| self.unreachable(io::Error::other(error)))?;
        let protocol = match greeting::greet(transport, &login).await {
            Ok(protocol) => protocol,
            Err(GreetingError::Refused(error)) => return Err(LinkError::Refused(error, self.credential.hint())),
            Err(GreetingError::Stream(error)) => {
                let trust = self.tls.as_ref().map_or(Trust::System, |tls| tls.trust);
                return Err(self.unreachable(tls::explained(error, trust)));
            }
        };
        self.tell_protocol(protocol);
        let mut set_name = redis::cmd("CLIENT");
        set_name.arg("SETNAME").arg(purpose.name());
        // The name is for CLIENT LIST only: an ACL may forbid the command.
        if let Err(error) = self.ask(transport, &set_name).await?.extract_error() {
            tracing::debug!(%error, "Redis refuses CLIENT SETNAME, so the link has no name in CLIENT LIST: {error}");
        }
        Ok(protocol)
    }

    /// Asks for the role, by HELLO and then by ROLE.
    async fn ask_role(&self, transport: &mut dyn Transport, role: &mut RoleWatch) -> Result<Rank, LinkError> {
        loop {
            let sent = Instant::now();
            let answer = self.ask(transport, &role.question()).await?.extract_error();
            let rank = role.on_answer(sent, answer).map_err(LinkError::Ended)?;
            if rank != Rank::Unknown || !role.is_due(sent) {
                return Ok(rank);
            }
        }
    }

    async fn ask(&self, transport: &mut dyn Transport, command: &Cmd) -> Result<Value, LinkError> {
        greeting::ask(transport, command).await.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: io::Error) -> LinkError {
        LinkError::Unreachable(self.url.to_string(), error)
    }

    /// Logs once that a server speaks RESP2.
    fn tell_protocol(&self, protocol: Protocol) {
        if protocol == Protocol::Resp2 && !self.is_resp2_told.swap(true, Ordering::Relaxed) {
            let server = self.url.to_string();
            tracing::info!(
                server,
                protocol = "RESP2",
                "{server} does not know HELLO, so webws speaks RESP2: everything works, but webws does not notice when the \
                 server loses a single subscription, because a RESP2 subscriber may not send CLIENT INFO"
            );
        }
    }

    /// Resolves when most Sentinels name another master than that of the link.
    pub(super) async fn is_moved(&self, master: Option<&HostPort>) -> LinkError {
        let (Some(sentinels), Some(master)) = (&self.sentinels, master) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(ASK_SENTINELS).await;
            // If the Sentinels cannot be asked, or disagree, the link stays.
            if let Some((host, port)) =
                sentinels.agreed_master(self.connect_timeout).await.filter(|found| found != master)
            {
                return LinkError::Moved(host, port);
            }
        }
    }
}
