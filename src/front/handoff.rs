//! Takes the clients that nginx hands off: a request's head and the client's own socket in one datagram.
//!
//! A datagram that waits is nginx's sign that webws is busy: when the kernel's queue is full, nginx proxies. So no
//! datagram is received while the heads that wait have used up their bytes, descriptors are short, or the entrance is
//! shut. May not enter: the meaning of a request.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::acceptor::{Entrance, MAX_REFUSING, first};
use super::event_stream;
use super::head::MAX_HEAD_BYTES;
use super::refusal::linger;
use super::waiting_room::Received;
use crate::metrics::Counter;
use crate::os;
use crate::os::handoff::{Handoff, Sender};
use crate::throttle::Throttle;

/// The processes that may hand off clients, besides those of root. The request heads that they send are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The processes of that user.
    User(u32),
    /// The processes of that group, which is the socket file's, and those of webws' own user.
    Group(u32),
}

impl Trust {
    fn includes(self, sender: Sender) -> bool {
        sender.user == 0
            || match self {
                Self::User(user) => sender.user == user,
                Self::Group(group) => sender.group == group || sender.user == os::limit::own_user(),
            }
    }
}

/// A socket for handoffs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handoffs<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    pub(crate) trust: Trust,
}

impl Entrance {
    /// Receives on all `sockets` while the entrance is open. Returns only when one has become unusable: its address,
    /// and why.
    pub(crate) async fn receive(&self, sockets: &[Handoffs<'_>]) -> (String, io::Error) {
        if sockets.is_empty() {
            return std::future::pending().await;
        }
        first(sockets.iter().map(|socket| Box::pin(self.receive_on(*socket))).collect()).await
    }

    async fn receive_on(&self, Handoffs { socket, trust }: Handoffs<'_>) -> (String, io::Error) {
        let readable = match os::readiness::readable(socket) {
            Ok(readable) => readable,
            Err(error) => return (os::socket::address(socket), error),
        };
        let (mut refusing, mut buffer) = (JoinSet::new(), vec![0; MAX_HEAD_BYTES]);
        loop {
            if let Err(error) = self.receive_next(&readable, trust, &mut buffer, &mut refusing).await {
                self.wait_for_room(socket, &error).await;
            }
            while refusing.try_join_next().is_some() {}
        }
    }

    /// Waits for one datagram, and gives its client to a worker.
    async fn receive_next(
        &self,
        socket: &AsyncFd<BorrowedFd<'_>>,
        trust: Trust,
        buffer: &mut [u8],
        refusing: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let most = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(most).await.map_err(io::Error::other)?;
        let mut guard = socket.readable().await?;
        // Never an error: `self` has the sender.
        drop(self.opened.subscribe().wait_for(|is_open| *is_open).await);
        let is_open = self.lock();
        if !*is_open {
            return Ok(());
        }
        let handoff = match os::handoff::receive(socket.as_fd(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                guard.clear_ready();
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            handoff => handoff?,
        };
        let head = buffer.get(..handoff.len).unwrap_or_default();
        let last = handoff.descriptors.last();
        let was_room = last.is_none_or(|socket| os::limit::is_below(socket, self.reserved_from));
        match client_of(handoff, trust) {
            Ok(client) => self.take(client, head, room, refusing),
            Err(NotTaken { why, client }) => {
                self.refuse_handoff(&why);
                if let Some(client) = client {
                    self.turn_away(client, head, refusing);
                }
            }
        }
        if was_room { Ok(()) } else { Err(os::limit::out_of_descriptors()) }
    }

    fn take(
        &self,
        (client, sender): (OwnedFd, u32),
        head: &[u8],
        mut room: OwnedSemaphorePermit,
        refusing: &mut JoinSet<()>,
    ) {
        if let Err(error) = os::handoff::adopt(&client) {
            // Not a fault of nginx: a client may go at any time.
            return tracing::debug!(%error, "a client that was handed off is gone already: {error}");
        }
        let Some(room) = room.split(head.len()) else { return };
        self.count(Counter::Handoffs);
        self.deal(client, Some(Received { head: head.to_vec(), sender, room }), refusing);
    }

    /// Counts a datagram that is no handoff, and logs the first of a minute. Its descriptors are closed by now.
    fn refuse_handoff(&self, why: &str) {
        static REFUSED: Throttle = Throttle::per_minute();
        self.count(Counter::HandoffsRefused);
        if REFUSED.allows() {
            tracing::warn!(why, "refused a handoff: {why}");
        }
    }

    /// Answers the client of a sender that is not trusted: it may be one of an nginx that runs as another user.
    fn turn_away(&self, client: OwnedFd, head: &[u8], refusing: &mut JoinSet<()>) {
        if os::handoff::adopt(&client).is_ok() && refusing.len() < MAX_REFUSING {
            let answer = event_stream::ended(head, self.retry_after).unwrap_or_else(|| self.not_trusted.clone());
            refusing.spawn(async move { linger(client, &answer).await });
        }
    }

    fn count(&self, counter: Counter) {
        if let Some(inlet) = self.inlets.first() {
            inlet.shard.add(counter, 1);
        }
    }
}

/// A datagram whose client is not taken over.
#[derive(Debug)]
struct NotTaken {
    why: String,
    /// The client, if its sender alone is at fault.
    client: Option<OwnedFd>,
}

/// The client's socket, and the user who sent it.
///
/// # Errors
/// Why there is none.
fn client_of(handoff: Handoff, trust: Trust) -> Result<(OwnedFd, u32), NotTaken> {
    let no_client = |why: &str| NotTaken { why: why.to_owned(), client: None };
    let Handoff { len, sender, mut descriptors, is_cut } = handoff;
    let Some(sender) = sender else { return Err(no_client("its sender is not known")) };
    let count = descriptors.len();
    let client = match descriptors.pop() {
        _ if is_cut => Err("its request or its descriptors do not fit".to_owned()),
        _ if len == 0 => Err("it has no request".to_owned()),
        Some(client) if count == 1 && os::socket::is_tcp_stream(client.as_fd()) => Ok(client),
        Some(_) if count == 1 => Err("its descriptor is not a TCP connection".to_owned()),
        _ => Err(format!("it has {count} descriptors instead of one")),
    };
    if trust.includes(sender) {
        return client.map(|client| (client, sender.user)).map_err(|why| no_client(&why));
    }
    let Sender { user, group } = sender;
    let why = format!("user {user} of group {group} sent it, and only nginx may (handoff_user)");
    Err(NotTaken { why, client: client.ok() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const NGINX: Sender = Sender { user: 33, group: 33 };

    fn handoff(descriptors: Vec<OwnedFd>) -> Handoff {
        Handoff { len: 1, sender: Some(NGINX), descriptors, is_cut: false }
    }

    #[test]
    fn only_nginx_and_root_are_trusted() {
        let own = Sender { user: os::limit::own_user(), group: 7 };
        let root = Sender { user: 0, group: 7 };
        let nobody = Sender { user: u32::MAX, group: u32::MAX };
        for (trust, trusted) in [(Trust::User(33), vec![NGINX, root]), (Trust::Group(33), vec![NGINX, root, own])] {
            for sender in [NGINX, root, own, nobody, Sender { user: 12_345, group: 12_345 }] {
                assert_eq!(
                    trust.includes(sender),
                    sender.user == 0 || trusted.contains(&sender),
                    "{trust:?} {sender:?}"
                );
            }
        }
    }

    #[test]
    fn a_datagram_without_exactly_one_tcp_connection_is_no_handoff() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || OwnedFd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (trust, stranger) = (Trust::Group(33), Sender { user: 12_345, group: 12_345 });
        assert!(client_of(handoff(vec![connect()]), trust).is_ok());
        for (wrong, why) in [
            (handoff(vec![]), "0 descriptors"),
            (handoff(vec![connect(), connect()]), "2 descriptors"),
            (handoff(vec![std::io::pipe().unwrap().0.into()]), "not a TCP"),
            (handoff(vec![std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()]), "not a TCP"),
            (handoff(vec![std::os::unix::net::UnixStream::pair().unwrap().0.into()]), "not a TCP"),
            (Handoff { sender: None, ..handoff(vec![connect()]) }, "not known"),
            (Handoff { is_cut: true, ..handoff(vec![connect()]) }, "do not fit"),
            (Handoff { len: 0, ..handoff(vec![connect()]) }, "no request"),
            (Handoff { sender: Some(stranger), ..handoff(vec![]) }, "user 12345"),
        ] {
            let NotTaken { why: said, client } = client_of(wrong, trust).unwrap_err();
            assert!(said.contains(why), "{said}");
            assert!(client.is_none(), "{said}: there is no client to be told");
        }
        let of_stranger = Handoff { sender: Some(stranger), ..handoff(vec![connect()]) };
        let NotTaken { why, client } = client_of(of_stranger, trust).unwrap_err();
        assert!(why.contains("user 12345") && client.is_some(), "{why}");
    }
}
