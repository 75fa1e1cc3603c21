//! Decides whether a server's certificate is trusted, where the settings name certificates.
//!
//! A certificate in `redis.ca_file` or `redis.pinned_certificate_file` is trusted itself, byte for byte: its key proves
//! the server, so names and dates do not matter. The authorities in `redis.ca_file` follow rustls' rules and two more
//! of OpenSSL's. Without any subjectAltName the common name counts. A certificate of version 1 counts if an authority
//! in the file signed it directly. The handshake's signature is verified in all cases. May not enter: how a certificate
//! is decoded (`certificate.rs`).

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, Key};

/// Which certificates a server may show.
#[derive(Debug)]
pub(super) struct Verifier {
    /// The certificates in the file. Each is trusted itself.
    named: Vec<CertificateDer<'static>>,
    /// The same certificates as authorities; empty for pinned certificates.
    authorities: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Trusts `named`, and the certificates that `authorities` signed.
    pub(super) fn new(
        named: Vec<CertificateDer<'static>>,
        authorities: RootCertStore,
        crypto: &CryptoProvider,
    ) -> Self {
        Self { named, authorities, algorithms: crypto.signature_verification_algorithms }
    }

    fn verify(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.named.iter().any(|named| named == shown) {
            return Ok(());
        }
        if self.authorities.is_empty() {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        let parsed = match ParsedCertificate::try_from(shown) {
            Ok(parsed) => parsed,
            Err(error) => return self.verify_version_1(shown, name, now, error),
        };
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.authorities, between, now, algorithms)?;
        match verify_server_name(&parsed, name) {
            Err(error) if is_about_name(&error) => has_common_name(shown, name).then_some(()).ok_or(error),
            verified => verified,
        }
    }

    /// Judges a certificate that rustls refused with `error`.
    fn verify_version_1(
        &self,
        shown: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
        error: Error,
    ) -> Result<(), Error> {
        let Some(certificate) = Certificate::parse(shown).filter(|certificate| certificate.version == 1) else {
            return Err(error);
        };
        let issuers = self.named.iter().filter_map(|named| Certificate::parse(named));
        let mut issuers = issuers.filter(|issuer| issuer.subject == certificate.issuer).peekable();
        if issuers.peek().is_none() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        if !issuers.any(|issuer| self.has_signed(&issuer.key, &certificate)) {
            return Err(CertificateError::BadSignature.into());
        }
        if now.as_secs() < certificate.not_before {
            let not_before = time(certificate.not_before);
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        if now.as_secs() > certificate.not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after: time(certificate.not_after) }.into());
        }
        if has_common_name(shown, name) {
            return Ok(());
        }
        let presented = certificate.common_name().map(str::to_owned).into_iter().collect();
        Err(CertificateError::NotValidForNameContext { expected: name.to_owned(), presented }.into())
    }

    /// Whether `issuer` signed `certificate`.
    fn has_signed(&self, issuer: &Key<'_>, certificate: &Certificate<'_>) -> bool {
        self.algorithms.all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm
                && algorithm.public_key_alg_id().as_ref() == issuer.algorithm
                && algorithm.verify_signature(issuer.bits, certificate.signed, certificate.signature).is_ok()
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(shown, between, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(shown).is_ok() {
            return verify_tls12_signature(message, shown, signed, &self.algorithms);
        }
        let Certificate { key, .. } = Certificate::parse(shown).ok_or(CertificateError::BadEncoding)?;
        let of_scheme = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let mut algorithms = of_scheme.flat_map(|(_, algorithms)| *algorithms);
        let is_good = algorithms.any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key.algorithm
                && algorithm.verify_signature(key.bits, message, signed.signature()).is_ok()
        });
        if is_good { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(shown).is_ok() {
            return verify_tls13_signature(message, shown, signed, &self.algorithms);
        }
        let Certificate { key_info, .. } = Certificate::parse(shown).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(key_info);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Trusts the certificates of a file, and the certificates that they signed.
pub(super) fn of_authorities(
    named: Vec<CertificateDer<'static>>,
    crypto: &CryptoProvider,
) -> Result<Arc<Verifier>, Error> {
    let mut authorities = RootCertStore::empty();
    for certificate in &named {
        match authorities.add(certificate.clone()) {
            Ok(()) => {}
            // For example of version 1: trusted itself, but no authority.
            Err(_) if Certificate::parse(certificate).is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Arc::new(Verifier::new(named, authorities, crypto)))
}

fn is_about_name(error: &Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}

/// Whether the common name is that host. It counts only without a subjectAltName (RFC 6125 §6.4.4).
fn has_common_name(shown: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    let ServerName::DnsName(name) = name else { return false };
    Certificate::parse(shown).is_some_and(|certificate| {
        !certificate.has_alternative_names()
            && certificate.common_name().is_some_and(|common| common.eq_ignore_ascii_case(name.as_ref()))
    })
}

fn time(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}
