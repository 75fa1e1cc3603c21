//! Makes a link: TCP, TLS or a Unix socket, then RESP3 with the crate's greeting.
//!
//! We open the stream ourselves, so that a subscriber's goes through a [`Sieve`] before the crate
//! reads it.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisConnectionInfo, RedisResult, Value};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::sentinel::{self, Place};
use super::sieve::{Sieve, Transport};
use super::subscriber;
use crate::broker::placement::Node;
use crate::config::{RedisAddress, RedisConfig, RedisUrl};

/// How often each link asks the Sentinels whether its master is still the one. A master that dies
/// ends its links by itself; this is for one that is replaced and lives on.
const ASK_SENTINELS: Duration = Duration::from_secs(1);

/// Everything needed to make links, checked once at start.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    url: RedisUrl,
    username: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<Arc<ClientConfig>>,
    /// The name that its certificate must have; otherwise the host's.
    server_name: Option<ServerName<'static>>,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) max_reconnect_delay: Duration,
}

/// Why links cannot be made with these settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("the Redis password file {path} cannot be read: {error}; check redis.password_file and its permissions")]
    Password { path: PathBuf, error: io::Error },
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
    #[error("{0} cannot be reached: {1}")]
    Unreachable(String, io::Error),
    #[error("{0} did not answer within {1:?}")]
    Silent(String, Duration),
    #[error("Redis refuses the link: {0} (user, password and ACL are under [redis]; RESP3 needs Redis 6 or newer)")]
    Refused(redis::RedisError),
    #[error("Redis ended the link: {0}")]
    Ended(redis::RedisError),
    #[error("Redis closed the link")]
    Closed,
    #[error("the Sentinels say that the master is at {0}:{1} now")]
    Moved(String, u16),
    #[error("the subscriber follows another master")]
    Elsewhere,
    #[error("{0}:{1} is no master (any more)")]
    NoMaster(String, u16),
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
    #[error("CLUSTER SLOTS was answered with something else than slots and their nodes")]
    NoTopology,
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
        credential: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        if let Some(database) = url.database.as_deref().filter(|database| *database != "0") {
            tracing::warn!(
                database,
                "the broker's address names database {database}, which is ignored: Pub/Sub is the same in all databases"
            );
        }
        let (tls, host) = match &url.address {
            RedisAddress::Tls(host, _) => (true, Some(host)),
            RedisAddress::Cluster { tls, .. } => (*tls, None),
            RedisAddress::Tcp(..) | RedisAddress::Unix(_) | RedisAddress::Sentinel(..) => (false, None),
        };
        let name = config.server_name.as_ref().or(host).filter(|_| tls);
        let server_name = name.map(|name| name_to_check(name)).transpose()?;
        let tls = if tls { Some(Arc::new(client_config(config)?)) } else { None };
        let settings = Self {
            url: url.clone(),
            username: url.username.clone().or_else(|| config.username.clone()),
            password_file: config.password_file.clone().or(credential),
            tls,
            server_name,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            max_reconnect_delay: config.max_reconnect_delay,
        };
        settings.password()?;
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
            RedisAddress::Unix(_) | RedisAddress::Sentinel(..) | RedisAddress::Cluster { .. } => None,
        }
    }

    /// The same for one node of a cluster.
    pub(super) fn at(&self, (host, port): Place) -> Self {
        let address = if self.tls.is_some() { RedisAddress::Tls(host, port) } else { RedisAddress::Tcp(host, port) };
        Self { url: RedisUrl { address, ..self.url.clone() }, ..self.clone() }
    }

    /// The password, read anew each time so that a rotated one is found.
    fn password(&self) -> Result<Option<SecretString>, SettingsError> {
        if let Some(password) = &self.url.password {
            return Ok(Some(password.clone()));
        }
        let Some(path) = &self.password_file else { return Ok(None) };
        let text =
            std::fs::read_to_string(path).map_err(|error| SettingsError::Password { path: path.clone(), error })?;
        let first = text.lines().next().unwrap_or_default();
        Ok((!first.is_empty()).then(|| first.to_owned().into()))
    }

    /// Makes a link; its driver future must be polled for anything to happen on it.
    pub(super) async fn connect(&self, role: Role) -> Result<Made, LinkError> {
        tokio::time::timeout(self.connect_timeout, self.connect_patiently(role))
            .await
            .unwrap_or_else(|_| Err(LinkError::Silent(self.url.to_string(), self.connect_timeout)))
    }

    async fn connect_patiently(&self, role: Role) -> Result<Made, LinkError> {
        let unreachable = |error| LinkError::Unreachable(self.url.to_string(), error);
        let (transport, master) = self.open().await.map_err(unreachable)?;
        let password = self.password().map_err(|error| unreachable(io::Error::other(error)))?;
        // CLIENT SETINFO is not in the least ACL the README names, so the crate's is skipped.
        let mut greeting = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(username) = &self.username {
            greeting = greeting.set_username(username);
        }
        if let Some(password) = password {
            greeting = greeting.set_password(password.expose_secret());
        }
        // Deadlines are ours: the crate's default of 500 ms would fail a slow server's answers.
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
        if let Role::Subscriber(node) = role {
            config = config.set_push_sender(move |push| subscriber::on_push(node, push));
        }
        let stream: Box<dyn Transport> = match role {
            Role::Subscriber(node) => Box::new(Sieve::new(transport, node)),
            Role::Publisher | Role::Topology => transport,
        };
        let (mut connection, driver) =
            MultiplexedConnection::new_with_config(&greeting, stream, config).await.map_err(LinkError::Refused)?;
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
        if let Some((host, port)) = &master
            && !is_master(&mut connection, &mut driver).await?
        {
            return Err(LinkError::NoMaster(host.clone(), *port));
        }
        Ok(Made { connection, driver, master })
    }

    /// Resolves when most of the Sentinels name another master than the one a link was made to.
    pub(super) async fn is_moved(&self, master: Option<&Place>) -> LinkError {
        let (RedisAddress::Sentinel(sentinels, name), Some(master)) = (&self.url.address, master) else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(ASK_SENTINELS).await;
            // Where they cannot be asked, or differ, the link goes on.
            if let Some((host, port)) = sentinel::agreed_master(sentinels, name).await.filter(|found| found != master) {
                return LinkError::Moved(host, port);
            }
        }
    }

    async fn open(&self) -> io::Result<(Box<dyn Transport>, Option<Place>)> {
        Ok(match &self.url.address {
            RedisAddress::Sentinel(sentinels, name) => {
                let master = sentinel::master(sentinels, name).await?;
                let stream = TcpStream::connect((master.0.as_str(), master.1)).await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), Some(master))
            }
            RedisAddress::Unix(path) => (Box::new(UnixStream::connect(path).await?), None),
            RedisAddress::Tcp(host, port) | RedisAddress::Tls(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let Some(config) = &self.tls else { return Ok((Box::new(stream), None)) };
                let connector = TlsConnector::from(config.clone());
                let name = match &self.server_name {
                    Some(name) => name.clone(),
                    None => name_to_check(host).map_err(io::Error::other)?,
                };
                (Box::new(connector.connect(name, stream).await?), None)
            }
            RedisAddress::Cluster { .. } => {
                // Its nodes have links, each with an address of its own.
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no node of the cluster owns the slot"));
            }
        })
    }
}

/// Whether the server calls itself a master: a Sentinel may name one that is none any more. Where the
/// ACL does not allow ROLE, the Sentinel is believed.
async fn is_master(connection: &mut MultiplexedConnection, driver: &mut Driver) -> Result<bool, LinkError> {
    let role = redis::cmd("ROLE");
    let role = tokio::select! {
        role = ask(connection, &role) => role,
        () = driver => return Err(LinkError::Closed),
    };
    match role {
        Ok(Value::Array(role)) => Ok(matches!(role.first(), Some(Value::BulkString(role)) if role == b"master")),
        Ok(_) => Ok(true),
        Err(error) if is_refusal(&error) => Ok(true),
        Err(error) => Err(LinkError::Ended(error)),
    }
}

fn name_to_check(name: &str) -> Result<ServerName<'static>, SettingsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| SettingsError::ServerName(name.to_owned()))
}

/// The certificates in a PEM file, one at least.
fn certificates(path: &Path, setting: &'static str) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let error = match read {
        Ok(certificates) if Vec::is_empty(&certificates) => "it holds none".into(),
        Ok(certificates) => return Ok(certificates),
        Err(error) => error.into(),
    };
    Err(SettingsError::Certificates { path: path.to_owned(), setting, error })
}

fn client_config(config: &RedisConfig) -> Result<ClientConfig, SettingsError> {
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(path) => {
            let setting = "redis.ca_file";
            for certificate in certificates(path, setting)? {
                roots.add(certificate).map_err(|error| SettingsError::Certificates {
                    path: path.clone(),
                    setting,
                    error: error.into(),
                })?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SettingsError::NoAuthorities);
            }
        }
    }
    // Named, because a program that embeds us may have another one among its crates, and rustls
    // would not know which to take.
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SettingsError::Tls)?
        .with_root_certificates(roots);
    let (Some(chain), Some(key)) = (&config.certificate_file, &config.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let setting = "redis.key_file";
    let fault = |error| SettingsError::Certificates { path: key.clone(), setting, error };
    let chain = certificates(chain, "redis.certificate_file")?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(error.into()))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| fault(error.into()))
}
