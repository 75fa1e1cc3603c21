//! Redis' protocol by hand: the part of RESP2 that publishing and subscribing need.
//!
//! May not enter: sockets.

/// A reply of Redis.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<'a> {
    Integer(i64),
    Status(&'a [u8]),
    Error(&'a [u8]),
    /// A publication on a subscribed channel.
    Message {
        channel: &'a [u8],
        payload: &'a [u8],
    },
    /// A SUBSCRIBE was done.
    Subscribed {
        channel: &'a [u8],
    },
    /// An UNSUBSCRIBE was done.
    Unsubscribed {
        channel: &'a [u8],
    },
}

/// A reply that is not RESP2, or that answers no command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

/// Reads the reply at the start of `bytes`; returns the reply and its length, or `None` while it is incomplete.
pub(crate) fn reply(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Unexpected> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((line, mut at)) = line(rest, 1) else { return Ok(None) };
    match kind {
        b':' => Ok(Some((Reply::Integer(number(line)?), at))),
        b'+' => Ok(Some((Reply::Status(line), at))),
        b'-' => Ok(Some((Reply::Error(line), at))),
        b'*' if line == b"3" => {
            let (Some(what), Some(channel), Some(last)) =
                (bulk(bytes, &mut at)?, bulk(bytes, &mut at)?, bulk(bytes, &mut at)?)
            else {
                return Ok(None);
            };
            let reply = match what {
                b"message" => Reply::Message { channel, payload: last },
                b"subscribe" => Reply::Subscribed { channel },
                b"unsubscribe" => Reply::Unsubscribed { channel },
                _ => return Err(Unexpected),
            };
            Ok(Some((reply, at)))
        }
        _ => Err(Unexpected),
    }
}

/// Appends a command.
pub(crate) fn put_command(arguments: &[&[u8]], out: &mut Vec<u8>) {
    put_length(b'*', arguments.len(), out);
    for argument in arguments {
        put_length(b'$', argument.len(), out);
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

fn put_length(kind: u8, len: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(len.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The bulk string or integer at `at`, which moves behind it; `None` while it is incomplete.
fn bulk<'a>(bytes: &'a [u8], at: &mut usize) -> Result<Option<&'a [u8]>, Unexpected> {
    let Some((kind, rest)) = bytes.get(*at..).and_then(<[u8]>::split_first) else { return Ok(None) };
    let Some((line, start)) = line(rest, *at + 1) else { return Ok(None) };
    match kind {
        b':' => {
            *at = start;
            Ok(Some(line))
        }
        b'$' => {
            let len = usize::try_from(number(line)?).map_err(|_| Unexpected)?;
            let end = start.checked_add(len).ok_or(Unexpected)?;
            match bytes.get(end..).and_then(|rest| rest.first_chunk::<2>()) {
                Some(b"\r\n") => {
                    *at = end + 2;
                    Ok(bytes.get(start..end))
                }
                Some(_) => Err(Unexpected),
                None => Ok(None),
            }
        }
        _ => Err(Unexpected),
    }
}

/// The line at the start of `rest`, and where what follows it lies, counted from `offset`.
fn line(rest: &[u8], offset: usize) -> Option<(&[u8], usize)> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((rest.get(..end)?, offset + end + 2))
}

fn number(line: &[u8]) -> Result<i64, Unexpected> {
    std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()).ok_or(Unexpected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written_with_byte_lengths() {
        let mut out = Vec::new();
        put_command(&[b"PUBLISH", "chät".as_bytes(), b"a\r\nb"], &mut out);
        assert_eq!(out, "*3\r\n$7\r\nPUBLISH\r\n$5\r\nchät\r\n$4\r\na\r\nb\r\n".as_bytes());
    }

    #[test]
    fn every_reply_is_read_whole_or_not_at_all() {
        let cases: [(&[u8], Reply<'_>); 6] = [
            (b":1000\r\n", Reply::Integer(1000)),
            (b"+OK\r\n", Reply::Status(b"OK")),
            (b"-NOAUTH Authentication required.\r\n", Reply::Error(b"NOAUTH Authentication required.")),
            (
                b"*3\r\n$7\r\nmessage\r\n$6\r\nchat:a\r\n$4\r\n\r\n\r\n\r\n",
                Reply::Message { channel: b"chat:a", payload: b"\r\n\r\n" },
            ),
            (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", Reply::Subscribed { channel: b"c" }),
            (b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n", Reply::Unsubscribed { channel: b"c" }),
        ];
        for (bytes, expected) in cases {
            for cut in 0..bytes.len() {
                assert_eq!(reply(&bytes[..cut]), Ok(None), "{}", bytes[..cut].escape_ascii());
            }
            let followed = [bytes, b":2\r\n"].concat();
            assert_eq!(reply(&followed), Ok(Some((expected, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_resp_is_refused() {
        assert_eq!(reply(b"HTTP/1.1 400 Bad Request\r\n"), Err(Unexpected));
        assert_eq!(reply(b"*3\r\n$7\r\npmessag\r\n$0\r\n\r\n$0\r\n\r\n"), Err(Unexpected));
        assert_eq!(reply(b"*3\r\n$-1\r\n"), Err(Unexpected));
        assert_eq!(reply(b"*3\r\n$1\r\nabc"), Err(Unexpected));
    }
}
