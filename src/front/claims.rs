//! What nginx says of a client (`claims = "headers"`): the user, the channels that are allowed, the end.
//!
//! The grammar is in the README. A field that breaks the grammar, or occurs twice, refuses the request: a fault of the
//! site must not admit a client. May not enter: which processes are believed (`trust.rs`), how a request names its
//! channel.

use std::time::{Duration, SystemTime};

use hyper::header::HeaderMap;

use super::denied::Denied;
use crate::clock::{Millis, millis};
use crate::config::{ClaimsSource, EndpointConfig};
use crate::protocol::session::{Claims, Rights};

const USER: &str = "x-webws-user";
const CHANNELS: &str = "x-webws-channels";
const EXPIRES: &str = "x-webws-expires";

/// Longest user id. Chosen: each session keeps its own.
const MAX_USER_BYTES: usize = 256;

/// What a client may do on `channel`, its name without the endpoint's prefix. `None`: all that the endpoint allows.
/// `is_trusted` is asked if there are fields to believe.
///
/// # Errors
/// Why the client is refused.
pub(super) fn permit(
    config: &EndpointConfig,
    channel: &[u8],
    headers: &HeaderMap,
    is_trusted: impl FnOnce() -> bool,
) -> Result<Option<(Claims, Rights)>, Denied> {
    if config.claims == ClaimsSource::None {
        return Ok(None);
    }
    let is_present = [USER, CHANNELS, EXPIRES].iter().any(|name| headers.contains_key(*name));
    if !is_present || !is_trusted() {
        let denied = if is_present { Denied::Untrusted } else { Denied::Missing };
        return if config.claims_required { Err(denied) } else { Ok(None) };
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    read(config, channel, headers, now).map(Some)
}

/// What the claims' list of channels allows on that channel, at an endpoint that allows it too.
///
/// # Errors
/// Why the client is refused.
pub(super) fn agreed(
    config: &EndpointConfig,
    claims: Claims,
    list: &str,
    channel: &[u8],
) -> Result<(Claims, Rights), Denied> {
    let is_id = |byte: u8| byte.is_ascii_graphic() && byte != b',';
    let user = &claims.user;
    if user.is_empty() || user.len() > MAX_USER_BYTES || !user.bytes().all(is_id) {
        return Err(Denied::Malformed("user is not 1 to 256 visible ASCII characters without a comma"));
    }
    let (own, allowed) = (Rights::of(config), rights(list, channel)?);
    let may_anything = own.may_receive && allowed.may_receive || own.may_publish && allowed.may_publish;
    if may_anything { Ok((claims, allowed)) } else { Err(Denied::Channel) }
}

fn read(
    config: &EndpointConfig,
    channel: &[u8],
    headers: &HeaderMap,
    now: Duration,
) -> Result<(Claims, Rights), Denied> {
    let user =
        single(headers, USER)?.ok_or(Denied::Malformed("X-Webws-User is missing, and other claims are there"))?;
    let time_left = single(headers, EXPIRES)?.map(|expires| time_left(expires, now)).transpose();
    let list = single(headers, CHANNELS)?.unwrap_or_default();
    // A malformed list is told before claims that have ended.
    let agreed = agreed(config, Claims { user: user.into(), time_left: None }, list, channel);
    match (agreed, time_left) {
        (Err(denied @ Denied::Malformed(_)), _) | (_, Err(denied)) => Err(denied),
        (agreed, Ok(time_left)) => agreed.map(|(claims, allowed)| (Claims { time_left, ..claims }, allowed)),
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Denied> {
    let mut fields = headers.get_all(name).iter();
    let first = fields.next();
    if fields.next().is_some() {
        return Err(Denied::Malformed("X-Webws- header occurs twice"));
    }
    let text = first.map(|field| field.to_str()).transpose();
    text.map_err(|_| Denied::Malformed("X-Webws- header is not ASCII: write %HH in a channel's name"))
}

/// The time until `expires`, in seconds since 1970.
fn time_left(expires: &str, now: Duration) -> Result<Millis, Denied> {
    let is_number = (1..=18).contains(&expires.len()) && expires.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = expires.parse().ok().filter(|_| is_number);
    let seconds = seconds.ok_or(Denied::Malformed("X-Webws-Expires is no number of seconds since 1970"))?;
    let left = Duration::from_secs(seconds).checked_sub(now).filter(|left| !left.is_zero());
    left.map(millis).ok_or(Denied::Expired)
}

/// What the list allows on that channel: the sum of all entries that match. Every entry is checked.
fn rights(list: &str, channel: &[u8]) -> Result<Rights, Denied> {
    let mut rights = Rights { may_receive: false, may_publish: false };
    for entry in list.split(' ').filter(|entry| !entry.is_empty()) {
        let (marks, pattern) = entry.split_once(':').unwrap_or_default();
        let (may_receive, may_publish) = match marks {
            "r" => (true, false),
            "w" => (false, true),
            "rw" => (true, true),
            _ => return Err(Denied::Malformed("list of channels has an entry without r:, w: or rw:")),
        };
        let matches = matches(pattern, channel).ok_or(Denied::Malformed(
            "list of channels has an entry with an empty name, a '*' before the end, a comma or a '%' that is no %HH",
        ))?;
        rights.may_receive |= matches && may_receive;
        rights.may_publish |= matches && may_publish;
    }
    Ok(rights)
}

/// Whether a pattern matches the whole name; `None` when it is malformed.
fn matches(pattern: &str, name: &[u8]) -> Option<bool> {
    let (exact, is_prefix) = pattern.strip_suffix('*').map_or((pattern, false), |start| (start, true));
    let mut decoded = Vec::with_capacity(exact.len());
    let mut bytes = exact.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'*' | b',' => return None,
            byte if byte.is_ascii_graphic() => byte,
            _ => return None,
        });
    }
    if pattern.is_empty() {
        return None;
    }
    Some(if is_prefix { name.starts_with(&decoded) } else { name == decoded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, hyper::header::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn on(list: &str, channel: &str) -> Result<(bool, bool), Denied> {
        rights(list, channel.as_bytes()).map(|rights| (rights.may_receive, rights.may_publish))
    }

    #[test]
    fn a_list_allows_what_it_names_and_nothing_else() {
        for (list, channel, expected) in [
            ("", "alice", (false, false)),
            ("r:alice", "alice", (true, false)),
            ("w:alice", "alice", (false, true)),
            ("rw:alice", "alice", (true, true)),
            ("r:alice w:alice", "alice", (true, true)),
            ("  r:bob   rw:alice ", "alice", (true, true)),
            ("r:alice", "Alice", (false, false)),
            ("r:alice", "alice2", (false, false)),
            ("r:alice", "alic", (false, false)),
            ("r:alice", "", (false, false)),
            ("r:alice", "alice*", (false, false)),
            ("r:alice*", "alice", (true, false)),
            ("r:alice*", "alice/room", (true, false)),
            ("r:alice/*", "alice", (false, false)),
            ("r:*", "anything", (true, false)),
            ("r:a%2A", "a*", (true, false)),
            ("r:a%2A", "ab", (false, false)),
            ("r:a%20b%2cc%25", "a b,c%", (true, false)),
            ("r:m%C3%BCller", "m\u{fc}ller", (true, false)),
            ("r:a:b", "a:b", (true, false)),
            ("r:r:a", "a", (false, false)),
            ("r:?lice r:[a]lice r:.*", "alice", (false, false)),
        ] {
            assert_eq!(on(list, channel), Ok(expected), "{list} {channel}");
        }
    }

    #[test]
    fn a_list_that_is_malformed_anywhere_refuses_everything() {
        for list in [
            "alice",
            "r:",
            "x:alice",
            "R:alice",
            "wr:alice",
            "rr:alice",
            ":alice",
            "r :alice",
            "r:a*b",
            "r:**",
            "r:*a",
            "r:alice,r:bob",
            "r:%",
            "r:%4",
            "r:%zz",
            "r:%+1",
            "r:a\tb",
            "\tr:alice",
        ] {
            for list in [list.to_owned(), format!("rw:alice {list}"), format!("{list} rw:alice")] {
                assert!(matches!(on(&list, "alice"), Err(Denied::Malformed(_))), "{list}");
            }
        }
    }

    #[test]
    fn the_fields_are_believed_whole_or_the_request_is_refused() {
        let config = EndpointConfig::new("/a").with_claims(ClaimsSource::Headers);
        let optional = config.clone().with_claims_required(false);
        let ask = |config: &EndpointConfig, fields: &[(&'static str, &str)], trusted: bool| {
            permit(config, b"alice", &headers(fields), || trusted).map(|permit| permit.is_some())
        };
        let full: &[(&str, &str)] = &[(USER, "u1"), (CHANNELS, "r:alice"), (EXPIRES, "99999999999")];
        assert_eq!(ask(&config, full, true), Ok(true));
        assert_eq!(ask(&config, full, false), Err(Denied::Untrusted));
        assert_eq!(ask(&config, &[], true), Err(Denied::Missing));
        assert_eq!(ask(&optional, full, false), Ok(false));
        assert_eq!(ask(&optional, &[], true), Ok(false));
        assert_eq!(ask(&optional, &[(USER, "u1")], true), Err(Denied::Channel));
        assert_eq!(ask(&config, &[(USER, "u1"), (CHANNELS, "r:bob")], true), Err(Denied::Channel));
        assert_eq!(
            ask(&config.clone().subscribe_only(), &[(USER, "u"), (CHANNELS, "w:*")], true),
            Err(Denied::Channel)
        );
        assert_eq!(ask(&config.clone().publish_only(), &[(USER, "u"), (CHANNELS, "r:*")], true), Err(Denied::Channel));
        assert_eq!(ask(&config, &[(USER, "u1"), (CHANNELS, "r:*"), (EXPIRES, "1")], true), Err(Denied::Expired));
        let long = "x".repeat(257);
        for malformed in [
            &[(CHANNELS, "r:alice")][..],
            &[(EXPIRES, "99999999999")],
            &[(USER, ""), (CHANNELS, "r:alice")],
            &[(USER, "a b"), (CHANNELS, "r:alice")],
            &[(USER, "a,b"), (CHANNELS, "r:alice")],
            &[(USER, "\u{fc}"), (CHANNELS, "r:alice")],
            &[(USER, &long), (CHANNELS, "r:alice")],
            &[(USER, "u"), (USER, "u"), (CHANNELS, "r:alice")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (CHANNELS, "r:alice")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "99999999999"), (EXPIRES, "99999999999")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "+99999999999")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "-1")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "1e12")],
            &[(USER, "u"), (CHANNELS, "r:alice"), (EXPIRES, "9999999999999999999")],
        ] {
            for config in [&config, &optional] {
                assert!(matches!(ask(config, malformed, true), Err(Denied::Malformed(_))), "{malformed:?}");
            }
        }
        assert_eq!(ask(&EndpointConfig::new("/a"), &[(USER, "a b")], false), Ok(false));
    }

    proptest! {
        #[test]
        fn an_exact_entry_matches_the_name_that_it_encodes_only(name: Vec<u8>, other: Vec<u8>) {
            let entry: String = name.iter().map(|byte| format!("%{byte:02X}")).collect();
            let expected = if name.is_empty() { None } else { Some(name == other) };
            prop_assert_eq!(matches(&entry, &other), expected);
            prop_assert_eq!(matches(&format!("{entry}*"), &other), Some(other.starts_with(&name)));
        }
    }
}
