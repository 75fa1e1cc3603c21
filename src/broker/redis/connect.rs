//! Makes a link: TCP, TLS or a Unix socket, then the greeting.
//!
//! We open the stream ourselves, so that a subscriber's goes through a [`Sieve`] before the crate
//! reads it.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisResult, Value};
use tokio::net::{TcpStream, UnixStream};

use super::credential::{Credential, SystemdCredentials};
use super::dial::{self, Race, Step, within};
use super::greeting::{self, GreetingError, Protocol};
use super::role::{Rank, Watch};
use super::sentinel::{Place, Sentinels};
use super::sieve::{Sieve, Transport};
use super::tls::{self, Tls, Trust};
use super::{subscriber, wrong_port};
use crate::config::{RedisAddress, RedisConfig, RedisUrl};
use crate::placement::Node;

/// How often each link asks the Sentinels whether its master is still the one. A master that dies
/// ends its links by itself; this is for one that is replaced and lives on.
const ASK_SENTINELS: Duration = Duration::from_secs(1);

/// Everything needed to make links, checked once at start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    url: RedisUrl,
    credential: Credential,
    tls: Option<Tls>,
    sentinels: Option<Sentinels>,
    /// Whether the topology says what the server is.
    is_cluster_node: bool,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_reconnect_delay: Duration,
    is_resp2_told: Arc<AtomicBool>,
}

/// Why links cannot be made with these settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(
        "the password file {path} ({setting}) cannot be read: {error}; the user that webws runs as must be able to \
         read it"
    )]
    Password { path: PathBuf, setting: &'static str, error: io::Error },
    #[error("the first line of {path} ({setting}) is empty: write the password there, and nothing else")]
    EmptyPassword { path: PathBuf, setting: &'static str },
    #[error(
        "the broker's address {0} has a user and no password: if the text before '@' is the password, write \
         redis://:PASSWORD@HOST (with the colon); if it is a user, its password is missing (redis.password_file)"
    )]
    NoPassword(String),
    #[error("{path} ({setting}) cannot be used: {error}; it is a PEM file with CERTIFICATE or PRIVATE KEY blocks")]
    Certificates { path: PathBuf, setting: &'static str, error: Box<dyn std::error::Error + Send + Sync> },
    #[error("the system has no trusted certificates: install ca-certificates or set redis.ca_file")]
    NoAuthorities,
    #[error("TLS cannot be set up: {0}")]
    Tls(tokio_rustls::rustls::Error),
    #[error("'{0}' is no host name TLS could check")]
    ServerName(String),
}

/// Why a link was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the name '{0}' cannot be looked up: {1}{advice}", advice = dial::advice(.1))]
    LookUp(String, io::Error),
    #[error("the name '{0}' is not resolved after {1:?}: a nameserver does not answer (/etc/resolv.conf)")]
    LookUpSlow(String, Duration),
    #[error("{0} cannot be reached: {1}{advice}", advice = dial::advice(.1))]
    Unreachable(String, io::Error),
    #[error("{address} {what} within {limit:?}{advice}", what = step.missed(), advice = dial::advice_on_silence(*step, address))]
    Late { step: Step, address: String, limit: Duration },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Each(Vec<LinkError>),
    #[error("{0} did not answer within {1:?}")]
    Silent(String, Duration),
    #[error("Redis refuses the link: {0} ({1})")]
    Refused(redis::RedisError, &'static str),
    #[error("Redis ended the link: {0}")]
    Ended(redis::RedisError),
    #[error("Redis closed the link")]
    Closed,
    #[error("the Sentinel {0}: {1}")]
    Sentinel(String, Box<LinkError>),
    #[error("it knows no master '{0}'")]
    UnknownMaster(String),
    #[error(
        "it refuses the question: {0} (user and password of the Sentinels: redis.sentinel_username and \
         redis.sentinel_password_file; without them, those of Redis are tried)"
    )]
    NotTold(String),
    #[error("the Sentinels say that the master is at {0}:{1} now")]
    Moved(String, u16),
    #[error("the subscriber follows another master")]
    Elsewhere,
    #[error("{0} {fault}", fault = .1.fault())]
    NoMaster(String, Rank),
    #[error("Redis has {0} subscriptions fewer than it confirmed")]
    Fewer(usize),
    #[error("Redis takes messages and delivers none: nothing was heard for {0:?}")]
    Deaf(Duration),
    #[error("answers came out of step")]
    OutOfStep,
    #[error("the node says that its cluster is down")]
    ClusterDown,
    #[error("{0}:{1} is no node of a cluster: write redis:// instead of redis+cluster://")]
    NoCluster(String, u16),
    #[error("the answer to CLUSTER SLOTS is not a list of slots and their nodes")]
    NoTopology,
    /// With advice.
    #[error("{0}; {1}")]
    WrongPort(Box<LinkError>, &'static str),
}

impl LinkError {
    /// The kind of a fault that lasts until an operator acts.
    pub(super) fn lasting(&self) -> Option<&'static str> {
        match self {
            Self::NoMaster(..) => Some("role"),
            Self::LookUp(_, error) | Self::Unreachable(_, error) if dial::is_out_of_descriptors(error) => {
                Some("descriptors")
            }
            Self::Each(errors) => errors.iter().find_map(Self::lasting),
            Self::Sentinel(_, error) => error.lasting(),
            _ => None,
        }
    }
}

/// A refusal as Redis said it.
pub(super) fn in_words(error: &redis::RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// Whether Redis answered, and the answer was no.
pub(super) fn is_refusal(error: &redis::RedisError) -> bool {
    !error.is_unrecoverable_error() && error.code().is_some()
}

/// Whether a refusal is of the moment and certain: the command was not executed, and may be elsewhere
/// or later.
pub(super) fn is_for_now(code: Option<&str>) -> bool {
    const CODES: [&str; 7] = ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY"];
    code.is_some_and(|code| CODES.contains(&code))
}

/// Whether the answer was that our ACL user may not.
pub(super) fn is_not_allowed(error: &redis::RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// Sends one command; an error that Redis answers is an error.
pub(super) async fn ask(connection: &mut MultiplexedConnection, command: &redis::Cmd) -> RedisResult<Value> {
    connection.send_packed_command(command).await.and_then(Value::extract_error)
}

/// What moves a link's bytes, for as long as it is polled.
type Driver = Pin<Box<dyn Future<Output = ()>>>;

/// A link that was made.
pub(super) struct Made {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Driver,
    /// The master that the Sentinels named.
    pub(super) master: Option<Place>,
    /// The server's address, for log lines.
    pub(super) address: String,
    /// The role of its server.
    pub(super) role: Watch,
    pub(super) protocol: Protocol,
}

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Of which server: its messages name none.
    Subscriber(Node),
    Publisher,
    /// Asks a cluster who owns what.
    Topology,
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
                "the broker's address names database {database}, which is ignored: Pub/Sub is the same in all databases"
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
        };
        settings.credential.read()?;
        if let Some(sentinels) = &settings.sentinels {
            sentinels.own.read()?;
        }
        Ok(settings)
    }

    /// Where the server is, without its password.
    pub(super) fn server(&self) -> &RedisUrl {
        &self.url
    }

    /// Where it is, if that is a host and a port.
    pub(super) fn place(&self) -> Option<Place> {
        match &self.url.address {
            RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port) => Some((host.clone(), *port)),
            RedisAddress::Unix(_) | RedisAddress::Sentinel { .. } | RedisAddress::Cluster { .. } => None,
        }
    }

    /// The same for one node of a cluster.
    pub(super) fn at(&self, (host, port): Place) -> Self {
        let address = if self.tls.is_some() { RedisAddress::Tls(host, port) } else { RedisAddress::Tcp(host, port) };
        Self { url: RedisUrl { address, ..self.url.clone() }, is_cluster_node: true, ..self.clone() }
    }

    /// Makes a link; its driver future must be polled for anything to happen on it. `on_slow` hears of a
    /// look-up that takes longer than it should, and goes on.
    pub(super) async fn connect(&self, role: Role, on_slow: &dyn Fn(&LinkError)) -> Result<Made, LinkError> {
        let limit = self.connect_timeout;
        let unreachable = |error| LinkError::Unreachable(self.url.to_string(), error);
        let (host, port, master) = match (&self.url.address, &self.sentinels) {
            (RedisAddress::Unix(path), _) => {
                let address = self.url.to_string();
                let connecting = async { UnixStream::connect(path).await.map_err(unreachable) };
                let stream = within(Step::Connect, &address, limit, connecting).await?;
                return self.greet(role, Box::new(stream), address, None).await;
            }
            (_, Some(sentinels)) => {
                let master = sentinels.master(limit, on_slow).await?;
                (master.0.clone(), master.1, Some(master))
            }
            (RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port), _) => (host.clone(), *port, None),
            (RedisAddress::Sentinel { .. } | RedisAddress::Cluster { .. }, _) => {
                // The nodes of a cluster have links, each with an address of its own.
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
                self.greet(role, transport, address.clone(), master.clone()).await
            };
            match made.await {
                Err(error) => race.fail(wrong_port::explain(&self.url.address, error)),
                made => return made,
            }
        }
        Err(race.into_error())
    }

    /// Authenticates the link, and asks which server answers.
    async fn greet(
        &self,
        role: Role,
        transport: Box<dyn Transport>,
        address: String,
        master: Option<Place>,
    ) -> Result<Made, LinkError> {
        let at = address.clone();
        within(Step::Greeting, &at, self.connect_timeout, async {
            let (mut connection, mut driver, protocol) = self.introduce(role, transport).await?;
            let mut watch = Watch::new(match protocol {
                Protocol::Resp2 => 2,
                Protocol::Resp3 => 3,
            });
            // In a cluster, what a node is can be read off the topology.
            if role != Role::Topology && !self.is_cluster_node {
                let rank = tokio::select! {
                    rank = watch.ask(&mut connection) => rank.map_err(LinkError::Ended)?,
                    () = &mut driver => return Err(LinkError::Closed),
                };
                if rank.is_wrong() {
                    return Err(LinkError::NoMaster(address, rank));
                }
            }
            Ok(Made { connection, driver, master, address, role: watch, protocol })
        })
        .await
    }

    /// The greeting, and the crate on top of it.
    async fn introduce(
        &self,
        role: Role,
        mut transport: Box<dyn Transport>,
    ) -> Result<(MultiplexedConnection, Driver, Protocol), LinkError> {
        let unreachable = |error| LinkError::Unreachable(self.url.to_string(), error);
        let login = self.credential.read().map_err(|error| unreachable(io::Error::other(error)))?;
        let protocol = match greeting::greet(&mut *transport, &login).await {
            Ok(protocol) => protocol,
            Err(GreetingError::Refused(error)) => return Err(LinkError::Refused(error, self.credential.hint())),
            Err(GreetingError::Stream(error)) => {
                let trust = self.tls.as_ref().map_or(Trust::System, |tls| tls.trust);
                return Err(unreachable(tls::explained(error, trust)));
            }
        };
        self.tell_protocol(protocol);
        // Ours was the greeting: of a publisher the crate says nothing, and a subscriber's the sieve
        // swallows, for without RESP3 the crate takes no subscriptions.
        let mut greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Role::Subscriber(_) = role {
            greeting = greeting.set_protocol(ProtocolVersion::RESP3);
        }
        // Deadlines are ours: the crate's default of 500 ms would fail a slow server's answers.
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
        if let Role::Subscriber(node) = role {
            config = config.set_push_sender(move |push| subscriber::on_push(node, push));
        }
        let stream: Box<dyn Transport> = match role {
            Role::Subscriber(node) => Box::new(Sieve::new(transport, node, protocol)),
            Role::Publisher | Role::Topology => transport,
        };
        let (mut connection, driver) =
            MultiplexedConnection::new_with_config(&greeting, stream, config).await.map_err(LinkError::Ended)?;
        let mut driver: Driver = Box::pin(driver);
        let name = match role {
            Role::Subscriber(_) => "webws-subscriber",
            Role::Publisher => "webws-publisher",
            Role::Topology => "webws-topology",
        };
        let mut set_name = redis::cmd("CLIENT");
        set_name.arg("SETNAME").arg(name);
        tokio::select! {
            // Only a name for CLIENT LIST: an ACL may forbid it.
            named = ask(&mut connection, &set_name) => {
                if let Err(error) = named {
                    tracing::debug!(%error, "Redis refuses CLIENT SETNAME, so the link has no name in CLIENT LIST: {error}");
                }
            }
            () = &mut driver => return Err(LinkError::Closed),
        }
        Ok((connection, driver, protocol))
    }

    /// Logs once that a server speaks RESP2.
    fn tell_protocol(&self, protocol: Protocol) {
        if protocol == Protocol::Resp2 && !self.is_resp2_told.swap(true, Ordering::Relaxed) {
            let server = self.url.to_string();
            tracing::info!(
                server,
                "{server} does not know HELLO, so webws speaks RESP2 to it: all works, but webws does not notice when \
                 the server forgets a single subscription, because RESP2 does not allow CLIENT INFO there"
            );
        }
    }

    /// Resolves when most of the Sentinels name another master than the one a link was made to.
    pub(super) async fn is_moved(&self, master: Option<&Place>) -> LinkError {
        let (Some(sentinels), Some(master)) = (&self.sentinels, master) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(ASK_SENTINELS).await;
            // Where they cannot be asked, or differ, the link goes on.
            if let Some((host, port)) =
                sentinels.agreed_master(self.connect_timeout).await.filter(|found| found != master)
            {
                return LinkError::Moved(host, port);
            }
        }
    }
}

/// A stream to a server, through TLS where there are settings for it.
pub(super) async fn secure(tls: Option<&Tls>, host: &str, stream: TcpStream) -> io::Result<Box<dyn Transport>> {
    Ok(match tls {
        Some(tls) => Box::new(tls.connect(host, stream).await?),
        None => Box::new(stream),
    })
}
