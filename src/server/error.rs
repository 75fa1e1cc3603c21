//! Why a server does not start, or ended; and what to do about an address that cannot be used. May not enter: how a
//! server starts.

use std::io;

use crate::config::ConfigError;

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
    /// A worker could not start, or ended before the server.
    #[error("worker {worker}: {source}")]
    Worker {
        /// The worker's number, from 0.
        worker: usize,
        /// Why the worker ended.
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
        // `os::socket_file` has its own sentence for a live socket.
        assert_eq!(advice("unix:/s", &io::ErrorKind::AddrInUse.into()), "");
        assert_eq!(advice("tcp:127.0.0.1:8080", &io::ErrorKind::PermissionDenied.into()), "");
    }
}
