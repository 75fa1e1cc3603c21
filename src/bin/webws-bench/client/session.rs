//! One WebSocket as data: its socket, its state, and the bytes that wait on either side. May not enter: the order of
//! sessions, the counts.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::clock::Micros;
use crate::frame;
use crate::payload::Header;

/// The key of every handshake: the example of RFC 6455 §1.3. The key is no secret, so one is enough.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer that the server must give to the key.
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// nchan's subprotocol with positions: a message starts with `id: POSITION` and an empty line.
pub(crate) const META: &str = "ws+meta.nchan";
/// Longest answer to a handshake.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// TCP's handshake is under way.
    Connecting,
    /// The request is sent.
    Asked,
    Open,
    /// Open, and never read.
    Slow,
    /// Our close frame is sent; further bytes are dropped.
    Closing,
}

/// One WebSocket.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) socket: OwnedFd,
    pub(super) state: State,
    /// The connection's number in the run, and its index in its thread.
    pub(super) connection: u32,
    pub(super) receiver: usize,
    pub(super) channel: u32,
    /// When the current state began, for its deadline.
    pub(super) since: Micros,
    /// The start of a frame or of the 101.
    pub(super) input: Vec<u8>,
    /// Bytes that the socket has not taken.
    pub(super) output: Vec<u8>,
    /// Whether it has got what it missed, if it came back with a position.
    pub(super) is_whole: bool,
    /// The header in the first fragment of an unfinished message, if it had one.
    pub(super) fragment: Option<Option<Header>>,
}

/// The server's answer to the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Incomplete,
    /// The 101; frames may follow it after so many bytes.
    Accepted(usize),
    Refused(String),
}

impl Session {
    /// Sends `bytes`, and keeps those that the socket does not take. True when bytes are left.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if !self.output.is_empty() {
            self.output.extend_from_slice(bytes);
            return Ok(true);
        }
        let sent = match send(&self.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        self.output.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(!self.output.is_empty())
    }

    /// Sends the bytes that are left. True when some are still left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let rest = std::mem::take(&mut self.output);
        if rest.is_empty() { Ok(false) } else { self.send(&rest) }
    }

    /// Sends a frame.
    pub(super) fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<bool> {
        let mut bytes = Vec::with_capacity(payload.len() + 14);
        frame::put_masked(opcode, payload, &mut bytes);
        self.send(&bytes)
    }

    /// Receives bytes after those left from the last read; returns the number of all, `None` when no new bytes have
    /// arrived, 0 at the server's FIN.
    pub(super) fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let kept = self.input.len();
        if buffer.len() < kept * 2 {
            // A frame larger than the buffer.
            buffer.resize(kept * 2, 0);
        }
        let Some((start, room)) = buffer.split_at_mut_checked(kept) else { return Ok(None) };
        start.copy_from_slice(&self.input);
        match recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Some(0)),
            Ok((received, _)) => {
                self.input.clear();
                Ok(Some(kept + received))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The request of a handshake.
pub(crate) fn request(path: &str, host: &str, subprotocol: Option<&str>) -> Vec<u8> {
    let offer = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
    )
    .into_bytes()
}

/// The path of a client that comes back with a position.
pub(super) fn resumed(path: &str, argument: &str, token: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}{argument}={token}")
}

/// Reads the answer to a handshake.
pub(crate) fn answer(bytes: &[u8]) -> Answer {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        let refused = || Answer::Refused("the answer to the handshake is no HTTP head".to_owned());
        return if bytes.len() > MAX_HEAD_BYTES { refused() } else { Answer::Incomplete };
    };
    let head = bytes.get(..end).unwrap_or_default();
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.split(|byte| *byte == b' ').nth(1) != Some(b"101") {
        let shown = line.get(..line.len().min(80)).unwrap_or_default();
        return Answer::Refused(format!("answered {}", shown.escape_ascii()));
    }
    if !head.windows(ACCEPT.len()).any(|window| window == ACCEPT) {
        return Answer::Refused("a 101 without the right Sec-WebSocket-Accept".to_owned());
    }
    Answer::Accepted(end + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_handshake_is_judged() {
        let good =
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x00";
        assert_eq!(answer(good), Answer::Accepted(good.len() - 2));
        assert_eq!(answer(&good[..40]), Answer::Incomplete);
        assert_eq!(answer(b"HTTP/1.1 503 Away\r\n\r\n"), Answer::Refused("answered HTTP/1.1 503 Away".into()));
        assert!(matches!(answer(b"HTTP/1.1 101 x\r\n\r\n"), Answer::Refused(why) if why.contains("Accept")));
        assert!(matches!(answer(&[b'x'; MAX_HEAD_BYTES + 1]), Answer::Refused(_)));
    }

    #[test]
    fn our_key_has_that_answer() {
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(KEY.as_bytes());
        assert_eq!(accept.as_bytes(), ACCEPT);
    }
}
