//! What two processes say to each other: a head of eight bytes, then a message of MessagePack, with
//! descriptors at its first byte. Fields that are not known are passed over, and those that an
//! older version does not send have defaults, so that neighbouring versions understand each other.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::fault;
use crate::broker::Seal;
use crate::broker::redis::Home;
use crate::os::descriptors::{self, Lent};
use crate::protocol::session::snapshot::SessionSnapshot;
use crate::worker::MessageSnapshot;

/// What this version speaks, and the oldest that it understands. A change that an older version would
/// misunderstand, rather than pass over, raises both.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const OLDEST: u32 = 1;

/// What every message starts with; its length and the number of its descriptors follow.
const MAGIC: [u8; 2] = *b"Wh";
const HEAD_BYTES: usize = 8;

/// Sessions in one message: one descriptor each.
pub(crate) const MAX_SESSIONS: usize = descriptors::MAX_DESCRIPTORS;

/// Bytes of a message beyond which no more sessions go into it.
pub(crate) const FULL_BYTES: usize = 4 << 20;

/// The longest message. A session alone may have a gigabyte that was not sent, if it was configured so.
const MAX_BYTES: usize = u32::MAX as usize;

/// The messages, in the order in which they are sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The new process: who it is.
    Hello(Hello),
    /// The old one: its listeners, as descriptors in the same order.
    Listeners {
        hello: Hello,
        listeners: Vec<PortableListener>,
        broker: String,
        mark: String,
        /// How the mark is told from what others publish on its channels. Earlier versions take anything for it.
        #[serde(default)]
        seal: Option<Seal>,
        #[serde(default)]
        homes: Vec<Home>,
        /// The control socket, which goes with the old process.
        #[serde(default)]
        control: Option<String>,
    },
    /// Some names of a worker's channels, until [`Message::End`]: all while it serves, and the few that
    /// came since when it rests.
    Channels { worker: usize, names: Vec<ByteBuf> },
    /// The new one, to each list of channels: they and the mark are subscribed.
    Ready,
    /// The old one: its streams stand at the mark, sessions follow.
    Marked,
    /// Some sessions of a worker, as descriptors in the same order.
    Sessions { worker: usize, sessions: Vec<SessionSnapshot> },
    /// The texts of a worker that wait to be published, behind its sessions.
    Texts {
        worker: usize,
        texts: Vec<MessageSnapshot>,
        /// Whether another message has more of them: a version that does not know this takes each for all.
        #[serde(default)]
        has_more: bool,
        /// How long its sessions have missed what was published.
        #[serde(default)]
        away_ms: u64,
    },
    /// The new one, after each message with sessions: so many descriptors are not under way any more.
    Taken,
    /// The old one: that was all, of channels or of sessions.
    End,
    /// The new one: all of it is there, and its streams stand at the mark.
    Adopted,
    /// The old one: go on.
    Commit,
    /// The new one: it serves.
    Serving,
    /// The new one: it cannot.
    Refused {
        why: String,
        /// Whether its broker is the reason.
        #[serde(default)]
        is_broker: bool,
    },
    /// A process that ends before the next one starts: the first it leaves behind, before its sessions
    /// ([`Message::Sessions`], [`Message::Texts`], [`Message::End`]). When that was, in milliseconds since
    /// 1970.
    Left { hello: Hello, at_ms: u64 },
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    format: u32,
    oldest: u32,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// Which broker it uses, if it says so: with another one there is no mark.
    #[serde(default)]
    pub(crate) broker: Option<String>,
    /// Nobody knows this field; it is passed over.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    news: Option<String>,
}

/// A listener on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortableListener {
    /// What was configured; none when systemd gave it.
    pub(crate) address: Option<String>,
    /// Device and inode of the socket file that we made.
    #[serde(default)]
    pub(crate) file: Option<(u64, u64)>,
}

/// Why the two do not understand each other.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("it ended")]
    Ended,
    #[error("it did not say anything within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Io(io::Error),
    #[error("what it said makes no sense: {0}")]
    Nonsense(String),
    #[error(
        "it is of version {version} and speaks another format (understands {oldest} to {format}, here it is {OLDEST} to {FORMAT})"
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
        let (format, oldest) = fault::format().unwrap_or((FORMAT, OLDEST));
        // What a version says that is newer than all others.
        let news = (format > FORMAT).then(|| "unheard of".to_owned());
        Self {
            format,
            oldest,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            broker: None,
            news,
        }
    }

    /// Of a process with that broker.
    pub(crate) fn using(broker: Option<&str>) -> Self {
        Self { broker: broker.map(str::to_owned), ..Self::own() }
    }

    /// Whether one of the two understands the other's words.
    pub(crate) fn check(&self) -> Result<(), ProtocolError> {
        if self.format >= OLDEST && self.oldest <= FORMAT {
            return Ok(());
        }
        let Self { version, oldest, format, .. } = self.clone();
        Err(ProtocolError::Format { version, oldest, format })
    }
}

/// The way between the two.
#[derive(Debug)]
pub(crate) struct Line(UnixStream);

impl Line {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// # Errors
    /// When the other has ended, or takes nothing within `limit`.
    pub(crate) fn say(&self, message: &Message, descriptors: &[Lent], limit: Duration) -> Result<(), ProtocolError> {
        let io = |error| ProtocolError::of(error, limit);
        let bytes = encode(message, descriptors.len())?;
        self.0.set_write_timeout(Some(limit)).map_err(io)?;
        descriptors::send(&self.0, &bytes, descriptors).map_err(io)
    }

    /// The next message and its descriptors.
    ///
    /// # Errors
    /// When the other has ended, says nothing within `limit`, says nonsense, or refuses.
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

    /// Hears no more: what the other says from now on fails there. What it has said before is left to be
    /// heard.
    pub(crate) fn stop_hearing(&self) {
        // If that fails, the other has ended.
        drop(self.0.shutdown(std::net::Shutdown::Read));
    }

    /// Waits for the other to end.
    pub(crate) fn await_end(&self, limit: Duration) {
        // However it ends, it has.
        drop(self.0.set_read_timeout(Some(limit)));
        while matches!((&self.0).read(&mut [0; 1024]), Ok(1..)) {}
    }
}

/// A message's bytes, announcing so many descriptors.
pub(crate) fn encode(message: &Message, descriptors: usize) -> Result<Vec<u8>, ProtocolError> {
    let nonsense = |what: &dyn std::fmt::Display| ProtocolError::Nonsense(what.to_string());
    let mut bytes = vec![0; HEAD_BYTES];
    rmp_serde::encode::write_named(&mut bytes, message).map_err(|error| nonsense(&error))?;
    let len = u32::try_from(bytes.len() - HEAD_BYTES).map_err(|error| nonsense(&error))?;
    let count = u16::try_from(descriptors).map_err(|error| nonsense(&error))?;
    let head = [&MAGIC[..], &len.to_be_bytes(), &count.to_be_bytes()].concat();
    for (place, byte) in bytes.iter_mut().zip(head) {
        *place = byte;
    }
    Ok(bytes)
}

/// The next message of a file, and how many descriptors belong to it.
pub(crate) fn next(mut file: impl Read) -> Result<(Message, usize), ProtocolError> {
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(|error| ProtocolError::of(error, Duration::ZERO))?;
    read(head, file, Duration::ZERO)
}

/// What follows a head.
fn read(head: [u8; HEAD_BYTES], rest: impl Read, limit: Duration) -> Result<(Message, usize), ProtocolError> {
    let (len, count) = lengths(head)?;
    let mut bytes = Vec::new();
    // Grows with what comes, whatever was announced.
    let read = rest.take(len as u64).read_to_end(&mut bytes).map_err(|error| ProtocolError::of(error, limit))?;
    if read < len {
        return Err(ProtocolError::Ended);
    }
    Ok((decode(&bytes)?, count))
}

fn lengths(head: [u8; HEAD_BYTES]) -> Result<(usize, usize), ProtocolError> {
    let [m0, m1, l0, l1, l2, l3, c0, c1] = head;
    if [m0, m1] != MAGIC {
        return Err(ProtocolError::Nonsense("no message starts like that".to_owned()));
    }
    let (len, count) = (u32::from_be_bytes([l0, l1, l2, l3]) as usize, usize::from(u16::from_be_bytes([c0, c1])));
    if len > MAX_BYTES || count > MAX_SESSIONS {
        return Err(ProtocolError::Nonsense(format!("a message of {len} bytes and {count} descriptors")));
    }
    Ok((len, count))
}

/// A message's words; whatever they are, this ends with a message or an error.
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
            // Whatever it is now, it is judged.
            drop(heard(&bent));
        }
        for wrong in [&b"GET / HTTP/1.1\r\n"[..], b"Wh\0\0\0\x01\0\0\xc1", b"Wh\0\0\0\x01\xff\xff\x80"] {
            assert!(matches!(heard(wrong), Err(ProtocolError::Nonsense(_))), "{}", wrong.escape_ascii());
        }
        // Announced descriptors have to come.
        let mut alone = bytes.clone();
        alone[7] = 1;
        assert!(matches!(heard(&alone), Err(ProtocolError::Nonsense(_))));
        // A length is no reason to take memory.
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
                assert!(error.to_string().contains(&format!("understands {oldest} to {format}")), "{error}");
            }
        }
    }

    #[test]
    fn who_says_nothing_is_not_waited_for_for_ever() {
        let (line, _other) = lines();
        assert!(matches!(line.hear(Duration::from_millis(10)), Err(ProtocolError::Silent(_))));
    }
}
