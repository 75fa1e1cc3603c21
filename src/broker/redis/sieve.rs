//! Takes published messages out of a subscriber's stream and hands them to the worker; all else
//! (confirmations, answers to commands) goes on to the crate, which parses it. The crate subscribes by
//! RESP3 only: what a server says in RESP2 is made RESP3 on its way.
//!
//! Order is kept: a message is taken only when the crate has asked for more, and so has dealt
//! with everything before it. Measured on 9,000 channels with a subscriber each: a sixth of our own
//! CPU went into parsing messages in the crate and copying them out of it, and 64 of them took
//! seven system calls, because its buffer asks for some 2 kB at a time.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::greeting::Protocol;
use super::subscriber::{is_stopped, on_heard, on_message, on_pause, on_unsubscribed};
use crate::placement::Node;

/// How bytes reach Redis.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Transport for T {}

/// Bytes read at once, and the buffer that is kept.
const READ_BYTES: usize = 64 << 10;

/// Reads before the worker's other tasks have their turn, however much Redis has to say.
const READS_PER_TURN: usize = 8;

/// What every published message starts with: a push of three bulk strings, the first of which says
/// what it is (RESP3; <https://redis.io/docs/latest/develop/reference/protocol-spec/>). The second is that
/// of a channel that is sharded.
const MESSAGES: [&[u8]; 2] = [b">3\r\n$7\r\nmessage\r\n", b">3\r\n$8\r\nsmessage\r\n"];
/// The same in RESP2, where a push is an array like others.
const RESP2_MESSAGES: [&[u8]; 2] = [b"*3\r\n$7\r\nmessage\r\n", b"*3\r\n$8\r\nsmessage\r\n"];

/// What else is a push in RESP3, and an array in RESP2. No other command on a subscribing link is answered
/// by these.
const RESP2_CONFIRMATIONS: [&[u8]; 4] = [
    b"*3\r\n$9\r\nsubscribe\r\n",
    b"*3\r\n$11\r\nunsubscribe\r\n",
    b"*3\r\n$10\r\nssubscribe\r\n",
    b"*3\r\n$12\r\nsunsubscribe\r\n",
];
/// What comes before the echo in a subscriber's answer to PING (RESP2).
const RESP2_PONG: &[u8] = b"*2\r\n$4\r\npong\r\n";

/// The crate's greeting, which the link has behind it, and the answer it gets.
const HELLO: &[u8] = b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n";
const WELCOME: &[u8] = b"+OK\r\n";

/// The end of a subscription that is sharded: an answer, or unasked when its slot moves. The crate
/// would take the latter for the answer to whatever it has asked.
const UNSUBSCRIBED: &[u8] = b">3\r\n$12\r\nsunsubscribe\r\n";

/// A subscriber's stream, as the crate reads it.
pub(super) struct Sieve {
    transport: Box<dyn Transport>,
    /// The server it comes from.
    node: Node,
    protocol: Protocol,
    /// What the crate is still to say and Redis not to hear.
    swallowed: &'static [u8],
    /// What was read: unread bytes are those of `unread`.
    buffer: Vec<u8>,
    unread: Range<usize>,
    /// Unread bytes that are for the crate.
    passing: usize,
    has_ended: bool,
}

/// What a stream goes on with.
#[derive(Debug, PartialEq, Eq)]
enum Next<'a> {
    /// A message of `len` bytes in all.
    Message { channel: &'a [u8], payload: &'a [u8], len: usize },
    /// A reply of so many bytes.
    Other(usize),
    /// Nothing whole.
    Incomplete,
    /// Nothing that RESP3 knows: the crate shall say what it thinks of it.
    Nonsense,
}

impl Sieve {
    /// Of a link that was greeted.
    pub(super) fn new(transport: Box<dyn Transport>, node: Node, protocol: Protocol) -> Self {
        let (buffer, passing) = (WELCOME.to_vec(), WELCOME.len());
        Self { transport, node, protocol, swallowed: HELLO, buffer, unread: 0..passing, passing, has_ended: false }
    }

    /// Hands over the messages that come next, until something is for the crate or more is needed.
    fn sift(&mut self) {
        let before = self.unread.start;
        self.sift_all();
        if self.unread.start > before {
            on_heard(self.node);
        }
    }

    fn sift_all(&mut self) {
        while self.passing == 0 && !is_stopped(self.node, None) {
            let unread = self.buffer.get(self.unread.clone()).unwrap_or_default();
            match next(unread, self.protocol) {
                Next::Message { channel, payload, len } => {
                    on_message(self.node, channel, payload);
                    self.unread.start += len;
                }
                Next::Other(len) => self.pass(len),
                Next::Incomplete if !self.has_ended => return,
                Next::Incomplete | Next::Nonsense => {
                    self.passing = unread.len();
                    return;
                }
            }
        }
    }

    /// Gives a reply of `len` bytes to the crate, unless it is the worker's.
    fn pass(&mut self, mut len: usize) {
        if self.protocol == Protocol::Resp2 {
            let reply = self.buffer.get_mut(self.unread.start..).unwrap_or_default();
            if RESP2_CONFIRMATIONS.iter().any(|kind| reply.starts_with(kind)) {
                reply.iter_mut().take(1).for_each(|kind| *kind = b'>');
            } else if reply.starts_with(RESP2_PONG) {
                self.unread.start += RESP2_PONG.len();
                len -= RESP2_PONG.len();
            }
        }
        match unsubscribed(self.buffer.get(self.unread.clone()).unwrap_or_default()) {
            Some(channel) if on_unsubscribed(self.node, channel) => self.unread.start += len,
            _ => self.passing = len,
        }
    }

    /// Reads more.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            self.unread = 0..0;
            if self.buffer.len() != READ_BYTES {
                // The first, or what a large message left.
                self.buffer = vec![0; READ_BYTES];
            }
        } else if self.unread.end == self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.unread.end > self.buffer.len() / 2 {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        let mut room = ReadBuf::new(self.buffer.get_mut(self.unread.end..).unwrap_or_default());
        ready!(Pin::new(&mut *self.transport).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.has_ended = read == 0;
        self.unread.end += read;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Sieve {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        for _ in 0..READS_PER_TURN {
            self.sift();
            if is_stopped(self.node, Some(cx.waker())) {
                on_pause(self.node);
                return Poll::Pending;
            }
            if self.passing > 0 || self.has_ended {
                let step = self.passing.min(out.remaining());
                let from = self.unread.start;
                out.put_slice(self.buffer.get(from..from + step).unwrap_or_default());
                self.unread.start += step;
                self.passing -= step;
                return Poll::Ready(Ok(()));
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(())) if !self.has_ended => {
                    let protocol = self.protocol;
                    if self.buffer.get(self.unread.clone()).is_some_and(|bytes| begins_with_message(bytes, protocol)) {
                        // A large one may take its time.
                        on_heard(self.node);
                    }
                }
                // Nothing more is there, or ever will be: what was collected can leave.
                Poll::Ready(Ok(())) => on_pause(self.node),
                other => {
                    on_pause(self.node);
                    return other;
                }
            }
        }
        on_pause(self.node);
        // Not woken at once but behind the runtime's look at all other sockets and timers: a LocalSet would
        // poll this 61 times before.
        let yielded = std::pin::pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(yielded.is_pending(), "it wakes the task by itself, later");
        Poll::Pending
    }
}

impl AsyncWrite for Sieve {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.swallowed.is_empty() {
            let len = self.swallowed.len().min(bytes.len());
            let (said, rest) = self.swallowed.split_at(len);
            if !bytes.starts_with(said) {
                return Poll::Ready(Err(io::Error::other("the crate's greeting is another one than expected")));
            }
            self.swallowed = rest;
            return Poll::Ready(Ok(len));
        }
        Pin::new(&mut *self.transport).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.transport).poll_shutdown(cx)
    }
}

fn messages(protocol: Protocol) -> [&'static [u8]; 2] {
    match protocol {
        Protocol::Resp2 => RESP2_MESSAGES,
        Protocol::Resp3 => MESSAGES,
    }
}

fn next(bytes: &[u8], protocol: Protocol) -> Next<'_> {
    for kind in messages(protocol) {
        if let Some(rest) = bytes.strip_prefix(kind) {
            return message(rest, bytes.len()).unwrap_or(Next::Incomplete);
        }
        if kind.starts_with(bytes) {
            return Next::Incomplete;
        }
    }
    match reply_len(bytes) {
        Ok(Some(len)) => Next::Other(len),
        Ok(None) => Next::Incomplete,
        Err(Malformed) => Next::Nonsense,
    }
}

fn begins_with_message(bytes: &[u8], protocol: Protocol) -> bool {
    messages(protocol).iter().any(|kind| bytes.starts_with(kind))
}

/// The channel whose subscription has ended, if it is that.
fn unsubscribed(reply: &[u8]) -> Option<&[u8]> {
    let (channel, _) = bulk(reply.strip_prefix(UNSUBSCRIBED)?).ok()??;
    Some(channel)
}

/// What a stream has: its messages' payloads, and the replies that are none; up to what is cut or
/// broken.
#[cfg(feature = "internals")]
pub(crate) fn split(mut stream: &[u8]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    let (mut payloads, mut replies) = (Vec::new(), Vec::new());
    loop {
        let len = match next(stream, Protocol::Resp3) {
            Next::Message { payload, len, .. } => {
                payloads.push(payload);
                len
            }
            Next::Other(len) => {
                replies.push(stream.get(..len).unwrap_or_default());
                len
            }
            Next::Incomplete | Next::Nonsense => return (payloads, replies),
        };
        stream = stream.get(len..).unwrap_or_default();
    }
}

/// A message of which `rest` follows its kind, at the start of `total` bytes; `None` while it is
/// not whole.
fn message(rest: &[u8], total: usize) -> Option<Next<'_>> {
    let (channel, rest) = match bulk(rest) {
        Ok(whole) => whole?,
        Err(Malformed) => return Some(Next::Nonsense),
    };
    let (payload, rest) = match bulk(rest) {
        Ok(whole) => whole?,
        Err(Malformed) => return Some(Next::Nonsense),
    };
    Some(Next::Message { channel, payload, len: total - rest.len() })
}

/// What breaks RESP3, of which RESP2 is a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A part of a stream, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// The line that `bytes` start with, and what follows it; `None` while it is not whole.
fn line(bytes: &[u8]) -> Option<Split<'_>> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    Some((bytes.get(..end)?, bytes.get(end + 2..)?))
}

fn number(digits: &[u8]) -> Result<usize, Malformed> {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Malformed)
}

/// The bulk string that `bytes` start with, and what follows it; `None` while it is not whole.
fn bulk(bytes: &[u8]) -> Result<Option<Split<'_>>, Malformed> {
    let Some((head, rest)) = line(bytes) else { return Ok(None) };
    let len = number(head.strip_prefix(b"$").ok_or(Malformed)?)?;
    let split = || Some((rest.get(..len)?, rest.get(len.checked_add(2)?..)?));
    Ok(split())
}

/// How many bytes the reply has that `bytes` start with; `None` while it is not whole.
pub(super) fn reply_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut rest = bytes;
    // Values that are still to come.
    let mut missing = 1_usize;
    while missing > 0 {
        let Some((head, behind)) = line(rest) else { return Ok(None) };
        let (kind, head) = head.split_first().ok_or(Malformed)?;
        missing -= 1;
        rest = behind;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            // RESP2's nulls.
            b'$' | b'*' if head == b"-1" => {}
            b'$' | b'!' | b'=' => {
                let end = number(head)?.checked_add(2).ok_or(Malformed)?;
                let Some(behind) = rest.get(end..) else { return Ok(None) };
                rest = behind;
            }
            b'*' | b'~' | b'>' => missing = number(head)?.checked_add(missing).ok_or(Malformed)?,
            // An attribute comes with the value that it belongs to.
            b'%' | b'|' => {
                let values = number(head)?.checked_mul(2).ok_or(Malformed)?;
                missing = values.checked_add(missing + usize::from(*kind == b'|')).ok_or(Malformed)?;
            }
            _ => return Err(Malformed),
        }
    }
    Ok(Some(bytes.len() - rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;
    use std::rc::Rc;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use crate::broker::redis::subscriber::Target;
    use crate::broker::redis::{Health, Links, Settings};
    use crate::broker::{Gap, Sink};
    use crate::channel::Channel;
    use crate::channel::SubscriptionRefused;
    use crate::config::{RedisConfig, RedisUrl};
    use crate::id::SessionKey;
    use crate::message::{ClientMessage, NotPublished, Origin};
    use crate::placement::Moved;
    use crate::placement::Placement;

    const HELLO: &[u8] = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n";
    const CONFIRMED: &[u8] = b">3\r\n$9\r\nsubscribe\r\n$3\r\nc:a\r\n:1\r\n";
    const PONG: &[u8] = b"+PONG\r\n";
    const ENDED: &[u8] = b">3\r\n$12\r\nsunsubscribe\r\n$3\r\nc:a\r\n:0\r\n";

    fn push(channel: &str, payload: &[u8]) -> Vec<u8> {
        of_kind(MESSAGES[0], channel, payload)
    }

    fn of_kind(kind: &[u8], channel: &str, payload: &[u8]) -> Vec<u8> {
        let head = format!("${}\r\n{channel}\r\n${}\r\n", channel.len(), payload.len());
        [kind, head.as_bytes(), payload, b"\r\n"].concat()
    }

    /// Links to a server that is never spoken to.
    fn links() -> Rc<Links> {
        let url = RedisUrl::default();
        let settings = Arc::new(Settings::try_new(&url, &RedisConfig::default(), &Default::default()).unwrap());
        let server = (settings, Arc::new(Health::new(&url, 1)));
        Rc::new(Links::new(Node(0), &server, Placement::over(1), None))
    }

    #[test]
    fn replies_are_told_from_messages_and_from_nonsense() {
        let message = push("c:a", b"\r\nx");
        let all = [&message[..], b"+"].concat();
        assert_eq!(
            next(&all, Protocol::Resp3),
            Next::Message { channel: b"c:a", payload: b"\r\nx", len: message.len() }
        );
        for whole in [HELLO, CONFIRMED, PONG, b"$-1\r\n", b"|1\r\n+a\r\n:1\r\n+OK\r\n", b"*0\r\n", b"_\r\n"] {
            assert_eq!(
                next(&[whole, b"+"].concat(), Protocol::Resp3),
                Next::Other(whole.len()),
                "{}",
                whole.escape_ascii()
            );
        }
        let sharded = of_kind(MESSAGES[1], "c:a", b"x");
        assert_eq!(
            next(&sharded, Protocol::Resp3),
            Next::Message { channel: b"c:a", payload: b"x", len: sharded.len() }
        );
        for whole in [&message[..], &sharded, HELLO, CONFIRMED, ENDED, PONG] {
            for end in 0..whole.len() {
                assert_eq!(next(&whole[..end], Protocol::Resp3), Next::Incomplete, "{}", whole[..end].escape_ascii());
            }
        }
        for bytes in [&b"HTTP/1.1 400\r\n"[..], b"$x\r\n", b"\r\n", b">99999999999999999999\r\n"] {
            assert_eq!(next(bytes, Protocol::Resp3), Next::Nonsense, "{}", bytes.escape_ascii());
        }
        let huge = [MESSAGES[0], b"$18446744073709551615\r\nx"].concat();
        assert_eq!(next(&huge, Protocol::Resp3), Next::Incomplete);
    }

    /// Channel and payload.
    type Message = (Vec<u8>, Vec<u8>);

    /// A worker that keeps what it is told.
    #[derive(Default)]
    struct Kept {
        messages: RefCell<Vec<Message>>,
        /// How many of them could leave, because nothing more was there.
        left: Cell<usize>,
    }

    impl Sink for Kept {
        fn on_publication(&self, channel: &[u8], payload: &[u8]) {
            self.messages.borrow_mut().push((channel.to_vec(), payload.to_vec()));
        }

        fn on_pause(&self) {
            self.left.set(self.messages.borrow().len());
        }

        fn on_subscribed(&self, _: Node, _: &[u8]) {}
        fn on_refused(&self, _: &[u8], _: SubscriptionRefused) {}
        fn on_lost(&self, _: Node) {}
        fn on_gap(&self, _: Gap<'_>) {}
        fn take_back(&self, _: Vec<ClientMessage>) {}
        fn on_doubt(&self, _: HashSet<SessionKey>, _: u64) {}

        fn on_dropped(&self, _: Node, _: &[u8]) -> bool {
            true
        }

        fn on_placed(&self) -> Vec<Moved> {
            Vec::new()
        }

        fn unconfirmed(&self, _: Node) -> Vec<Channel> {
            Vec::new()
        }

        fn subscribed(&self, _: Node) -> usize {
            0
        }

        fn wanted(&self, _: Node) -> Vec<Channel> {
            Vec::new()
        }

        fn take_texts(&self, _: Node, _: usize) -> Vec<ClientMessage> {
            Vec::new()
        }

        fn on_published(&self, _: Origin, _: usize, _: Result<(), NotPublished>) {}
    }

    /// What the crate reads of a stream that comes in pieces of `step` bytes, and the messages.
    fn sifted(stream: &[u8], step: usize) -> (Vec<u8>, Vec<Message>) {
        sifted_by(links(), Protocol::Resp3, stream, step)
    }

    fn sifted_by(links: Rc<Links>, protocol: Protocol, stream: &[u8], step: usize) -> (Vec<u8>, Vec<Message>) {
        let kept = Rc::new(Kept::default());
        let _target = Target::set(kept.clone(), Rc::new(RefCell::new(vec![links])));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(async {
            let (mut theirs, ours) = tokio::io::duplex(step);
            let mut sieve = Sieve::new(Box::new(ours), Node(0), protocol);
            let mut read = Vec::new();
            let send = async {
                tokio::io::AsyncWriteExt::write_all(&mut theirs, stream).await.unwrap();
                drop(theirs);
            };
            let (_, end) = tokio::join!(send, sieve.read_to_end(&mut read));
            end.unwrap();
            read.split_off(WELCOME.len())
        });
        let messages = kept.messages.take();
        assert_eq!(kept.left.get(), messages.len(), "messages that came with the end leave all the same");
        (read, messages)
    }

    #[test]
    fn a_large_message_is_taken_whole() {
        let payload = Bytes::from(vec![b'x'; 10 * READ_BYTES]);
        let stream = [PONG, &push("c:a", &payload), PONG].concat();
        let (read, messages) = sifted(&stream, 100_000);
        assert_eq!(read, [PONG, PONG].concat());
        assert_eq!(messages, [(b"c:a".to_vec(), payload.to_vec())]);
    }

    #[test]
    fn a_part_of_a_message_proves_that_the_link_hears() {
        let links = links();
        let probe = &links.probe;
        let _target = Target::set(Rc::new(Kept::default()), Rc::new(RefCell::new(vec![links.clone()])));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut theirs, ours) = tokio::io::duplex(1_000);
            let mut sieve = Sieve::new(Box::new(ours), Node(0), Protocol::Resp3);
            sieve.read_exact(&mut [0; WELCOME.len()]).await.unwrap();
            probe.proved();
            let before = probe.heard_at();
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            let message = push("c:a", b"large");
            tokio::io::AsyncWriteExt::write_all(&mut theirs, &message[..message.len() - 4]).await.unwrap();
            let read = tokio::time::timeout(std::time::Duration::from_millis(1), sieve.read_u8()).await;
            assert!(read.is_err() && probe.heard_at() > before);
        });
    }

    #[test]
    fn a_stream_that_ends_in_the_middle_is_passed_on_to_its_end() {
        let message = push("c:a", b"x");
        assert_eq!(sifted(&message[..message.len() - 1], 7).0, &message[..message.len() - 1]);
    }

    #[test]
    fn a_subscription_that_ended_unasked_is_no_answer() {
        let stream = [PONG, ENDED, PONG].concat();
        let links = links();
        assert_eq!(sifted_by(links.clone(), Protocol::Resp3, &stream, 7).0, [PONG, PONG].concat());
        assert!(links.lost_since.get().is_some() && links.retry_at.get().is_some());
        let links = self::links();
        links.leaving.borrow_mut().insert(Channel::from_static(b"c:a"));
        assert_eq!(sifted_by(links.clone(), Protocol::Resp3, &stream, 7).0, stream, "asked for, it is one");
        assert_eq!(links.lost_since.get(), None);
        assert_eq!(sifted_by(links, Protocol::Resp3, &stream, 7).0, [PONG, PONG].concat(), "once");
    }

    #[test]
    fn resp2_becomes_resp3_however_it_is_cut() {
        let message = of_kind(RESP2_MESSAGES[0], "c:a", b"x");
        let sharded = of_kind(RESP2_MESSAGES[1], "c:a", b"y");
        let confirmed = [&b"*"[..], &CONFIRMED[1..]].concat();
        let answer = &b"*3\r\n$6\r\nmaster\r\n:1\r\n*0\r\n"[..];
        let pong = &b"*2\r\n$4\r\npong\r\n$7\r\nin step\r\n"[..];
        let ended = [&b"*"[..], &ENDED[1..]].concat();
        let stream = [&confirmed[..], &message, answer, pong, &sharded, PONG, &ended, b"-ERR no\r\n"].concat();
        let expected = [CONFIRMED, answer, b"$7\r\nin step\r\n", PONG, b"-ERR no\r\n"].concat();
        for step in [1, 7, 1_000] {
            let links = links();
            let (read, messages) = sifted_by(links.clone(), Protocol::Resp2, &stream, step);
            assert_eq!(read.escape_ascii().to_string(), expected.escape_ascii().to_string());
            assert_eq!(messages, [(b"c:a".to_vec(), b"x".to_vec()), (b"c:a".to_vec(), b"y".to_vec())]);
            assert!(links.lost_since.get().is_some(), "a sharded subscription that ends unasked is known");
        }
    }

    #[test]
    fn the_crates_greeting_does_not_reach_redis() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (theirs, ours) = tokio::io::duplex(1_000);
            let mut sieve = Sieve::new(Box::new(ours), Node(0), Protocol::Resp2);
            for part in [&super::HELLO[..5], &super::HELLO[5..], PONG] {
                tokio::io::AsyncWriteExt::write_all(&mut sieve, part).await.unwrap();
            }
            drop(sieve);
            let mut heard = Vec::new();
            tokio::io::BufReader::new(theirs).read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, PONG);
        });
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_each_gets_its_own(parts in proptest::collection::vec(0_u8..5, 0..40), step in 1_usize..300) {
            let (mut stream, mut replies, mut messages) = (Vec::new(), Vec::new(), Vec::new());
            for (part, n) in parts.iter().zip(0_usize..) {
                let reply = match part {
                    0 => HELLO,
                    1 => CONFIRMED,
                    2 => PONG,
                    _ => {
                        let payload = vec![b'0' + part; n * usize::from(*part)];
                        stream.extend(push("c:a", &payload));
                        messages.push((b"c:a".to_vec(), payload));
                        continue;
                    }
                };
                stream.extend_from_slice(reply);
                replies.extend_from_slice(reply);
            }
            prop_assert_eq!(sifted(&stream, step), (replies, messages));
        }
    }
}
