//! Positions: which publications on a channel a client has seen, in a form that is equal in every worker, process and
//! machine.
//!
//! A node's subscribers all hear the same *milestones*, short messages on a channel of their own, in one order with all
//! publications. So the n-th publication on a channel since a milestone is the same one for everybody. A [`Token`] is a
//! position as clients have it. May not enter: what is kept of a channel (`protocol/hub`), how milestones are published
//! (`broker`).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;

/// The name of a milestone: random, and unique among those of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct MilestoneId(pub(crate) u64);

/// A point in a node's replication log, at or before a milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPoint {
    /// The signature of the offset by the replication id: names the history, and cannot be made up.
    pub(crate) history: [u8; 8],
    /// `master_repl_offset`.
    pub(crate) offset: u64,
}

/// A milestone that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Milestone {
    pub(crate) id: MilestoneId,
    /// Where the node's log was before the milestone was published, if the publisher was allowed to ask.
    pub(crate) log: Option<LogPoint>,
}

impl Milestone {
    /// The promotion of a node, as a milestone that is not published: its id follows from the point at which the node's
    /// own log begins. The log may lack the last publications of the former master. Publications behind the promotion
    /// count from this milestone, so that none gets the position of a lost one.
    pub(crate) fn of_promotion(log: LogPoint) -> Self {
        // 2^64 divided by the golden ratio: neighbouring offsets get names far apart.
        let offset = log.offset.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { id: MilestoneId(u64::from_be_bytes(log.history) ^ offset), log: Some(log) }
    }

    /// Whether this is a promotion.
    pub(crate) fn is_promotion(self) -> bool {
        self.log.is_some_and(|log| self == Self::of_promotion(log))
    }
}

/// A place in the stream of one channel: behind the `count`-th publication since the milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) milestone: Milestone,
    pub(crate) count: u32,
}

/// From where on a client that comes back wants a channel's publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// From the oldest that is kept.
    Oldest,
    /// Those behind a position.
    Position(Position),
}

/// What a client shows for [`Since::Oldest`]: the start of a stream in Durable Streams, and no token.
const OLDEST: &str = "-1";

/// The first byte of a token's bytes, which names their form.
const PLAIN: u8 = 1;
const WITH_LOG: u8 = 2;

/// The longest token, in characters: a form, a milestone, a count and a log point.
pub(crate) const MAX_TOKEN_LEN: usize = MAX_TOKEN_BYTES.div_ceil(3) * 4;
const MAX_TOKEN_BYTES: usize = 1 + 8 + 5 + 8 + 10;

/// A position as a client has it: base64url (RFC 4648 §5) without padding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    text: [u8; MAX_TOKEN_LEN],
    len: usize,
}

impl Token {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

impl From<Position> for Token {
    fn from(position: Position) -> Self {
        let Position { milestone: Milestone { id, log }, count } = position;
        let mut bytes = Buffer::default();
        bytes.put(&[if log.is_some() { WITH_LOG } else { PLAIN }]);
        bytes.put(&id.0.to_be_bytes());
        bytes.put_varint(count.into());
        if let Some(LogPoint { history, offset }) = log {
            bytes.put(&history);
            bytes.put_varint(offset);
        }
        let mut text = [0; MAX_TOKEN_LEN];
        let len = URL_SAFE_NO_PAD.encode_slice(bytes.filled(), &mut text).expect("the longest token fits");
        Self { text, len }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(self.as_bytes()).unwrap_or_default())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Something in a node's log behind the last milestone that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Logged {
    Publication {
        channel: Channel,
        payload: Bytes,
    },
    /// One that was published, or the promotion of the node.
    Milestone(Milestone),
}

/// Text that is no position of webws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no position of webws")]
pub(crate) struct NotAPosition;

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let mut bytes = [0; MAX_TOKEN_BYTES + 2];
        if text.len() > MAX_TOKEN_LEN {
            return Err(NotAPosition);
        }
        let len = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| NotAPosition)?;
        let mut rest = bytes.get(..len).ok_or(NotAPosition)?;
        let [form] = take(&mut rest)?;
        let id = MilestoneId(u64::from_be_bytes(take(&mut rest)?));
        let count = u32::try_from(take_varint(&mut rest)?).map_err(|_| NotAPosition)?;
        let log = match form {
            PLAIN => None,
            WITH_LOG => Some(LogPoint { history: take(&mut rest)?, offset: take_varint(&mut rest)? }),
            _ => return Err(NotAPosition),
        };
        if !rest.is_empty() {
            return Err(NotAPosition);
        }
        Ok(Self { milestone: Milestone { id, log }, count })
    }
}

impl FromStr for Since {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        if text == OLDEST { Ok(Self::Oldest) } else { text.parse().map(Self::Position) }
    }
}

/// A milestone as it is published: `ID [HISTORY OFFSET]`, in hexadecimal, hexadecimal and decimal digits.
impl fmt::Display for Milestone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.id.0)?;
        match self.log {
            Some(LogPoint { history, offset }) => write!(f, " {:016x} {offset}", u64::from_be_bytes(history)),
            None => Ok(()),
        }
    }
}

/// A message that is no milestone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no milestone of webws")]
pub(crate) struct NotAMilestone;

impl FromStr for Milestone {
    type Err = NotAMilestone;

    fn from_str(text: &str) -> Result<Self, NotAMilestone> {
        let hex = |digits: &str| (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
        let mut fields = text.split(' ');
        let id = fields.next().and_then(hex).map(MilestoneId).ok_or(NotAMilestone)?;
        let log = match (fields.next(), fields.next()) {
            (None, None) => None,
            (Some(history), Some(offset)) => {
                let history = hex(history).ok_or(NotAMilestone)?.to_be_bytes();
                Some(LogPoint { history, offset: offset.parse().map_err(|_| NotAMilestone)? })
            }
            _ => return Err(NotAMilestone),
        };
        // A later version may say more.
        Ok(Self { id, log })
    }
}

/// A token's bytes while they are written.
#[derive(Default)]
struct Buffer {
    bytes: [u8; MAX_TOKEN_BYTES],
    len: usize,
}

impl Buffer {
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end).expect("the longest token fits").copy_from_slice(bytes);
        self.len = end;
    }

    /// LEB128, as in protocol buffers: seven bits a byte, the lowest first.
    #[expect(clippy::cast_possible_truncation, reason = "seven bits fit")]
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value as u8 & 0x7f | 0x80]);
            value >>= 7;
        }
        self.put(&[value as u8]);
    }

    fn filled(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], NotAPosition> {
    let (taken, behind) = rest.split_first_chunk().ok_or(NotAPosition)?;
    *rest = behind;
    Ok(*taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, NotAPosition> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = take(rest)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(NotAPosition);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(NotAPosition)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(count: u32, log: Option<LogPoint>) -> Position {
        Position { milestone: Milestone { id: MilestoneId(0x0123_4567_89ab_cdef), log }, count }
    }

    #[test]
    fn a_token_is_short_fits_in_a_url_and_says_what_its_position_says() {
        let log = |offset| Some(LogPoint { history: *b"\xff\0abcdef", offset });
        for count in [0, 1, 127, 128, 70_000, u32::MAX] {
            for log in [None, log(0), log(1 << 20), log(u64::MAX)] {
                let position = position(count, log);
                let token = Token::from(position);
                let text = token.to_string();
                assert_eq!(text.parse(), Ok(position), "{text}");
                assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{text}");
                assert!(text.len() <= MAX_TOKEN_LEN);
            }
        }
        assert_eq!(Token::from(position(3, None)).to_string(), "AQEjRWeJq83vAw");
        assert_eq!(Token::from(position(u32::MAX, log(u64::MAX))).as_bytes().len(), 43);
        assert_eq!(Token::from(position(3, log(1 << 24))).as_bytes().len(), 30);
    }

    #[test]
    fn a_promotion_is_a_milestone_of_its_own() {
        let promotion = |history: &[u8; 8], offset| Milestone::of_promotion(LogPoint { history: *history, offset });
        let all = [promotion(b"abcdefgh", 0), promotion(b"abcdefgh", 1), promotion(b"bbcdefgh", 1)];
        assert!(all.iter().all(|milestone| milestone.is_promotion()));
        assert!(all[0].id != all[1].id && all[1].id != all[2].id);
        let published = Milestone { id: MilestoneId(7), ..all[0] };
        assert!(!published.is_promotion() && !Milestone { log: None, ..published }.is_promotion());
    }

    #[test]
    fn what_is_no_token_is_no_position() {
        let good = Token::from(position(3, Some(LogPoint { history: *b"abcdefgh", offset: 5 }))).to_string();
        for cut in 0..good.len() {
            assert_eq!(good[..cut].parse::<Position>(), Err(NotAPosition), "{}", &good[..cut]);
        }
        for text in [
            "",
            "!",
            "AQEjRWeJq83vA",
            "AwEjRWeJq83vAw",
            &format!("{good}AA"),
            &"A".repeat(500),
            "AQEjRWeJq83v__________8B",
        ] {
            assert_eq!(text.parse::<Position>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn a_client_names_a_position_or_the_oldest_publication() {
        let text = Token::from(position(3, None)).to_string();
        assert_eq!(text.parse(), Ok(Since::Position(position(3, None))));
        assert_eq!("-1".parse(), Ok(Since::Oldest));
        assert_eq!("-1".parse::<Position>(), Err(NotAPosition));
        for text in ["", "-", "-01", "-2", "0", "1", "-1 "] {
            assert_eq!(text.parse::<Since>(), Err(NotAPosition), "{text}");
        }
    }

    #[test]
    fn a_milestone_is_read_as_it_was_written_and_with_what_a_later_version_adds() {
        let log = Some(LogPoint { history: [0, 0xab, 0, 0, 0, 0, 0, 1], offset: 1_234 });
        for milestone in [Milestone { id: MilestoneId(7), log: None }, Milestone { id: MilestoneId(u64::MAX), log }] {
            assert_eq!(milestone.to_string().parse(), Ok(milestone));
            assert_eq!(Milestone { log, ..milestone }.to_string().parse(), Ok(Milestone { log, ..milestone }));
        }
        assert_eq!(
            "0000000000000007 00ab000000000001 1234 more to come".parse(),
            Ok(Milestone { id: MilestoneId(7), log })
        );
        for text in [
            "",
            "7",
            "000000000000000g",
            "0000000000000007 ",
            "0000000000000007 00ab000000000001",
            "0000000000000007 00ab000000000001 x",
        ] {
            assert_eq!(text.parse::<Milestone>(), Err(NotAMilestone), "{text}");
        }
    }
}
