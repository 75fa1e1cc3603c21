//! The setting `token` of an endpoint: where its tokens are, and which are valid. May not enter: the check of a token
//! (`front/token.rs`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The JSON Web Tokens (RFC 7519) that say what a client may do, with `claims = "token"`.
///
/// ```
/// use webws::{ClaimsSource, EndpointConfig, TokenConfig};
///
/// let mut token = TokenConfig::default();
/// token.keys = vec!["/etc/app/token-keys".into()];
/// token.cookie = "session".to_owned();
/// let news = EndpointConfig::new("/news").with_claims(ClaimsSource::Token).with_token(token);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct TokenConfig {
    /// Files with keys, or `credential:NAME` for a credential of systemd: secrets for HS256, one a line; a public key
    /// in PEM, for RS256, ES256 or EdDSA; or a JWK Set (RFC 7517). A changed file is read again within a second or so.
    /// One at least.
    pub keys: Vec<PathBuf>,
    /// The issuers (`iss`) whose tokens are valid. Default: none, every issuer's.
    pub issuers: Vec<String>,
    /// What webws is called in tokens (`aud`): a token for somebody else is invalid. Default: none; then a token that
    /// names an audience is invalid.
    pub audiences: Vec<String>,
    /// The cookie that has the token. Default: empty, none.
    pub cookie: String,
    /// The query's argument that has the token. Default: empty, none: addresses are in the logs of proxies.
    pub query: String,
}
