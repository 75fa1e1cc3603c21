//! TLS to Redis and its Sentinels: the certificates in the settings, and the client's side of the handshake.
//!
//! `verifier.rs` checks a server's certificate, `certificate.rs` reads the fields that rustls does not give,
//! `explain.rs` explains faults. May not enter: addresses, and Redis' protocol.

mod certificate;
mod explain;
mod verifier;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use self::certificate::Certificate;
use self::verifier::Verifier;
use super::error::SettingsError;
use super::transport::Transport;
use crate::config::RedisConfig;

pub(super) use self::explain::{Trust, explained};

/// The client's side of TLS.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    /// The name that each certificate must have; `None` for the host's name.
    server_name: Option<ServerName<'static>>,
    pub(super) trust: Trust,
}

impl Tls {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that TLS cannot check.
    pub(super) fn try_new(config: &RedisConfig) -> Result<Self, SettingsError> {
        let server_name = config.server_name.as_deref().map(name_to_check).transpose()?;
        let is_system = config.ca_file.is_none() && config.pinned_certificate_file.is_none();
        let trust = if is_system { Trust::System } else { Trust::Named };
        Ok(Self { config: Arc::new(client_config(config)?), server_name, trust })
    }

    /// Checks that TLS can verify a certificate for `host`.
    ///
    /// # Errors
    /// TLS cannot.
    pub(super) fn check_host(&self, host: &str) -> Result<(), SettingsError> {
        if self.server_name.is_none() {
            name_to_check(host)?;
        }
        Ok(())
    }

    /// The handshake on a stream to `host`.
    ///
    /// # Errors
    /// The fault; a fault of TLS gets a plain sentence.
    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => name_to_check(host).map_err(io::Error::other)?,
        };
        let connector = TlsConnector::from(self.config.clone());
        connector.connect(name, stream).await.map_err(|error| explained(error, self.trust))
    }
}

/// A stream to a server, through TLS where there are settings for it.
///
/// # Errors
/// As [`Tls::connect`].
pub(super) async fn secure(tls: Option<&Tls>, host: &str, stream: TcpStream) -> io::Result<Box<dyn Transport>> {
    Ok(match tls {
        Some(tls) => Box::new(tls.connect(host, stream).await?),
        None => Box::new(stream),
    })
}

fn name_to_check(name: &str) -> Result<ServerName<'static>, SettingsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| SettingsError::ServerName(name.to_owned()))
}

/// The certificates in a PEM file, at least one.
fn certificates(path: &Path, setting: &'static str) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let error = match read {
        Ok(certificates) if Vec::is_empty(&certificates) => "the file holds no certificate".into(),
        Ok(certificates) => return Ok(certificates),
        Err(error) => error.into(),
    };
    Err(SettingsError::Certificates { path: path.to_owned(), setting, error })
}

fn client_config(config: &RedisConfig) -> Result<ClientConfig, SettingsError> {
    // Named, because an embedding program may link another provider, and rustls could not choose.
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let fault = |path: &PathBuf, setting, error| SettingsError::Certificates { path: path.clone(), setting, error };
    let verifier = if let Some(path) = &config.pinned_certificate_file {
        let setting = "redis.pinned_certificate_file";
        let pinned = certificates(path, setting)?;
        if pinned.iter().any(|pinned| Certificate::parse(pinned).is_none()) {
            return Err(fault(path, setting, "the file contains something that is not a certificate".into()));
        }
        Some(Arc::new(Verifier::new(pinned, RootCertStore::empty(), &provider)))
    } else if let Some(path) = &config.ca_file {
        let setting = "redis.ca_file";
        let named = certificates(path, setting)?;
        Some(verifier::of_authorities(named, &provider).map_err(|error| fault(path, setting, error.into()))?)
    } else {
        None
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SettingsError::Tls)?;
    let builder = match verifier {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(verifier),
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SettingsError::NoAuthorities);
            }
            builder.with_root_certificates(roots)
        }
    };
    let (Some(chain), Some(key)) = (&config.certificate_file, &config.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let setting = "redis.key_file";
    let chain = certificates(chain, "redis.certificate_file")?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, setting, error.into()))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| fault(key, setting, error.into()))
}
