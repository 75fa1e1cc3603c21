//! A WebSocket client of raw bytes, over Unix sockets or TCP.
//!
//! `Socket` is the connection (it can half-close and reset), `Client` reads and writes frames on it.
//! What has been read stays in the client until somebody takes it: no byte is lost at a deadline.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{timeout, timeout_at};

use super::SOON;
use super::frame::{CLOSE, Frame, Head, PING, PONG, TEXT, client_frame, hex, take_frame, take_head};

/// Where to connect to.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// How the other side ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Rst,
}

/// A connected socket; reading and writing share it.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(crate) async fn connect(target: &Target) -> io::Result<Socket> {
        Socket::connect_with(target, None).await
    }

    /// Connects with that SO_RCVBUF (of use on TCP only: see unix(7)).
    pub(crate) async fn connect_with(target: &Target, receive_buffer: Option<u32>) -> io::Result<Socket> {
        match target {
            Target::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
            Target::Tcp(addr) => {
                let socket = TcpSocket::new_v4()?;
                if let Some(bytes) = receive_buffer {
                    socket.set_recv_buffer_size(bytes)?;
                }
                let stream = socket.connect(*addr).await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    /// Appends what there is to read; `Err` tells how the other side ended. Cancel safe.
    pub(crate) async fn read(&self, into: &mut BytesMut) -> Result<usize, End> {
        self.read_at_most(into, 65_536).await
    }

    /// Like `read`, but takes at most `limit` bytes off the socket.
    pub(crate) async fn read_at_most(&self, into: &mut BytesMut, limit: usize) -> Result<usize, End> {
        let mut scratch = vec![0; limit];
        loop {
            let read = match self {
                Socket::Unix(s) => s.readable().await.and_then(|()| s.try_read(&mut scratch)),
                Socket::Tcp(s) => s.readable().await.and_then(|()| s.try_read(&mut scratch)),
            };
            match read {
                Ok(0) => return Err(End::Fin),
                Ok(n) => {
                    into.extend_from_slice(&scratch[..n]);
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Rst),
            }
        }
    }

    /// Writes all of `bytes`, in one go as long as the socket takes them.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Socket::Unix(s) => s.writable().await.and_then(|()| s.try_write(bytes)),
                Socket::Tcp(s) => s.writable().await.and_then(|()| s.try_write(bytes)),
            };
            match written {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Half-closes: no more from us, the other side may go on. The other side may be gone already.
    pub(crate) fn fin(&self) {
        let _gone = match self {
            Socket::Unix(s) => shutdown(s.as_raw_fd(), Shutdown::Write),
            Socket::Tcp(s) => shutdown(s.as_raw_fd(), Shutdown::Write),
        };
    }

    /// Ends at once with RST. A Unix socket knows no RST: there it is a plain close.
    pub(crate) fn reset(self) {
        if let Socket::Tcp(stream) = self {
            let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
            setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).unwrap();
        }
    }
}

/// A client after its handshake.
#[derive(Debug)]
pub(crate) struct Client {
    socket: Socket,
    head: Head,
    unread: BytesMut,
    end: Option<End>,
}

impl Client {
    /// Upgrades on `path` (such as `/webws?channel=%22zhang%22`) and panics if it is refused.
    pub(crate) async fn connect(target: &Target, path: &str) -> Client {
        Client::upgrade(Socket::connect(target).await.unwrap(), path).await
    }

    /// The same on a socket that was connected in a special way.
    pub(crate) async fn upgrade(socket: Socket, path: &str) -> Client {
        let client = Client::request(socket, &upgrade_request(path)).await.expect("no reply");
        assert_eq!(client.head.status, 101, "refused {path}: {:?}", client.head);
        client
    }

    /// Sends a raw request; `None` if the server ended without a reply, or sent none in 10 s.
    pub(crate) async fn request(socket: Socket, request: &[u8]) -> Option<Client> {
        socket.write(request).await.ok()?;
        let mut unread = BytesMut::new();
        let reading = async {
            loop {
                if let Some(head) = take_head(&mut unread) {
                    return Some(head);
                }
                socket.read(&mut unread).await.ok()?;
            }
        };
        let head = timeout(Duration::from_secs(10), reading).await.ok()??;
        Some(Client { socket, head, unread, end: None })
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// What has been read behind the head and is no whole frame taken by `next_frame` yet.
    pub(crate) fn leftover(&self) -> &[u8] {
        &self.unread
    }

    pub(crate) async fn send_text(&self, text: &str) {
        self.send_frame(TEXT, Fin::Last, text.as_bytes()).await;
    }

    pub(crate) async fn send_ping(&self, payload: &[u8]) {
        self.send_frame(PING, Fin::Last, payload).await;
    }

    pub(crate) async fn send_close(&self, code: u16) {
        self.send_frame(CLOSE, Fin::Last, &code.to_be_bytes()).await;
    }

    pub(crate) async fn send_frame(&self, opcode: u8, fin: Fin, payload: &[u8]) {
        self.send_raw(&client_frame(fin as u8 | opcode, payload)).await;
    }

    pub(crate) async fn send_raw(&self, bytes: &[u8]) {
        self.socket.write(bytes).await.unwrap();
    }

    /// The next frame, pings included; `None` at the deadline or at the end (see `end`).
    pub(crate) async fn next_frame(&mut self, deadline: Duration) -> Option<Frame> {
        let deadline = tokio::time::Instant::now() + deadline;
        loop {
            if let Some(frame) = take_frame(&mut self.unread).unwrap_or_else(|e| panic!("{e}")) {
                return Some(frame);
            }
            if self.end.is_some() {
                return None;
            }
            self.end = timeout_at(deadline, self.socket.read(&mut self.unread)).await.ok()?.err();
        }
    }

    /// The next frame that is not a ping of the server.
    pub(crate) async fn next_but_pings(&mut self, deadline: Duration) -> Option<Frame> {
        let deadline = tokio::time::Instant::now() + deadline;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let frame = self.next_frame(left).await?;
            if frame.opcode != PING {
                return Some(frame);
            }
        }
    }

    /// The next frame but pings must be this text.
    pub(crate) async fn expect_text(&mut self, text: &str) {
        let frame = self.next_but_pings(SOON).await;
        let frame = frame.unwrap_or_else(|| panic!("no frame instead of {text:?} (end: {:?})", self.end));
        assert!(frame.opcode == TEXT && frame.payload == text.as_bytes(), "{frame:?} instead of the text {text:?}");
    }

    /// Sends a ping; its pong must be the next frame but pings.
    pub(crate) async fn expect_pong(&mut self, payload: &[u8], deadline: Duration) {
        self.send_ping(payload).await;
        let frame = self.next_but_pings(deadline).await;
        let frame = frame.unwrap_or_else(|| panic!("no pong within {deadline:?} (end: {:?})", self.end));
        assert!(frame.opcode == PONG && frame.payload == payload, "{frame:?} instead of a pong");
    }

    /// The next frame but pings must be a close frame with that code, and TCP must end after it.
    pub(crate) async fn expect_close(&mut self, code: u16, deadline: Duration) {
        let frame = self.next_but_pings(deadline).await;
        let seen = frame.as_ref().and_then(Frame::close_code);
        assert_eq!(seen, Some(code), "{frame:?} (end: {:?})", self.end);
        assert!(self.ends_within(deadline).await.is_some(), "open {deadline:?} after its close frame");
    }

    /// Nothing may come for that long.
    pub(crate) async fn expect_silence(&mut self, time: Duration) {
        let frame = self.next_frame(time).await;
        assert!(frame.is_none() && self.end.is_none(), "{frame:?}, end: {:?}", self.end);
    }

    /// How the server ends the connection; a further frame panics. `None` if it is still open.
    pub(crate) async fn ends_within(&mut self, deadline: Duration) -> Option<End> {
        if let Some(frame) = self.next_frame(deadline).await {
            panic!("{frame:?} instead of the end");
        }
        assert!(self.unread.is_empty(), "half a frame at the end: {}", hex(&self.unread));
        self.end
    }

    /// How the server ended the connection, as far as we have read.
    pub(crate) fn end(&self) -> Option<End> {
        self.end
    }

    /// Reads at most `limit` bytes into the buffer of `next_frame`; false if the server has ended.
    pub(crate) async fn read_slowly(&mut self, limit: usize) -> bool {
        let reading = self.socket.read_at_most(&mut self.unread, limit);
        if let Ok(Err(end)) = timeout(Duration::from_millis(20), reading).await {
            self.end = Some(end);
        }
        self.end.is_none()
    }

    /// Half-closes.
    pub(crate) fn fin(&self) {
        self.socket.fin();
    }

    /// Ends without a close frame, with RST on TCP.
    pub(crate) fn reset(self) {
        self.socket.reset();
    }

    /// Closes cleanly: the reply must be a close frame without a code, and the end within a second.
    pub(crate) async fn close(mut self) {
        self.send_close(1000).await;
        let reply = self.next_but_pings(SOON).await.expect("no reply to the close frame");
        assert_eq!(&reply.raw[..], [0x88, 0x00], "the reply to a close frame");
        let end = self.ends_within(Duration::from_secs(1)).await;
        assert_eq!(end, Some(End::Fin), "the end after a clean close");
    }
}

/// Whether a frame ends its message; the value is the FIN bit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fin {
    Last = 0x80,
    More = 0x00,
}

/// The handshake of RFC 6455 §1.2.
pub(crate) fn upgrade_request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}
