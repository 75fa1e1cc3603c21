//! The addresses in the arguments, and sockets connected to them. May not enter: what is sent.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use crate::template::Template;

/// A socket's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A URL: an address, and the target of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: Address,
    /// The value of the Host header.
    pub(crate) host: String,
    /// Path and query.
    pub(crate) path: Template,
}

/// The state of a new connection.
#[derive(Debug)]
pub(crate) enum Dialed {
    /// The connection is established.
    Connected(OwnedFd),
    /// The connection is established, or has failed, when the socket becomes writable.
    UnderWay(OwnedFd),
    /// The listener's backlog is full: try again later.
    Full,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("ws+unix:") {
            let (socket, path) =
                rest.split_once(":/").ok_or("write ws+unix:/PATH/TO/SOCKET:/PATH?QUERY (a colon before the path)")?;
            let address = unix(socket)?;
            return Ok(Self { address, host: "localhost".to_owned(), path: path_of(&format!("/{path}"))? });
        }
        if text.starts_with("wss:") {
            return Err("TLS is not spoken: name a port that takes plain WebSockets, as ws://HOST:PORT/...".to_owned());
        }
        let rest = text.strip_prefix("ws://").ok_or("it starts with neither ws:// nor ws+unix:")?;
        Self::of_authority(rest)
    }
}

impl Target {
    /// Reads the part after `ws://` or `http://`.
    pub(crate) fn of_authority(rest: &str) -> Result<Self, String> {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = match path.chars().next() {
            Some('/') => path_of(path)?,
            _ => path_of(&format!("/{path}"))?,
        };
        Ok(Self { address: tcp(authority, 80)?, host: authority.to_owned(), path })
    }
}

/// Reads `HOST:PORT`, asking the resolver for a name.
pub(crate) fn tcp(authority: &str, default_port: u16) -> Result<Address, String> {
    let no_port = authority.ends_with(']') || !authority.contains(':');
    let with_port = if no_port { format!("{authority}:{default_port}") } else { authority.to_owned() };
    let mut found = with_port.to_socket_addrs().map_err(|error| format!("'{authority}' is no HOST:PORT ({error})"))?;
    found.next().map(Address::Tcp).ok_or_else(|| format!("'{authority}' has no address"))
}

/// Reads a Unix socket's path.
pub(crate) fn unix(path: &str) -> Result<Address, String> {
    if !path.starts_with('/') {
        return Err(format!("'{path}': the path of a Unix socket starts with '/'"));
    }
    SocketAddrUnix::new(path).map_err(|_| format!("'{path}' is too long for a Unix socket (107 bytes)"))?;
    Ok(Address::Unix(path.into()))
}

fn path_of(text: &str) -> Result<Template, String> {
    if let Some(bad) = text.chars().find(|c| c.is_ascii_whitespace() || c.is_ascii_control()) {
        return Err(format!("'{}' cannot stand in a URL: write it as %{:02X}", bad.escape_default(), u32::from(bad)));
    }
    text.parse()
}

impl Address {
    /// Starts a connection, from `source` if given. Non-blocking, Nagle's algorithm off.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when the source has no port left; as connect(2) says.
    pub(crate) fn dial(&self, source: Option<IpAddr>) -> io::Result<Dialed> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, connecting) = match self {
            Self::Unix(path) => {
                let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
                let connecting = connect(&socket, &SocketAddrUnix::new(path.as_path())?);
                (socket, connecting)
            }
            Self::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = socket_with(family, SocketType::STREAM, flags, None)?;
                sockopt::set_tcp_nodelay(&socket, true)?;
                if let Some(source) = source {
                    // EADDRINUSE of bind(2) is what EADDRNOTAVAIL is of connect(2): no port left.
                    bind(&socket, &SocketAddr::new(source, 0)).map_err(|error| match error {
                        Errno::ADDRINUSE => Errno::ADDRNOTAVAIL,
                        other => other,
                    })?;
                }
                let connecting = connect(&socket, address);
                (socket, connecting)
            }
        };
        match connecting {
            Ok(()) => Ok(Dialed::Connected(socket)),
            Err(Errno::INPROGRESS) => Ok(Dialed::UnderWay(socket)),
            Err(Errno::AGAIN) => Ok(Dialed::Full),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target: Target = "ws://127.0.0.1:8080/webws?channel=%22c{channel}%22".parse().unwrap();
        assert_eq!(target.address, Address::Tcp("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(target.host, "127.0.0.1:8080");
        assert_eq!(target.path.fill(3, 0), "/webws?channel=%22c3%22");
        let target: Target = "ws+unix:/run/webws/webws.sock:/webws?at=a:/b".parse().unwrap();
        assert_eq!(target.address, Address::Unix("/run/webws/webws.sock".into()));
        assert_eq!(target.path.fill(0, 0), "/webws?at=a:/b");
        let target: Target = "ws://[::1]?x=1".parse().unwrap();
        assert_eq!((target.address.to_string(), target.path.fill(0, 0)), ("[::1]:80".into(), "/?x=1".into()));
    }

    #[test]
    fn a_bad_url_says_what_to_do() {
        for (url, hint) in [
            ("http://x/", "ws://"),
            ("wss://x/", "ws://HOST:PORT"),
            ("ws+unix:/run/x.sock", "colon before the path"),
            ("ws+unix:x:/y", "starts with '/'"),
            ("ws://127.0.0.1:99999/", "no HOST:PORT"),
            ("ws://127.0.0.1:1/a b", "%20"),
        ] {
            let error = url.parse::<Target>().unwrap_err();
            assert!(error.contains(hint), "{url}: {error}");
        }
    }
}
