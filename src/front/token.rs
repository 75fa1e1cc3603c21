//! What a JSON Web Token says of a client (`claims = "token"`).
//!
//! A token is in a subprotocol that the client offers, in a cookie, or in the query, if the settings name one. It never
//! gets into a log, nor does a part of it. May not enter: keys (`token_keys.rs`), what a list of channels means
//! (`claims.rs`).

use std::time::{Duration, SystemTime};

use hyper::header::{COOKIE, HeaderMap, HeaderName, SEC_WEBSOCKET_PROTOCOL};
use jsonwebtoken::{Algorithm, Validation, decode_header};
use serde::Deserialize;

use super::claims::agreed;
use super::denied::Denied;
use super::key_file::{KeyFault, KeyFile};
use super::token_keys::{NotValid, TokenKeys};
use crate::clock::millis;
use crate::config::{EndpointConfig, TokenConfig};
use crate::protocol::session::{Claims, Rights};

/// What begins the subprotocol that is a token: browsers can send no header of their own with a WebSocket.
pub(super) const SUBPROTOCOL: &str = "token.";

/// How far the clock of the machine that makes tokens may be from ours. Chosen: NTP keeps far less.
const LEEWAY: Duration = Duration::from_secs(5);

/// The tokens of an endpoint.
#[derive(Debug)]
pub(super) struct Tokens {
    config: TokenConfig,
    files: Vec<KeyFile<TokenKeys>>,
    validation: Validation,
}

/// The claims that webws reads. `iss`, `aud` and `nbf` are the validation's.
#[derive(Deserialize)]
struct TokenClaims {
    sub: String,
    exp: f64,
    #[serde(default)]
    channels: Channels,
}

/// A list in the grammar of `X-Webws-Channels`, as one text or an entry each.
#[derive(Deserialize)]
#[serde(untagged)]
enum Channels {
    Text(String),
    Entries(Vec<String>),
}

impl Default for Channels {
    fn default() -> Self {
        Self::Entries(Vec::new())
    }
}

impl Tokens {
    pub(super) fn new(config: &TokenConfig) -> Self {
        let TokenConfig { keys, issuers, audiences, .. } = config;
        // The algorithm is each key's.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if !issuers.is_empty() {
            validation.set_issuer(issuers);
            required.push("iss");
        }
        if !audiences.is_empty() {
            validation.set_audience(audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        let files = keys.iter().map(|path| KeyFile::new(path.clone(), TokenKeys::parse)).collect();
        Self { config: config.clone(), files, validation }
    }

    /// What is wrong with the files now.
    pub(super) fn faults(&self) -> impl Iterator<Item = KeyFault> {
        self.files.iter().filter_map(KeyFile::fault)
    }

    /// What the request's token allows on `channel`, the name without the endpoint's prefix. `None` without a token.
    ///
    /// # Errors
    /// Why the client is refused.
    pub(super) fn permit(
        &self,
        endpoint: &EndpointConfig,
        channel: &[u8],
        headers: &HeaderMap,
        query: &[u8],
    ) -> Result<Option<(Claims, Rights)>, Denied> {
        let Some(token) = shown(&self.config, headers, query)? else { return Ok(None) };
        let TokenClaims { sub, exp, channels } = self.verify(token)?;
        let list = match channels {
            Channels::Text(text) => text,
            Channels::Entries(entries) => entries.join(" "),
        };
        let end = Duration::try_from_secs_f64(exp).map_err(|_| Denied::Token)?.saturating_add(LEEWAY);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let left = end.checked_sub(now).filter(|left| !left.is_zero()).ok_or(Denied::Expired)?;
        agreed(endpoint, Claims { user: sub.into(), time_left: Some(millis(left)) }, &list, channel).map(Some)
    }

    fn verify(&self, token: &str) -> Result<TokenClaims, Denied> {
        let header = decode_header(token).map_err(|_| Denied::Token)?;
        let mut why = NotValid::Invalid;
        for file in &self.files {
            match file.read(|keys| keys.verify(token, &header, &self.validation)) {
                Some(Ok(claims)) => return Ok(claims),
                Some(Err(NotValid::Invalid)) | None => {}
                Some(Err(other)) => why = other,
            }
        }
        Err(match why {
            NotValid::Invalid => Denied::Token,
            NotValid::Expired => Denied::Expired,
            NotValid::Early => Denied::Early,
        })
    }
}

/// The token of a request: from a subprotocol, else from the query, else from a cookie, which a browser sends whatever
/// the page does.
///
/// # Errors
/// One of these has two.
fn shown<'a>(config: &TokenConfig, headers: &'a HeaderMap, query: &'a [u8]) -> Result<Option<&'a str>, Denied> {
    let values = |name: HeaderName, separator: u8| {
        let values =
            headers.get_all(name).iter().flat_map(move |value| value.as_bytes().split(move |byte| *byte == separator));
        values.map(<[u8]>::trim_ascii)
    };
    let offered = values(SEC_WEBSOCKET_PROTOCOL, b',').filter_map(|value| value.strip_prefix(SUBPROTOCOL.as_bytes()));
    if let Some(token) = only(offered)? {
        return Ok(Some(token));
    }
    let of = |pair: &'a [u8], name: &str| match name {
        "" => None,
        name => pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="),
    };
    if let Some(token) = only(query.split(|byte| *byte == b'&').filter_map(|pair| of(pair, &config.query)))? {
        return Ok(Some(token));
    }
    only(values(COOKIE, b';').filter_map(|pair| of(pair, &config.cookie)).filter(|token| !token.is_empty()))
}

fn only<'a>(mut found: impl Iterator<Item = &'a [u8]>) -> Result<Option<&'a str>, Denied> {
    let first = found.next();
    if found.next().is_some() {
        return Err(Denied::Token);
    }
    first.map(|token| std::str::from_utf8(token).map_err(|_| Denied::Token)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_token_is_found_in_its_places_and_twice_in_one_is_refused() {
        let config = |cookie: &str, query: &str| TokenConfig {
            cookie: cookie.to_owned(),
            query: query.to_owned(),
            ..TokenConfig::default()
        };
        let found = |config: &TokenConfig, fields: &[(&'static str, &'static str)], query: &'static str| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            shown(config, &headers, query.as_bytes()).map(|token| token.map(str::to_owned))
        };
        let (offer, cookie) = ("sec-websocket-protocol", "cookie");
        let all = config("c", "q");
        for (fields, query, expected) in [
            (&[(offer, "token.a")][..], "", Ok(Some("a"))),
            (&[(offer, "x, token.a ,y")], "", Ok(Some("a"))),
            (&[(offer, "x"), (offer, "token.a")], "", Ok(Some("a"))),
            (&[(offer, "token.a"), (cookie, "c=b")], "q=d", Ok(Some("a"))),
            (&[(cookie, "c=b")], "q=d", Ok(Some("d"))),
            (&[(cookie, "a=1; c=b; d")], "", Ok(Some("b"))),
            (&[(cookie, "c="), (offer, "x")], "", Ok(None)),
            (&[(cookie, "cc=b; C=b; xc=b")], "Q=d&qq=d&%71=d", Ok(None)),
            (&[(offer, "token.a, token.a")], "", Err(Denied::Token)),
            (&[(offer, "token.a"), (offer, "token.b")], "", Err(Denied::Token)),
            (&[(cookie, "c=b; c=b")], "", Err(Denied::Token)),
            (&[(cookie, "c=b"), (cookie, "c=b")], "", Err(Denied::Token)),
            (&[], "q=d&q=d", Err(Denied::Token)),
        ] {
            assert_eq!(
                found(&all, fields, query),
                expected.map(|token| token.map(str::to_owned)),
                "{fields:?} {query}"
            );
        }
        // An empty setting is no place.
        assert_eq!(found(&config("", ""), &[(cookie, "=a; c=b")], "=a&q=d"), Ok(None));
    }
}
