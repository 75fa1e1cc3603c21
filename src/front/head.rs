//! A request's head: received whole, and split before hyper reads it.
//!
//! nginx passes on targets and field values that hyper refuses, such as `?channel="zhang"`. So the target's raw bytes
//! stay here, and hyper reads `/` instead. The endpoint's channel rule decodes the target (`endpoint.rs`), hyper
//! decodes everything else. May not enter: the meaning of the target and the fields.

use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;

use crate::os;

/// Longest request head. Chosen: larger than nginx's default for a request line, so that webws reads all that nginx
/// passes on.
pub(crate) const MAX_HEAD_BYTES: usize = 32 << 10;

/// Fields that decide about the handshake or the framing: hyper gets their values unchanged.
const OURS: [&str; 6] = ["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"];

/// The received bytes of a request, from which hyper reads. A request that arrives at once needs no registration of its
/// socket.
#[derive(Debug, Default)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    /// How many of `bytes` hyper has read.
    read: usize,
    is_handed_off: bool,
}

/// A request's target, in the client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    path: Vec<u8>,
    query: Vec<u8>,
}

impl Target {
    /// The part before the `?`; starts with `/`.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The part after the `?`, without a fragment.
    pub(crate) fn query(&self) -> &[u8] {
        &self.query
    }

    /// Decodes the origin form (`/path?query`) or the absolute form (`http://host/path?query`), RFC 9112 §3.2. `None`
    /// for the other forms, and for blanks and control bytes, which nginx refuses too.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
            return None;
        }
        let bytes = if bytes.starts_with(b"/") { bytes } else { behind_authority(bytes)? };
        // A fragment is not part of a request; nginx cuts it off as well.
        let (bytes, _) = split(bytes, b'#').unwrap_or((bytes, &[]));
        let (path, query) = split(bytes, b'?').unwrap_or((bytes, &[]));
        let path = if path.is_empty() { b"/" } else { path };
        Some(Self { path: path.to_vec(), query: query.to_vec() })
    }
}

impl Head {
    /// A head that nginx sent with its client's socket.
    pub(crate) fn handed_off(bytes: Vec<u8>) -> Self {
        Self { bytes, read: 0, is_handed_off: true }
    }

    /// Whether nginx sent the head with its client's socket.
    pub(crate) fn is_handed_off(&self) -> bool {
        self.is_handed_off
    }

    /// Receives the available bytes. True when the head can be decoded: it is complete or too large, or the client has
    /// sent FIN.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, scratch: &RefCell<Vec<u8>>) -> io::Result<bool> {
        let mut scratch = scratch.borrow_mut();
        loop {
            let received = match os::socket::receive(socket, &mut scratch) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                received => received?,
            };
            // The head's end can only be among the new bytes, or begin in the last three before them.
            let from = self.bytes.len().saturating_sub(3);
            self.bytes.extend_from_slice(scratch.get(..received).unwrap_or_default());
            let is_cut = received == 0 || self.bytes.len() >= MAX_HEAD_BYTES;
            if is_cut || end_of_head(&self.bytes, from).is_some() {
                return Ok(true);
            }
        }
    }

    /// Receives until the head can be decoded.
    ///
    /// # Errors
    /// As [`Head::receive`], or when the socket cannot be waited for.
    pub(crate) async fn arrives(&mut self, socket: BorrowedFd<'_>, scratch: &RefCell<Vec<u8>>) -> io::Result<()> {
        let readable = os::readiness::readable(socket)?;
        loop {
            let mut guard = readable.readable().await?;
            if self.receive(socket, scratch)? {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Takes the target out, and leaves a head that hyper accepts. `None`, with nothing changed, when the head is
    /// incomplete or starts with no request line: hyper refuses such a head.
    pub(crate) fn take_target(&mut self) -> Option<Target> {
        let end = end_of_head(&self.bytes, 0).filter(|end| *end <= MAX_HEAD_BYTES)?;
        let (head, behind) = self.bytes.split_at_checked(end)?;
        let (target, mut rest) = take_apart(head)?;
        rest.extend_from_slice(behind);
        self.bytes = rest;
        Some(target)
    }

    /// All received bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the next bytes for hyper, at most `len`.
    pub(crate) fn read(&mut self, len: usize) -> &[u8] {
        let unread = self.bytes.get(self.read..).unwrap_or_default();
        let step = unread.get(..len).unwrap_or(unread);
        self.read += step.len();
        step
    }

    /// The bytes after the request: `read`, which hyper has taken already, and the rest.
    pub(crate) fn read_ahead(&self, read: &[u8]) -> Vec<u8> {
        [read, self.bytes.get(self.read..).unwrap_or_default()].concat()
    }
}

/// The value of the first field called `name`. The head may be malformed or incomplete.
pub(crate) fn value<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let fields = head.split(|byte| *byte == b'\n').skip(1).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut fields = fields.take_while(|line| !line.is_empty()).filter_map(|line| split(line, b':'));
    let (_, value) = fields.find(|(field, _)| field.eq_ignore_ascii_case(name.as_bytes()))?;
    Some(value.trim_ascii())
}

/// The same, for a log line.
pub(crate) fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    let value = std::str::from_utf8(value(head, name)?).ok()?;
    value.bytes().all(|byte| byte.is_ascii_graphic()).then_some(value)
}

/// The index after the empty line that ends the head; the search starts at `from`. As hyper does, takes a bare LF for a
/// line's end, and skips empty lines before the request line (RFC 9112 §2.2).
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let from = from.max(start);
    let rest = bytes.get(from..)?;
    rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| match rest.get(at + 1..)? {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// The target of a complete head, and the head for hyper: with `/` as the target, and without fields that hyper would
/// refuse although webws does not read them.
fn take_apart(head: &[u8]) -> Option<(Target, Vec<u8>)> {
    let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let mut lines = head.get(start..)?.split_inclusive(|byte| *byte == b'\n');
    let line = lines.next()?;
    let (method, rest) = split(line, b' ')?;
    let version_at = rest.iter().rposition(|byte| *byte == b' ')?;
    let (target, version) = rest.split_at_checked(version_at)?;
    let target = Target::parse(target)?;
    let mut clean = Vec::with_capacity(head.len());
    for part in [method, b" /", version] {
        clean.extend_from_slice(part);
    }
    lines.for_each(|line| put_field(line, &mut clean));
    Some((target, clean))
}

/// Appends a field's line in a form that hyper accepts.
///
/// nginx ignores a field whose name has a character that no token has, and passes on values with control bytes. hyper
/// refuses the whole request in both cases. Lines that break the line structure (blanks in a name, a folded line, NUL,
/// CR) stay, so that hyper refuses them.
fn put_field(line: &[u8], out: &mut Vec<u8>) {
    let (name, value) = split(line, b':').unwrap_or((line, &[]));
    let is_visible = |byte: &u8| *byte > b' ' && *byte != 0x7f;
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    if !value.is_empty() && !name.is_empty() && name.iter().all(is_visible) && !name.iter().all(is_token) {
        return;
    }
    let is_control = |byte: u8| matches!(byte, 0x01..=0x08 | 0x0b | 0x0c | 0x0e..=0x1f | 0x7f);
    if !value.iter().any(|byte| is_control(*byte)) || is_ours(name) {
        return out.extend_from_slice(line);
    }
    out.extend_from_slice(name);
    out.push(b':');
    out.extend(value.iter().map(|byte| if is_control(*byte) { b'?' } else { *byte }));
}

fn is_ours(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    starts(b"sec-websocket-")
        || starts(b"x-webws-")
        || OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours.as_bytes()))
}

/// The part after `scheme://authority` of an absolute form.
fn behind_authority(bytes: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = split(bytes, b':')?;
    let rest = rest.strip_prefix(b"//")?;
    let is_http = [&b"http"[..], b"https", b"ws", b"wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
    if is_http && end > 0 { rest.get(end..) } else { None }
}

fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = bytes.iter().position(|byte| *byte == at)?;
    let (before, rest) = bytes.split_at_checked(index)?;
    Some((before, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(bytes: &[u8]) -> Head {
        Head::handed_off(bytes.to_vec())
    }

    fn target(of: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut head = head(format!("GET {of} HTTP/1.1\r\nHost: x\r\n\r\nbehind").as_bytes());
        let target = head.take_target()?;
        assert_eq!(head.bytes, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nbehind");
        Some((target.path, target.query))
    }

    #[test]
    fn the_target_is_kept_as_it_came() {
        let all_of_it = "!\"$%&'()*+,-./0:;<=>?@A[\\]^_`a{|}~\u{e4}\u{4e2d}";
        for (of, path, query) in [
            ("/webws", "/webws", ""),
            ("/webws?channel=\"zhang\"", "/webws", "channel=\"zhang\""),
            (&*format!("/webws?{all_of_it}"), "/webws", all_of_it),
            ("/a\"<>^`{|}b?", "/a\"<>^`{|}b", ""),
            ("/webws?a=1#b?c", "/webws", "a=1"),
            ("/webws#a?b", "/webws", ""),
            ("http://x/webws?a", "/webws", "a"),
            ("HTTPS://x:1?a", "/", "a"),
            ("//webws", "//webws", ""),
        ] {
            let expected = (path.as_bytes().to_vec(), query.as_bytes().to_vec());
            assert_eq!(target(of), Some(expected), "{of}");
        }
        for of in ["*", "x:1", "http:///webws", "ftp://x/webws", "webws", "", "/a b", "/a\tb", "/a\u{1}b", "/a\u{7f}"] {
            assert_eq!(target(of), None, "{of}");
        }
    }

    #[test]
    fn an_incomplete_head_is_not_changed() {
        for bytes in
            [&b""[..], b"\r\n\r\n", b"GET /\"\" HTTP/1.1\r\nHost: x\r\n", b"GET /\"\" HTTP/1.1", b"GET\r\n\r\n"]
        {
            let mut head = head(bytes);
            assert_eq!(head.take_target(), None, "{bytes:?}");
            assert_eq!(head.bytes, bytes);
        }
        let long = [&b"GET / HTTP/1.1\r\nA: "[..], &[b'x'; MAX_HEAD_BYTES], b"\r\n\r\n"].concat();
        assert_eq!(head(&long).take_target(), None);
    }

    #[test]
    fn a_head_ends_behind_its_first_empty_line() {
        for (bytes, end) in [
            (&b"G\r\n\r\nrest"[..], Some(5)),
            (b"G\n\nrest", Some(3)),
            (b"G\r\nA: b\n\r\n", Some(10)),
            (b"\r\n\r\nG\r\n\r\n", Some(9)),
            (b"\r\n\r\n", None),
            (b"G\r\n\r", None),
        ] {
            assert_eq!(end_of_head(bytes, 0), end, "{bytes:?}");
        }
    }

    #[test]
    fn a_field_is_found_in_a_head_that_is_not_well_formed() {
        let bytes =
            b"GET / HTTP/1.1\r\nno colon\r\nX-Real-IP: 203.0.113.9\nx-request-id:5eed \r\nBad: a b\r\n\r\nA: b\r\n";
        for (name, value) in [
            ("X-Real-IP", Some("203.0.113.9")),
            ("X-Request-ID", Some("5eed")),
            ("bad", None),
            ("a", None),
            ("GET / HTTP/1.1", None),
        ] {
            assert_eq!(field(bytes, name), value, "{name}");
        }
        assert_eq!(field(b"", "a"), None);
        assert_eq!(field(b"G\r\nX: \xff\r\nA: cut", "X"), None);
        assert_eq!(field(b"G\r\nX: \xff\r\nA: cut", "A"), Some("cut"));
    }

    #[test]
    fn a_malformed_field_that_webws_does_not_read_costs_no_handshake() {
        let put = |line: &[u8]| {
            let mut out = Vec::new();
            put_field(line, &mut out);
            out
        };
        for same in [
            &b"User-Agent: \xe4\t x\r\n"[..],
            b"Host: a\x01b\r\n",
            b"Sec-WebSocket-Protocol: a\x7fb\r\n",
            b" folded\r\n",
            b"A : b\r\n",
            b": b\r\n",
            b"no colon\r\n",
            b"A: \0\r\n",
            b"\r\n",
        ] {
            assert_eq!(put(same), same, "{same:?}");
        }
        assert_eq!(put(b"User-Agent: a\x01\x7fb\r\n"), b"User-Agent: a??b\r\n");
        assert_eq!(put(b"X(y): b\r\n"), b"");
        assert_eq!(put(b"Sch\xf6n: b\r\n"), b"");
    }

    proptest! {
        /// For any bytes: those after the head stay, and no byte of the target reaches hyper.
        #[test]
        fn what_is_behind_the_head_is_not_touched(before in "[ -~\r\n]{0,60}", behind in any::<Vec<u8>>()) {
            let bytes = [b"GET /\xff\"", before.as_bytes(), b" HTTP/1.1\r\n\r\n", &behind].concat();
            let end = end_of_head(&bytes, 0).unwrap();
            let mut head = head(&bytes);
            let taken = head.take_target();
            prop_assert!(head.bytes.ends_with(&bytes[end..]));
            prop_assert_eq!(taken.is_some(), head.bytes.starts_with(b"GET / "));
        }
    }
}
