//! Promise: while webws takes no clients, every handshake is proxied or answered with 503, and nginx logs one line.

use std::fs::Permissions;
use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use bytes::BytesMut;
use nix::libc::ucred;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};
use tokio::task::JoinSet;

use super::{PATH, final_count, is_straight, nginx_for};
use crate::support::client::{Client, Socket, upgrade_request};
use crate::support::events::EventStream;
use crate::support::http::handshake;
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

/// The lines of the script in nginx' error log.
pub(super) fn complaints(nginx: &Nginx) -> Vec<String> {
    nginx.error_log().lines().filter(|line| line.contains("webws-straight: ")).map(ToOwned::to_owned).collect()
}

pub(super) async fn assert_proxied(nginx: &Nginx, count: usize) {
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

#[tokio::test]
async fn while_webws_is_stopped_nginx_answers_as_ever() {
    // Its socket files stay behind, or are gone.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut webws = Webws::builder().broker("memory").straight().start().await;
        let nginx = nginx_for(&webws, Site::default()).await;
        Client::connect(&nginx.target(), PATH).await.close().await;
        webws.signal(signal);
        webws.wait_exit(START).await;
        for _ in 0..5 {
            let answer = handshake(&nginx.target(), PATH).await;
            assert_eq!((answer.head.status, answer.all("Retry-After")), (502, vec!["5"]), "{answer:?}");
            let mut stream = EventStream::open(&nginx.target(), PATH).await;
            assert_eq!(stream.next(SOON).await, None);
            assert!(stream.retry.is_some() && stream.comments[0].starts_with("502 "), "{stream:?}");
        }
        assert_eq!(complaints(&nginx).len(), 1, "{}", nginx.error_log());
    }
}

/// Its workers may not write to the socket, or they may, and webws does not trust them.
#[tokio::test]
async fn an_nginx_of_another_user_proxies_or_its_clients_get_503() {
    if !nix::unistd::geteuid().is_root() {
        // Root alone can start nginx' workers as another user.
        return;
    }
    let settings = "socket_mode = \"0666\"\nhandoff_user = \"33\"";
    let webws = Webws::builder().broker("memory").straight().setting(settings).start().await;
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    set_mode(webws.dir(), 0o755);
    let nginx = nginx_for(&webws, Site { user: "nobody nogroup", ..Site::default() }).await;
    set_mode(&webws.handoff(), 0o660);
    assert_proxied(&nginx, 5).await;
    assert_eq!(complaints(&nginx).len(), 1, "{}", nginx.error_log());
    assert!(nginx.error_log().contains("(errno 13)"), "{}", nginx.error_log());
    set_mode(&webws.handoff(), 0o666);
    for _ in 0..5 {
        let answer = handshake(&nginx.target(), PATH).await;
        assert_eq!((answer.head.status, is_straight(&answer.head)), (503, true), "{answer:?}");
        let mut stream = EventStream::open(&nginx.target(), PATH).await;
        assert!(stream.next(SOON).await.is_none() && stream.retry.is_some(), "{stream:?}");
    }
    let refused = webws.warnings().into_iter().filter(|entry| entry["why"].as_str().is_some()).count();
    assert_eq!(refused, 1, "{}", webws.log());
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
        // A client of a stranger gets no session.
        let mut read = BytesMut::new();
        let socket = Socket::Tcp(stream);
        let status = if user == 33 { "HTTP/1.1 101 " } else { "HTTP/1.1 503 " };
        while read.len() < status.len() {
            socket.read(&mut read).await.unwrap_or_else(|end| panic!("user {user}: {end:?} behind {read:?}"));
        }
        assert!(read.starts_with(status.as_bytes()), "user {user}: {read:?}");
        if user != 33 {
            while socket.read(&mut read).await.is_ok() {}
        }
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
