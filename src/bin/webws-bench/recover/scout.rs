//! A client that stays in a channel until everything is published that others miss, and tells their position.
//!
//! One blocking WebSocket. May not enter: figures.

use std::time::Duration;

use crate::client::session::{Answer, META, answer, request};
use crate::frame;
use crate::link::Link;
use crate::payload::Header;
use crate::plan::Plan;

/// How long a server may take for its next bytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A WebSocket of the subprotocol [`META`].
#[derive(Debug)]
pub(super) struct Scout {
    link: Link,
    channel: u32,
}

impl Scout {
    /// Sends the request.
    ///
    /// # Errors
    /// As all of this type: a sentence.
    pub(super) fn ask(plan: &Plan, channel: u32) -> Result<Self, String> {
        let target = plan.targets.first().ok_or("--url is missing")?;
        let fault = |error| format!("connecting to {}: {error}", target.address);
        let mut link = Link::connect(&target.address).map_err(fault)?;
        link.out().extend_from_slice(&request(&target.path.fill(channel, channel), &target.host, Some(META)));
        link.flush().map_err(fault)?;
        Ok(Self { link, channel })
    }

    /// Waits for the 101.
    pub(super) fn open(&mut self) -> Result<(), String> {
        loop {
            match answer(self.link.unread()) {
                Answer::Incomplete => self.wait("the 101")?,
                Answer::Refused(reason) => {
                    return Err(format!("the first client of channel {}: {reason}", self.channel));
                }
                Answer::Accepted(end) => {
                    let head = self.link.unread().get(..end).unwrap_or_default();
                    if !head.windows(META.len()).any(|window| window == META.as_bytes()) {
                        return Err(format!("the server does not speak {META}: does this endpoint have a history?"));
                    }
                    self.link.consume(end);
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the publication `sequence` of the run `tag`, and returns the position behind it.
    pub(super) fn position(&mut self, tag: u16, sequence: u32) -> Result<String, String> {
        loop {
            let bytes = self.link.unread();
            let head = frame::head(bytes).map_err(|malformed| malformed.reason().to_owned())?;
            let whole = head.and_then(|head| Some((head, bytes.get(head.start..head.total())?.to_vec())));
            let Some((head, payload)) = whole else {
                self.wait("a publication")?;
                continue;
            };
            self.link.consume(head.total());
            match head.opcode {
                frame::PING => frame::put_masked(frame::PONG, &payload, self.link.out()),
                frame::CLOSE => return Err(format!("the first client of channel {} was closed", self.channel)),
                _ => match Header::find(&payload).filter(|header| header.run == tag) {
                    Some(header) if header.sequence == sequence => return id(&payload),
                    Some(header) => return Err(format!("publication {sequence} was due, {} came", header.sequence)),
                    None => {}
                },
            }
        }
    }

    fn wait(&mut self, what: &str) -> Result<(), String> {
        let fault =
            |error| format!("channel {}: no {what}: {error}; do the channels' names belong together?", self.channel);
        self.link.converse(PATIENCE).map_err(fault)
    }
}

/// The position in a message of [`META`].
fn id(message: &[u8]) -> Result<String, String> {
    let lines = message.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let found = lines.filter_map(|line| line.strip_prefix(b"id: ")).next();
    let text =
        found.and_then(|id| std::str::from_utf8(id).ok()).filter(|id| !id.bytes().any(|b| b.is_ascii_whitespace()));
    text.map(str::to_owned).ok_or_else(|| format!("a message has no position: {}", message.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::id;

    #[test]
    fn the_position_is_in_the_header_of_a_message() {
        assert_eq!(id(b"id: 1700000000:3\n\nid: other"), Ok("1700000000:3".to_owned()));
        assert_eq!(id(b"content-type: text/plain\nid: abc\n\nx"), Ok("abc".to_owned()));
        for message in [&b"\nid: abc\n"[..], b"hello", b"id: a b\n\nx"] {
            assert!(id(message).is_err());
        }
    }
}
