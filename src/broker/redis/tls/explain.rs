//! Says in plain English why TLS with a server failed, and what to do.
//!
//! Each kind of rustls' error has a sentence; rustls' own text follows in brackets, for search engines. May not enter:
//! the decision about a certificate (`verifier.rs`).

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// The source of trust in a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The system's authorities.
    System,
    /// The certificates that the settings name.
    Named,
}

/// The command that prints a running server's certificate.
const FETCH: &str = "`openssl s_client -connect HOST:PORT </dev/null | openssl x509` prints it";

/// Why TLS with a server failed.
#[derive(Debug, thiserror::Error)]
#[error("{sentence} ({error})")]
struct TlsFault {
    sentence: String,
    #[source]
    error: Error,
}

/// The same error; an error of TLS gets a plain sentence.
pub(crate) fn explained(error: io::Error, trust: Trust) -> io::Error {
    let kind = error.kind();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned() {
        Some(inner) => match sentence(&inner, trust) {
            Some(sentence) => io::Error::new(kind, TlsFault { sentence, error: inner }),
            None => error,
        },
        None => error,
    }
}

fn sentence(error: &Error, trust: Trust) -> Option<String> {
    Some(match error {
        Error::InvalidCertificate(error) => of_certificate(error, trust),
        Error::NoCertificatesPresented => "the server shows no certificate".to_owned(),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the port does not speak TLS: write redis:// instead of rediss://, or name the server's tls-port".to_owned()
        }
        Error::AlertReceived(alert) => of_alert(*alert)?.to_owned(),
        Error::PeerIncompatible(_) => NOTHING_IN_COMMON.to_owned(),
        _ => return None,
    })
}

const NOTHING_IN_COMMON: &str = "the server and webws share no TLS version or cipher (webws speaks 1.2 and 1.3), or the server wants a client \
     certificate: see redis.certificate_file and redis.key_file";

fn of_alert(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as Alert;
    Some(match alert {
        Alert::CertificateRequired | Alert::NoCertificate => {
            "the server wants a client certificate: set redis.certificate_file and redis.key_file"
        }
        Alert::UnknownCA
        | Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::CertificateExpired
        | Alert::CertificateRevoked
        | Alert::UnsupportedCertificate
        | Alert::AccessDenied => {
            "the server does not accept the client certificate in redis.certificate_file: its authority must be in the \
             server's tls-ca-cert-file, and its dates must be valid"
        }
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => NOTHING_IN_COMMON,
        Alert::UnrecognisedName => "the server knows no certificate for that name: check redis.server_name",
        _ => return None,
    })
}

const CRITICAL_EXTENSION: &str = "the server's certificate has a critical extension that webws does not know: make one \
     without it, or pin this one by redis.pinned_certificate_file";

fn of_certificate(error: &CertificateError, trust: Trust) -> String {
    use CertificateError as Fault;
    match error {
        Fault::UnknownIssuer => unknown_issuer(trust),
        Fault::ApplicationVerificationFailure => format!(
            "the server's certificate is not one of those in redis.pinned_certificate_file: if it was renewed on \
             purpose, add the new one to that file; {FETCH}"
        ),
        Fault::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the server's certificate names no host (it has no subjectAltName), so it cannot be for {}: make one with \
             subjectAltName, or pin this one by redis.pinned_certificate_file; {FETCH}",
            expected.to_str()
        ),
        Fault::NotValidForNameContext { expected, presented } => format!(
            "the server's certificate is for {} and not for {}: use one of its names in the address, or set \
             redis.server_name to it",
            presented.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", "),
            expected.to_str()
        ),
        Fault::ExpiredContext { not_after, time } => format!(
            "the server's certificate expired on {}, and this machine's clock says {}: renew the certificate, or set \
             the clock",
            date(*not_after),
            date(*time)
        ),
        Fault::Expired => "the server's certificate has expired: renew the certificate".to_owned(),
        Fault::NotValidYetContext { not_before, time } => format!(
            "the server's certificate is valid from {} on, and this machine's clock says {}: set the clock, or wait",
            date(*not_before),
            date(*time)
        ),
        Fault::NotValidYet => "the server's certificate is not valid yet: check this machine's clock".to_owned(),
        Fault::Revoked => "the server's certificate is revoked: renew the certificate".to_owned(),
        Fault::BadSignature => "the server's certificate, or its part of the handshake, is not signed by the key \
                                that it names: another authority of the same name may be in redis.ca_file"
            .to_owned(),
        Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. } => {
            "the server's certificate is not for servers (its extendedKeyUsage lacks serverAuth): make one that is, or \
             pin this one by redis.pinned_certificate_file"
                .to_owned()
        }
        Fault::UnhandledCriticalExtension => CRITICAL_EXTENSION.to_owned(),
        Fault::UnsupportedSignatureAlgorithmContext { .. }
        | Fault::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the server's certificate is signed by an algorithm that is no longer safe, or too new: make one with \
             SHA-256 and RSA or ECDSA, or pin this one by redis.pinned_certificate_file"
                .to_owned()
        }
        Fault::BadEncoding => "the server's certificate cannot be read: make a new one".to_owned(),
        other => of_webpki_fault(&format!("{other:?}")),
    }
}

/// The sentence for a fault that has no kind in rustls; `fault` is webpki's own kind as rustls prints it.
fn of_webpki_fault(fault: &str) -> String {
    match fault {
        _ if fault.contains("CaUsedAsEndEntity") => format!(
            "the server's certificate is the certificate of an authority (CA:TRUE), as from `openssl req -x509`: put \
             this certificate into redis.ca_file or redis.pinned_certificate_file; {FETCH}"
        ),
        _ if fault.contains("UnsupportedCertVersion") => format!(
            "the server's certificate has X.509 version 1, as from `openssl x509 -req` without -extfile: make one with \
             subjectAltName, name its authority by redis.ca_file, or pin this one by redis.pinned_certificate_file; \
             {FETCH}"
        ),
        _ if fault.contains("UnsupportedCriticalExtension") => CRITICAL_EXTENSION.to_owned(),
        _ => format!(
            "the server's certificate cannot be used: make another one, or pin this one by \
             redis.pinned_certificate_file; {FETCH}"
        ),
    }
}

/// A name as rustls shows it, `DnsName("a.example")` or `IpAddress(10.0.0.1)`, without its kind.
fn plain(name: &str) -> &str {
    name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')').trim_matches('"'))
}

fn unknown_issuer(trust: Trust) -> String {
    let whose = match trust {
        Trust::System => "no authority that this system trusts signed the server's certificate: set",
        Trust::Named => "no authority in redis.ca_file signed the server's certificate: set",
    };
    format!(
        "{whose} redis.ca_file to the certificate of its authority, or to this certificate if it is \
         self-signed; {FETCH}"
    )
}

/// A time as RFC 3339 writes it.
fn date(time: UnixTime) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_certificate_has_a_sentence_with_an_advice() {
        use CertificateError as Fault;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(86_400));
        let expected = tokio_rustls::rustls::pki_types::ServerName::try_from("redis.example").unwrap();
        let name = |presented: &[&str]| Fault::NotValidForNameContext {
            expected: expected.clone(),
            presented: presented.iter().map(ToString::to_string).collect(),
        };
        for (fault, part) in [
            (Fault::UnknownIssuer, "redis.ca_file"),
            (Fault::ApplicationVerificationFailure, "add the new one"),
            (name(&[]), "no subjectAltName"),
            (name(&["DnsName(\"a\")", "IpAddress(10.0.0.1)"]), "is for a, 10.0.0.1 and not for redis.example"),
            (Fault::ExpiredContext { time, not_after: time }, "1970-01-02T00:00:00Z"),
            (Fault::NotValidYetContext { time, not_before: time }, "1970-01-02T00:00:00Z"),
            (Fault::InvalidPurpose, "serverAuth"),
            (Fault::UnhandledCriticalExtension, "pin"),
            (Fault::BadEncoding, "make a new one"),
        ] {
            let kind = fault.clone();
            let error = io::Error::new(io::ErrorKind::InvalidData, Error::InvalidCertificate(fault));
            let told = explained(error, Trust::Named).to_string();
            assert!(told.contains(part) && told.contains("invalid peer certificate"), "{kind:?}: {told}");
        }
        let other = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(explained(other, Trust::Named).kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn alerts_and_ports_without_tls_have_a_sentence() {
        for (error, part) in [
            (Error::AlertReceived(AlertDescription::CertificateRequired), "redis.key_file"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "tls-ca-cert-file"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "1.2 and 1.3"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "redis://"),
        ] {
            let told = explained(io::Error::new(io::ErrorKind::InvalidData, error), Trust::System).to_string();
            assert!(told.contains(part), "{told}");
        }
    }
}
