//! The messages of a hand-over: a head of eight bytes, then MessagePack, with the descriptors at the first byte.
//!
//! Neighbouring versions understand each other: unknown fields are skipped, and fields that an older version does not
//! send have defaults. May not enter: the order of the steps (`give.rs`, `take.rs`).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::fault_injection;
use crate::broker::Seal;
use crate::broker::redis::Home;
use crate::os::descriptors::{self, Lent};
use crate::protocol::hub::HistoriesSnapshot;
use crate::protocol::session::snapshot::SessionSnapshot;
use crate::worker::MessageSnapshot;

/// The format of this version, and the oldest format that this version understands. A change that an older version
/// would misunderstand, rather than skip, raises both.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const OLDEST: u32 = 1;

/// The first bytes of every head; the message's length and the number of its descriptors follow.
const MAGIC: [u8; 2] = *b"Wh";
const HEAD_BYTES: usize = 8;

/// The most sessions in one message: one descriptor each.
pub(crate) const MAX_SESSIONS: usize = descriptors::MAX_DESCRIPTORS;

/// A message that has reached this many bytes takes no more sessions.
pub(crate) const FULL_BYTES: usize = 4 << 20;

/// The longest message. The settings allow a backlog of a gigabyte for a single session.
const MAX_BYTES: usize = u32::MAX as usize;

/// The messages, in the order in which they are sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// From the new process: its version.
    Hello(Hello),
    /// From the old process: its listeners, with their descriptors in the same order.
    Listeners {
        hello: Hello,
        listeners: Vec<ListenerSnapshot>,
        broker: String,
        /// The marker's name.
        #[serde(rename = "mark")]
        marker: String,
        /// Proves that the marker is ours. Earlier versions take any publication on the marker's channel for it.
        #[serde(default)]
        seal: Option<Seal>,
        #[serde(default)]
        homes: Vec<Home>,
        /// The path of the control socket, which the old process removes.
        #[serde(default)]
        control: Option<String>,
    },
    /// From the old process: names of a worker's channels. [`Message::End`] ends the list. The first list, while the
    /// worker serves, has all channels; the second, once the worker is quiesced, has those added since.
    Channels { worker: usize, names: Vec<ByteBuf> },
    /// From the new process, to each list: its channels and the marker are subscribed.
    Ready,
    /// From the old process, if the new one [takes](Hello::takes_histories) them: some histories of a worker. They come
    /// while the worker serves, before the second list of channels.
    Histories { worker: usize, part: HistoriesSnapshot },
    /// From the old process: its streams have reached the marker, and sessions follow.
    Marked,
    /// From the old process: some sessions of a worker, with their descriptors in the same order.
    Sessions { worker: usize, sessions: Vec<SessionSnapshot> },
    /// From the old process: a worker's client messages, sent after its sessions.
    #[serde(rename = "Texts")]
    Messages {
        worker: usize,
        #[serde(rename = "texts")]
        messages: Vec<MessageSnapshot>,
        /// Whether more of them follow. A version that does not know this field takes each part for all of them.
        #[serde(default)]
        has_more: bool,
        /// How long the worker's sessions have missed publications.
        #[serde(default)]
        away_ms: u64,
    },
    /// From the new process, after each message with sessions: their descriptors are received. And after each one with
    /// histories: they are adopted.
    Taken,
    /// From the old process: the list of channels, or of sessions, is complete.
    End,
    /// From the new process: it has all sessions, and its streams have reached the marker.
    Adopted,
    /// From the old process: serve.
    Commit,
    /// From the new process: it serves.
    Serving,
    /// From the new process: it cannot take over.
    Refused {
        why: String,
        /// Whether its broker is the reason.
        #[serde(default)]
        is_broker: bool,
    },
    /// From a process that ends before the next one starts: the first message that it leaves, before
    /// [`Message::Sessions`], [`Message::Messages`] and [`Message::End`]. `at_ms` is its time, in milliseconds since
    /// 1970.
    Left { hello: Hello, at_ms: u64 },
}

/// How a process introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    format: u32,
    oldest: u32,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// The broker that the process uses, if known. Two processes with different brokers share no marker.
    #[serde(default)]
    pub(crate) broker: Option<String>,
    /// Whether the process understands [`Message::Histories`].
    #[serde(default)]
    pub(crate) takes_histories: bool,
    /// A field that no version knows, for tests: it must be skipped.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    news: Option<String>,
}

/// A listener as data for another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerSnapshot {
    /// The configured address; none when systemd passed the socket.
    pub(crate) address: Option<String>,
    /// Device and inode of the socket file, when webws created it.
    #[serde(default)]
    pub(crate) file: Option<(u64, u64)>,
}

/// Why a message could not be exchanged. The texts are read behind "the new process: ".
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("it ended")]
    Ended,
    #[error("no message came from it within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Io(io::Error),
    #[error("a message cannot be used: {0}")]
    Nonsense(String),
    #[error(
        "it is version {version}; its hand-over formats ({oldest} to {format}) do not overlap with this process' \
         ({OLDEST} to {FORMAT})"
    )]
    Format { version: String, oldest: u32, format: u32 },
    #[error("{0}")]
    Refused(String),
    #[error("its broker cannot be used: {0}")]
    Broker(String),
    #[error(
        "WEBWS_HANDOVER={value}: {why}; webws sets this variable for the process that takes over from it: unset it"
    )]
    Variable { value: String, why: String },
}

impl Hello {
    pub(crate) fn own() -> Self {
        let (format, oldest) = fault_injection::format().unwrap_or((FORMAT, OLDEST));
        // A version newer than all others sends a field that they do not know.
        let news = (format > FORMAT).then(|| "unheard of".to_owned());
        Self {
            format,
            oldest,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            broker: None,
            takes_histories: true,
            news,
        }
    }

    /// The introduction of a process that uses `broker`.
    pub(crate) fn using(broker: Option<&str>) -> Self {
        Self { broker: broker.map(str::to_owned), ..Self::own() }
    }

    /// Whether the other process and this one understand each other's format.
    pub(crate) fn check(&self) -> Result<(), ProtocolError> {
        if self.format >= OLDEST && self.oldest <= FORMAT {
            return Ok(());
        }
        let Self { version, oldest, format, .. } = self.clone();
        Err(ProtocolError::Format { version, oldest, format })
    }
}

/// The socket between the two processes.
#[derive(Debug)]
pub(crate) struct Line(UnixStream);

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// # Errors
    /// When the other process has ended, or takes nothing within `limit`.
    pub(crate) fn say(&self, message: &Message, descriptors: &[Lent], limit: Duration) -> Result<(), ProtocolError> {
        let io = |error| ProtocolError::of(error, limit);
        let bytes = encode(message, descriptors.len())?;
        self.0.set_write_timeout(Some(limit)).map_err(io)?;
        descriptors::send(&self.0, &bytes, descriptors).map_err(io)
    }

    /// The next message and its descriptors.
    ///
    /// # Errors
    /// When the other process has ended, sends nothing within `limit`, sends what cannot be decoded, or refuses.
    pub(crate) fn hear(&self, limit: Duration) -> Result<(Message, Vec<OwnedFd>), ProtocolError> {
        let io = |error| ProtocolError::of(error, limit);
        self.0.set_read_timeout(Some(limit)).map_err(io)?;
        let mut head = [0; HEAD_BYTES];
        let descriptors = descriptors::receive(&self.0, &mut head).map_err(io)?;
        let (message, count) = read(head, &self.0, limit)?;
        if descriptors.len() != count {
            return Err(ProtocolError::Nonsense(format!("{count} descriptors announced, {} came", descriptors.len())));
        }
        match message {
            Message::Refused { why, is_broker: true } => Err(ProtocolError::Broker(why)),
            Message::Refused { why, .. } => Err(ProtocolError::Refused(why)),
            message => Ok((message, descriptors)),
        }
    }

    /// Makes every later `say` of the other process fail. Messages that are sent already can still be read.
    pub(crate) fn stop_hearing(&self) {
        // A failure means that the other process has ended.
        drop(self.0.shutdown(std::net::Shutdown::Read));
    }

    /// Waits until the other process has ended.
    pub(crate) fn await_end(&self, limit: Duration) {
        // An error is an end as well.
        drop(self.0.set_read_timeout(Some(limit)));
        while matches!((&self.0).read(&mut [0; 1024]), Ok(1..)) {}
    }
}

/// A message's bytes; the head announces the number of `descriptors`.
pub(crate) fn encode(message: &Message, descriptors: usize) -> Result<Vec<u8>, ProtocolError> {
    let nonsense = |what: &dyn std::fmt::Display| ProtocolError::Nonsense(what.to_string());
    let mut bytes = vec![0; HEAD_BYTES];
    rmp_serde::encode::write_named(&mut bytes, message).map_err(|error| nonsense(&error))?;
    let len = u32::try_from(bytes.len() - HEAD_BYTES).map_err(|error| nonsense(&error))?;
    let count = u16::try_from(descriptors).map_err(|error| nonsense(&error))?;
    let head = [&MAGIC[..], &len.to_be_bytes(), &count.to_be_bytes()].concat();
    for (slot, byte) in bytes.iter_mut().zip(head) {
        *slot = byte;
    }
    Ok(bytes)
}

/// The next message of a file, and the number of its descriptors.
pub(crate) fn next(mut file: impl Read) -> Result<(Message, usize), ProtocolError> {
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(|error| ProtocolError::of(error, Duration::ZERO))?;
    read(head, file, Duration::ZERO)
}

/// Reads the message behind a head.
fn read(head: [u8; HEAD_BYTES], rest: impl Read, limit: Duration) -> Result<(Message, usize), ProtocolError> {
    let (len, count) = lengths(head)?;
    let mut bytes = Vec::new();
    // Grows with the bytes that arrive, not to the length that is announced.
    let read = rest.take(len as u64).read_to_end(&mut bytes).map_err(|error| ProtocolError::of(error, limit))?;
    if read < len {
        return Err(ProtocolError::Ended);
    }
    Ok((decode(&bytes)?, count))
}

fn lengths(head: [u8; HEAD_BYTES]) -> Result<(usize, usize), ProtocolError> {
    let [m0, m1, l0, l1, l2, l3, c0, c1] = head;
    if [m0, m1] != MAGIC {
        return Err(ProtocolError::Nonsense("no message starts with these bytes".to_owned()));
    }
    let (len, count) = (u32::from_be_bytes([l0, l1, l2, l3]) as usize, usize::from(u16::from_be_bytes([c0, c1])));
    if len > MAX_BYTES || count > MAX_SESSIONS {
        return Err(ProtocolError::Nonsense(format!("a message of {len} bytes and {count} descriptors")));
    }
    Ok((len, count))
}

/// Decodes a message. Any bytes give a message or an error, never a panic.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message, ProtocolError> {
    rmp_serde::from_slice(bytes).map_err(|error| ProtocolError::Nonsense(error.to_string()))
}

impl ProtocolError {
    fn of(error: io::Error, limit: Duration) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent(limit),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Ended,
            _ => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_secs(5);

    fn lines() -> (Line, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Line::new(ours), theirs)
    }

    /// The bytes of a message.
    fn said(message: &Message) -> Vec<u8> {
        let (line, mut other) = lines();
        line.say(message, &[], SOON).unwrap();
        drop(line);
        let mut bytes = Vec::new();
        other.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn heard(bytes: &[u8]) -> Result<(Message, Vec<OwnedFd>), ProtocolError> {
        let (line, mut other) = lines();
        other.write_all(bytes).unwrap();
        drop(other);
        line.hear(SOON)
    }

    #[test]
    fn messages_arrive_as_they_were_and_cut_or_bent_ones_do_not() {
        let message = Message::Channels { worker: 3, names: vec![ByteBuf::from("chat:a"), ByteBuf::from([0xff])] };
        let bytes = said(&message);
        assert_eq!(format!("{:?}", heard(&bytes).unwrap().0), format!("{message:?}"));
        for cut in 0..bytes.len() {
            assert!(matches!(heard(&bytes[..cut]), Err(ProtocolError::Ended)), "{cut}");
        }
        for (at, flip) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, 1 << bit))) {
            let mut bent = bytes.clone();
            bent[at] ^= flip;
            // A flipped bit gives another message or an error, never a panic.
            drop(heard(&bent));
        }
        for wrong in [&b"GET / HTTP/1.1\r\n"[..], b"Wh\0\0\0\x01\0\0\xc1", b"Wh\0\0\0\x01\xff\xff\x80"] {
            assert!(matches!(heard(wrong), Err(ProtocolError::Nonsense(_))), "{}", wrong.escape_ascii());
        }
        // Descriptors that are announced have to arrive.
        let mut alone = bytes.clone();
        alone[7] = 1;
        assert!(matches!(heard(&alone), Err(ProtocolError::Nonsense(_))));
        // An announced length allocates nothing.
        assert!(matches!(heard(b"Wh\xff\xff\xff\xff\0\0"), Err(ProtocolError::Ended)));
        assert!(matches!(
            heard(&said(&Message::Refused { why: "no".to_owned(), is_broker: false })),
            Err(ProtocolError::Refused(_))
        ));
    }

    #[test]
    fn neighbouring_formats_understand_each_other_and_others_say_so() {
        let hello = |format, oldest| Hello { format, oldest, ..Hello::own() };
        for (format, oldest, is_understood) in [(1, 1, true), (2, 1, true), (9, 1, true), (9, 2, false), (0, 0, false)]
        {
            let checked = hello(format, oldest).check();
            assert_eq!(checked.is_ok(), is_understood, "{format}, {oldest}");
            if let Err(error) = checked {
                assert!(error.to_string().contains(&format!("({oldest} to {format})")), "{error}");
            }
        }
    }

    #[test]
    fn an_earlier_version_takes_no_histories() {
        #[derive(Serialize)]
        struct Earlier {
            format: u32,
            oldest: u32,
            version: &'static str,
            pid: u32,
        }
        let earlier = Earlier { format: 1, oldest: 1, version: "0.1.0", pid: 7 };
        let hello: Hello = rmp_serde::from_slice(&rmp_serde::to_vec_named(&earlier).unwrap()).unwrap();
        assert!(hello.check().is_ok() && !hello.takes_histories && Hello::own().takes_histories);
    }

    #[test]
    fn a_silent_process_is_waited_for_until_the_limit() {
        let (line, _other) = lines();
        assert!(matches!(line.hear(Duration::from_millis(10)), Err(ProtocolError::Silent(_))));
    }
}
