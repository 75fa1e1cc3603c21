//! Promise: while webws takes no clients, every handshake is proxied or answered with 503, and nginx logs one line.

use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use bytes::BytesMut;
use nix::libc::ucred;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};
use tokio::task::JoinSet;

use super::{PATH, final_count, is_straight, nginx_for};
use crate::support::client::{Client, End, Socket, upgrade_request};
use crate::support::http::handshake;
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

/// The lines of the script in nginx' error log.
fn complaints(nginx: &Nginx) -> Vec<String> {
    nginx.error_log().lines().filter(|line| line.contains("webws-straight: ")).map(ToOwned::to_owned).collect()
}

async fn assert_proxied(nginx: &Nginx, count: usize) {
    for _ in 0..count {
        let client = Client::connect(&nginx.target(), PATH).await;
        assert!(!is_straight(client.head()), "{:?}", client.head());
        client.close().await;
    }
}

#[tokio::test]
async fn without_a_socket_for_handoffs_every_handshake_is_proxied() {
    let mut webws = Webws::builder().broker("memory").straight().start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let path = webws.handoff();
    std::fs::remove_file(&path).unwrap();
    assert_proxied(&nginx, 5).await;
    // One that nobody receives on; one of another kind; no socket at all.
    drop(UnixDatagram::bind(&path).unwrap());
    assert_proxied(&nginx, 5).await;
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    assert_proxied(&nginx, 5).await;
    drop(other);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_proxied(&nginx, 5).await;
    assert_eq!(complaints(&nginx).len(), 1, "{}", nginx.error_log());
    // Another one takes them from the first on, and the next after its end as well.
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        let receiver = UnixDatagram::bind(&path).unwrap();
        let socket = Socket::connect(&nginx.target()).await.unwrap();
        socket.write(&upgrade_request(PATH)).await.unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        let received = tokio::task::spawn_blocking(move || receiver.recv(&mut [0; 8]).unwrap());
        assert!(received.await.unwrap() > 0);
    }
    assert_eq!(final_count(&mut webws, "proxied").await, 20);
    assert!(webws.log().contains(" proxied_away=20"), "{}", webws.log());
    // Nobody is there at all.
    let answer = handshake(&nginx.target(), PATH).await;
    assert_eq!((answer.head.status, answer.all("Retry-After")), (502, vec!["5"]), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_webws_answers_all_that_came_meanwhile() {
    let mut webws = Webws::builder().broker("memory").straight().start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let queue = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap().trim().parse::<usize>().unwrap();
    webws.signal(Signal::SIGSTOP);
    let mut waiting = JoinSet::new();
    for _ in 0..queue + 20 {
        let target = nginx.target();
        waiting.spawn(async move { is_straight(&handshake(&target, PATH).await.head) });
    }
    // The rest waits where proxied ones do.
    let proxied = || nginx.error_log().contains("(errno 11)");
    until("the queue is full", START, async || proxied()).await;
    webws.signal(Signal::SIGCONT);
    let straight = waiting.join_all().await.into_iter().filter(|is_straight| *is_straight).count();
    assert!((queue..queue + 20).contains(&straight), "{straight} of {}", queue + 20);
    assert_eq!(complaints(&nginx).len(), 1, "{}", nginx.error_log());
    assert!(is_straight(&handshake(&nginx.target(), PATH).await.head), "it does not go on");
    assert_eq!(usize::try_from(final_count(&mut webws, "proxied").await).unwrap(), queue + 20 - straight);
}

#[tokio::test]
async fn a_stranger_hands_nobody_off() {
    if !nix::unistd::geteuid().is_root() {
        // Root alone can send as another user.
        return;
    }
    let settings = "handoff_user = \"33\"";
    let mut webws = Webws::builder().broker("memory").straight().setting(settings).start().await;
    for user in [34, 33] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let receiver = UnixDatagram::unbound().unwrap();
        receiver.connect(webws.handoff()).unwrap();
        let sender = UnixCredentials::from(ucred { pid: std::process::id().cast_signed(), uid: user, gid: 33 });
        let rights = [client.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&rights), ControlMessage::ScmCredentials(&sender)];
        let head = upgrade_request(PATH);
        let bytes = [IoSlice::new(&head)];
        sendmsg::<UnixAddr>(receiver.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None).unwrap();
        drop(client);
        // A client of a stranger hears nothing at all: its socket is closed.
        let read = Socket::Tcp(stream).read_at_most(&mut BytesMut::new(), 1).await;
        assert_eq!(read, if user == 33 { Ok(1) } else { Err(End::Fin) }, "user {user}");
    }
    // Nor does a malformed datagram end anything.
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(webws.handoff()).unwrap();
    let number = sender.as_raw_fd();
    for (len, descriptors) in [(1, 0), (0, 1), (1, 1), (1, 2), (1, 9), (40_000, 1)] {
        let (bytes, rights) = (vec![b'x'; len], vec![number; descriptors]);
        let rights = [ControlMessage::ScmRights(&rights)];
        let control = if descriptors == 0 { &[][..] } else { &rights[..] };
        sendmsg::<UnixAddr>(number, &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None).unwrap();
    }
    assert_eq!(handshake(&webws.target(), PATH).await.head.status, 101);
    until("all are received", SOON, async || sender.take_error().is_ok_and(|error| error.is_none())).await;
    assert_eq!(final_count(&mut webws, "handoffs_refused").await, 7);
    assert_eq!(webws.counter("handoffs"), 1);
    assert!(webws.log().contains("user 34"), "{}", webws.log());
}
