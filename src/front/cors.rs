//! Which pages an endpoint serves (the setting `origins`), and what its answers tell a browser about that: CORS (Fetch,
//! §3.3).
//!
//! May not enter: what an origin is (`config/origin.rs`), sessions.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, VARY,
};
use hyper::{Method, Request, Response, StatusCode};

use crate::config::{ClaimsSource, EndpointConfig, NoOriginPolicy, OriginRule, WebOrigin};
use crate::protocol::cors;
use crate::protocol::websocket::handshake;

/// Fields that a page may send, besides those that any page may.
const ALLOWED: &str = "Authorization, Cache-Control, Last-Event-ID";

/// For how many seconds a browser remembers the answer to a preflight. Chosen: the default, 5 s, would double a page's
/// requests; a change of `origins` is seen after this time.
const MAX_AGE: &str = "600";

/// Why a page is not served; the text of the 403.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Foreign {
    #[error("pages of this origin may not connect here (origins)")]
    Origin,
    #[error("a request without an Origin is not served here (no_origin)")]
    NoOrigin,
    #[error("the request has more than one Origin")]
    Several,
}

/// The origin of the page that made the request, as the browser wrote it; `None` without a page, or where every page is
/// served.
///
/// # Errors
/// Why the page is not served.
pub(super) fn page(config: &EndpointConfig, headers: &HeaderMap) -> Result<Option<HeaderValue>, Foreign> {
    let has_claims = config.claims != ClaimsSource::None;
    let by_default = has_claims.then(OriginRule::same_host);
    let rules = if config.origins.is_empty() { by_default.as_slice() } else { config.origins.as_slice() };
    if rules.is_empty() {
        return Ok(None);
    }
    let mut fields = headers.get_all(ORIGIN).iter();
    let Some(field) = fields.next() else {
        return match config.no_origin {
            NoOriginPolicy::Refuse => Err(Foreign::NoOrigin),
            NoOriginPolicy::Auto if has_claims && handshake::is_asked_for(headers) => Err(Foreign::NoOrigin),
            NoOriginPolicy::Auto | NoOriginPolicy::Allow => Ok(None),
        };
    };
    if fields.next().is_some() {
        return Err(Foreign::Several);
    }
    let origin = WebOrigin::parse(field.as_bytes()).ok_or(Foreign::Origin)?;
    let own = own(headers, origin.scheme());
    if !rules.iter().any(|rule| rule.allows(&origin, own.as_ref())) {
        return Err(Foreign::Origin);
    }
    Ok(Some(field.clone()))
}

/// The origin of the request's URL: its host and port, and the scheme that the proxy names. Without a proxy, nothing
/// names the scheme, and the page's `scheme` counts. No page can set these fields.
fn own(headers: &HeaderMap, scheme: &str) -> Option<WebOrigin> {
    let only = |name: HeaderName| {
        let mut fields = headers.get_all(name).iter();
        let first = fields.next().map(|field| field.to_str().unwrap_or_default().trim().to_ascii_lowercase());
        (first, fields.next().is_some())
    };
    let (forwarded, has_more) = only(HeaderName::from_static("x-forwarded-proto"));
    let scheme = match forwarded.as_deref() {
        _ if has_more => return None,
        None => scheme,
        // Some proxies name the scheme of the WebSocket's URL.
        Some("http" | "ws") => "http",
        Some("https" | "wss") => "https",
        Some(_) => return None,
    };
    match only(HOST) {
        (Some(host), false) => WebOrigin::at(scheme, &host),
        _ => None,
    }
}

/// Whether a browser asks by this request what a page may send (a preflight).
pub(super) fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight.
pub(super) fn preflight(page: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.extend(fields(page));
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET"),
        (ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED),
        (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        (CACHE_CONTROL, "no-store"),
        (CONNECTION, "close"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// What lets a page read an answer.
pub(super) fn fields(page: HeaderValue) -> [(HeaderName, HeaderValue); 4] {
    [
        (ACCESS_CONTROL_ALLOW_ORIGIN, page),
        (ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
        (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(cors::EXPOSED)),
        (VARY, HeaderValue::from_static("Origin")),
    ]
}

/// The same as the lines of a head, for answers that hyper does not write; nothing without a page.
pub(super) fn lines(page: Option<&HeaderValue>) -> String {
    cors::lines(page.and_then(|page| page.to_str().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn endpoint(no_origin: NoOriginPolicy) -> EndpointConfig {
        let rules = ["https://a.example", "same-host"].map(|rule| rule.parse().unwrap());
        EndpointConfig::default().with_origins(rules).with_no_origin(no_origin)
    }

    #[test]
    fn a_request_has_one_origin_or_none() {
        let allow = endpoint(NoOriginPolicy::Allow);
        let (a, evil) = (("origin", "https://a.example"), ("origin", "https://evil.example"));
        assert_eq!(page(&allow, &headers(&[a])), Ok(Some(HeaderValue::from_static(a.1))));
        assert_eq!(page(&allow, &headers(&[evil])), Err(Foreign::Origin));
        assert_eq!(page(&allow, &headers(&[("origin", "null")])), Err(Foreign::Origin));
        for several in [[a, evil], [evil, a], [a, a]] {
            assert_eq!(page(&allow, &headers(&several)), Err(Foreign::Several));
        }
        assert_eq!(page(&allow, &headers(&[])), Ok(None));
        let refuse = endpoint(NoOriginPolicy::Refuse);
        assert_eq!(page(&refuse, &headers(&[])), Err(Foreign::NoOrigin));
        assert_eq!(page(&refuse, &headers(&[a])), Ok(Some(HeaderValue::from_static(a.1))));
        for any in [&[][..], &[evil], &[a, evil]] {
            assert_eq!(page(&EndpointConfig::default(), &headers(any)), Ok(None), "every page is served");
        }
    }

    #[test]
    fn with_claims_a_page_of_another_site_or_a_websocket_of_none_is_refused_unless_settings_allow_it() {
        let claims = EndpointConfig::default().with_claims(ClaimsSource::Headers);
        let (host, own) = (("host", "own.example"), ("origin", "https://own.example"));
        let (evil, upgrade) = (("origin", "https://evil.example"), ("upgrade", "websocket"));
        assert!(page(&claims, &headers(&[host, own, upgrade])).is_ok());
        assert_eq!(page(&claims, &headers(&[host, evil, upgrade])), Err(Foreign::Origin));
        assert_eq!(page(&claims, &headers(&[host, evil])), Err(Foreign::Origin));
        assert_eq!(page(&claims, &headers(&[host, upgrade])), Err(Foreign::NoOrigin));
        assert_eq!(page(&claims, &headers(&[host])), Ok(None), "a stream of the page's own origin");
        let allow = claims.clone().with_no_origin(NoOriginPolicy::Allow);
        assert_eq!(page(&allow, &headers(&[host, upgrade])), Ok(None));
        assert_eq!(page(&allow, &headers(&[host, evil])), Err(Foreign::Origin));
        let refuse = claims.clone().with_no_origin(NoOriginPolicy::Refuse);
        assert_eq!(page(&refuse, &headers(&[host])), Err(Foreign::NoOrigin));
        let listed = claims.with_origins(["https://evil.example".parse().unwrap()]);
        assert!(page(&listed, &headers(&[host, evil, upgrade])).is_ok());
        assert_eq!(page(&listed, &headers(&[host, own, upgrade])), Err(Foreign::Origin));
    }

    #[test]
    fn the_same_host_is_that_of_the_request_with_the_scheme_that_the_proxy_names() {
        let (http, https) = (("origin", "http://own.example"), ("origin", "https://own.example"));
        let (host, proto) = (("host", "own.example"), "x-forwarded-proto");
        for (fields, expected) in [
            (&[host, http][..], true),
            (&[host, https], true),
            (&[host, https, (proto, "https")], true),
            (&[host, https, (proto, "WSS")], true),
            (&[host, http, (proto, "https")], false),
            (&[host, https, (proto, "http")], false),
            (&[host, https, (proto, "https, http")], false),
            (&[host, https, (proto, "https"), (proto, "https")], false),
            (&[host, host, https], false),
            (&[https], false),
        ] {
            let served = page(&endpoint(NoOriginPolicy::Allow), &headers(fields));
            assert_eq!(served.is_ok(), expected, "{fields:?}: {served:?}");
        }
    }
}
