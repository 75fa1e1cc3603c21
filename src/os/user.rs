//! Users by name, and the user of the process at the other end of a Unix socket. May not enter: which users are trusted.

use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::User;

/// The uid of a user, written as a name or as a number; `None` when there is no such user.
pub(crate) fn named(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()))
}

/// The user of the process that connected this Unix socket (`SO_PEERCRED`, unix(7)); `None` for TCP.
pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> Option<u32> {
    if super::socket::is_tcp(socket) {
        return None;
    }
    Some(getsockopt(&socket, sockopt::PeerCredentials).ok()?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_user_has_a_name_or_a_number() {
        assert_eq!((named("root"), named("0"), named("65534")), (Some(0), Some(0), Some(65534)));
        assert_eq!((named(""), named("no such user"), named("-1")), (None, None, None));
    }

    #[test]
    fn the_peer_of_a_unix_socket_has_a_user_and_that_of_tcp_has_none() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(of_peer(ours.as_fd()), Some(crate::os::limit::own_user()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(of_peer(client.as_fd()), None);
    }
}
