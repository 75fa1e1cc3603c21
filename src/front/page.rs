//! The test page of `webws dev`: its files, publishing from a shell, and which requests are served.
//!
//! Any web page in a developer's browser may connect to a port of this machine. So a server with a test page serves
//! only requests for its own names (a foreign name that resolves to this machine is DNS rebinding). It accepts
//! WebSockets only from pages of this machine, because with `--broker` they reach Redis.
//! May not enter: handshakes, sessions.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN,
};
use hyper::{Method, Response, StatusCode};

use crate::config::{BrokerConfig, ChannelRule, Config, EndpointConfig, HistoryConfig, Listen, RedisAddress, WireName};
use crate::worker::Publisher;

/// The test page, on a server that has one.
pub(crate) type Pages = Option<Arc<TestPage>>;

/// The path to which `curl` posts.
const PUBLISH: &str = "/dev/publish";

const INDEX: &str = include_str!("page/index.html");

/// The files beside it: path, type and content.
const FILES: [(&str, &str, &str); 5] = [
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/transport.js", "text/javascript; charset=utf-8", include_str!("page/transport.js")),
    ("/target.js", "text/javascript; charset=utf-8", include_str!("page/target.js")),
    ("/log.js", "text/javascript; charset=utf-8", include_str!("page/log.js")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// The marks around the example endpoints in the page's file, which the configured endpoints replace.
const SHIPPED_ENDPOINTS: (&str, &str) = ("<!-- endpoints -->", "<!-- /endpoints -->");

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether an address matches a listener on all addresses (`0.0.0.0`, `[::]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wildcard {
    /// Yes: a request that arrived here was sent to an address of this machine.
    IsAny,
    /// No: a page at some address may be on another machine.
    IsNone,
}

/// The test page of one server.
#[derive(Debug)]
pub(crate) struct TestPage {
    index: String,
    /// The addresses that we listen on.
    addresses: Vec<IpAddr>,
    publisher: Publisher,
}

impl TestPage {
    pub(crate) fn new(config: &Config, publisher: Publisher) -> Self {
        let address = |listen: &Listen| match listen {
            Listen::Tcp(address) => Some(address.ip()),
            Listen::Unix(_) | Listen::Handoff(_) => None,
        };
        let addresses = config.listen.iter().filter_map(address).collect();
        Self { index: index(config), addresses, publisher }
    }

    /// Why a request is not served: it is for another host's name, or from a page of another site.
    pub(crate) fn refusal(&self, headers: &HeaderMap) -> Option<String> {
        let mut hosts = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let host = hosts.next().unwrap_or_default();
        if hosts.next().is_some() || !self.is_ours(host, Wildcard::IsAny) {
            let host = beginning(host);
            return Some(format!(
                "webws dev answers requests for localhost, 127.0.0.1, [::1] and the addresses it listens on, not for '{host}'"
            ));
        }
        let origin = headers.get(ORIGIN)?.to_str().unwrap_or_default();
        let site = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).unwrap_or_default();
        if site.eq_ignore_ascii_case(host) || self.is_ours(site, Wildcard::IsNone) {
            return None;
        }
        let origin = beginning(origin);
        Some(format!("webws dev answers its own page and pages of localhost, not pages of '{origin}'"))
    }

    /// Whether `HOST:PORT` names this machine in a form that no other machine can have: `localhost` or an address.
    fn is_ours(&self, authority: &str, wildcard: Wildcard) -> bool {
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, ""),
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return false;
        }
        if host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        // An IP address is no name that DNS could resolve to this machine.
        let is_own = |own: &IpAddr, ip| if own.is_unspecified() { wildcard == Wildcard::IsAny } else { *own == ip };
        let is_listened = |ip: IpAddr| self.addresses.iter().any(|own| is_own(own, ip));
        bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback() || is_listened(ip))
    }

    /// The answer to a request for the page or for publishing; `None` for other paths.
    pub(crate) async fn answer(&self, method: &Method, path: &[u8], query: &[u8]) -> Option<Response<Full<Bytes>>> {
        if path == PUBLISH.as_bytes() {
            return Some(self.publish(method, query).await);
        }
        if method != Method::GET {
            return None;
        }
        let (content_type, content) = if path == b"/" {
            ("text/html; charset=utf-8", Bytes::from(self.index.clone()))
        } else {
            let (_, content_type, content) = FILES.iter().find(|(at, ..)| at.as_bytes() == path)?;
            (*content_type, Bytes::from_static(content.as_bytes()))
        };
        let mut response = response(StatusCode::OK, content_type, content);
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        Some(response)
    }

    /// Publishes at a POST, because any page can make the browser GET an image without an Origin header. The query has
    /// the channel and the message, because no body is read.
    async fn publish(&self, method: &Method, query: &[u8]) -> Response<Full<Bytes>> {
        let line = |status, line: &str| response(status, "text/plain; charset=utf-8", format!("{line}\n").into());
        if method != Method::POST {
            let mut refused = line(StatusCode::METHOD_NOT_ALLOWED, "publish with POST");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return refused;
        }
        let (mut channel, mut message) = (None, None);
        for (name, value) in url::form_urlencoded::parse(query) {
            match &*name {
                "channel" => channel = Some(value.into_owned()),
                "message" => message = Some(value.into_owned()),
                _ => {}
            }
        }
        let (Some(channel), Some(message)) = (channel, message) else {
            return line(StatusCode::BAD_REQUEST, "the query has to name both: ?channel=chat:zhang&message=hello");
        };
        match self.publisher.publish(channel.clone(), message).await {
            Ok(()) => line(StatusCode::OK, &format!("published on {channel}")),
            Err(error) => line(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        }
    }
}

/// The beginning of a client's text, short enough for a log line or an answer.
fn beginning(text: &str) -> String {
    const MAX_CHARACTERS: usize = 100;
    let mut beginning: String = text.chars().take(MAX_CHARACTERS).collect();
    if beginning.len() < text.len() {
        beginning.push('…');
    }
    beginning
}

fn response(status: StatusCode, content_type: &'static str, content: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(content));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The page with the endpoints that are served.
fn index(config: &Config) -> String {
    let (before, rest) = INDEX.split_once(SHIPPED_ENDPOINTS.0).expect("the page's file is part of the program");
    let (_, after) = rest.split_once(SHIPPED_ENDPOINTS.1).expect("the page's file is part of the program");
    let redis_cli = redis_cli(&config.broker).unwrap_or_default();
    let options: String = config.endpoints.iter().map(option).collect();
    let select = format!(
        "<select id=\"endpoint\" data-redis-cli=\"{}\" data-publish=\"{PUBLISH}\">{options}</select>",
        escaped(&redis_cli)
    );
    [before, &select, after].concat()
}

/// An endpoint as the page's script reads it.
fn option(endpoint: &EndpointConfig) -> String {
    let wire = match endpoint.wire {
        WireName::Lua => "lua",
        WireName::Plain => "plain",
        WireName::Sse => "sse",
    };
    let rule = match endpoint.channel {
        ChannelRule::Json => "json",
        ChannelRule::Plain => "plain",
        ChannelRule::Path => "path",
    };
    let command = if endpoint.sharded { "SPUBLISH" } else { "PUBLISH" };
    let max = endpoint.max_message_bytes.to_string();
    let history = endpoint.history.as_ref().map(history).unwrap_or_default();
    let attributes = [
        ("value", endpoint.path.as_str()),
        ("data-wire", wire),
        ("data-rule", rule),
        ("data-argument", endpoint.argument.as_str()),
        ("data-prefix", endpoint.prefix.as_str()),
        ("data-command", command),
        ("data-history", history.as_str()),
        ("data-max", max.as_str()),
        ("data-receives", if endpoint.subscribe { "yes" } else { "no" }),
        ("data-sends", if endpoint.publish { "yes" } else { "no" }),
    ];
    let attributes: String = attributes.iter().map(|(name, value)| format!(" {name}=\"{}\"", escaped(value))).collect();
    format!("<option{attributes}>{} ({wire})</option>", escaped(&endpoint.path))
}

/// What an endpoint keeps of each channel, in text.
fn history(HistoryConfig { messages, age, bytes }: &HistoryConfig) -> String {
    format!("{messages} messages, {} kB, {}", bytes.div_ceil(1_000), humantime::format_duration(*age))
}

/// The `redis-cli` command for the broker, with a masked password. `None` where one command line is not enough.
fn redis_cli(broker: &BrokerConfig) -> Option<String> {
    let BrokerConfig::Redis(urls) = broker else { return None };
    let [url] = urls.as_slice() else { return None };
    match &url.address {
        RedisAddress::Tcp(..) | RedisAddress::Tls(..) => Some(format!("redis-cli -u {broker}")),
        RedisAddress::Unix(path) => Some(format!("redis-cli -s {}", path.display())),
        RedisAddress::Cluster { nodes, tls } => {
            let (host, port) = nodes.first()?;
            Some(format!("redis-cli -c{} -h {host} -p {port}", if *tls { " --tls" } else { "" }))
        }
        RedisAddress::Sentinel { .. } => None,
    }
}

/// Escapes the value of an HTML attribute.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    fn page(listen: &str) -> TestPage {
        let mut config = Config { broker: BrokerConfig::Memory, ..Config::default() };
        let server = Server::on(config.clone(), Vec::new()).unwrap();
        config.listen = vec![listen.parse().unwrap()];
        TestPage::new(&config, server.publisher())
    }

    fn refuses(page: &TestPage, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        page.refusal(&map).is_some()
    }

    #[test]
    fn hosts_are_ours_only_when_no_other_machine_can_have_them() {
        let page = page("tcp:192.0.2.7:8080");
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "[::1]", "192.0.2.7:1"]
        {
            assert!(!refuses(&page, &[("host", host)]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "a.localhost",
            "192.0.2.8",
            "127.0.0.1.evil.example",
            "evil.example:127.0.0.1",
            "localhost:evil",
            "user@localhost",
            "[::1",
            "[::2]",
        ] {
            assert!(refuses(&page, &[("host", host)]), "{host}");
        }
        assert!(refuses(&page, &[]) && refuses(&page, &[("host", "localhost"), ("host", "evil.example")]));
        let open = self::page("tcp:0.0.0.0:8080");
        assert!(!refuses(&open, &[("host", "192.0.2.8:8080")]) && refuses(&open, &[("host", "evil.example")]));
    }

    #[test]
    fn only_pages_of_this_machine_are_answered() {
        let page = page("tcp:127.0.0.1:8080");
        for origin in ["http://localhost:8080", "https://localhost", "http://127.0.0.1:3000", "http://[::1]:5173"] {
            assert!(!refuses(&page, &[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://evil.example",
            "file://localhost",
            "http://localhost.evil.example",
            "http://localhost/x",
        ] {
            assert!(refuses(&page, &[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
    }

    #[test]
    fn a_wildcard_makes_no_page_of_another_machine_ours() {
        for (listen, host) in [("tcp:0.0.0.0:8080", "192.0.2.7:8080"), ("tcp:[::]:8080", "[2001:db8::7]:8080")] {
            let page = page(listen);
            let own = format!("http://{host}");
            for origin in [own.as_str(), "http://localhost:3000", "http://127.0.0.1:3000", "http://[::1]:3000"] {
                assert!(!refuses(&page, &[("host", host), ("origin", origin)]), "{listen} {origin}");
            }
            for origin in ["http://192.0.2.8:8080", "http://192.0.2.7:3000", "http://[2001:db8::8]", "http://0.0.0.0"] {
                assert!(refuses(&page, &[("host", host), ("origin", origin)]), "{listen} {origin}");
            }
        }
        // An address that is listened on by itself is this machine's.
        let listed = page("tcp:192.0.2.7:8080");
        assert!(!refuses(&listed, &[("host", "localhost:8080"), ("origin", "http://192.0.2.7:3000")]));
    }

    #[test]
    fn a_refusal_repeats_no_more_than_the_beginning_of_a_header() {
        let page = page("tcp:127.0.0.1:8080");
        let long = "x".repeat(20_000);
        let refusal = |headers: &[(&'static str, &str)]| {
            let headers = headers.iter().map(|(name, value)| {
                (hyper::header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            });
            page.refusal(&headers.collect()).unwrap()
        };
        for refusal in [refusal(&[("host", &long)]), refusal(&[("host", "localhost"), ("origin", &long)])] {
            assert!(refusal.ends_with(&format!("'{}…'", "x".repeat(100))), "{refusal}");
        }
    }

    #[test]
    fn the_page_lists_the_endpoints_that_are_served() {
        let mut config = Config { broker: "redis://web:hunter2@r:1".parse().unwrap(), ..Config::default() };
        let news = EndpointConfig {
            path: "/news\"<".to_owned(),
            channel: ChannelRule::Path,
            prefix: "news:".to_owned(),
            publish: false,
            ..EndpointConfig::plain()
        };
        config.endpoints = vec![news];
        let page = index(&config);
        assert_eq!(page.matches("<option").count(), 1, "{page}");
        let option = "<option value=\"/news&quot;&lt;\" data-wire=\"plain\" data-rule=\"path\" data-argument=\"channel\" \
             data-prefix=\"news:\" data-command=\"PUBLISH\" data-history=\"\" data-max=\"65535\" data-receives=\"yes\" data-sends=\"no\">";
        assert!(page.contains(option), "{page}");
        assert!(page.contains("redis-cli -u redis://&lt;hidden&gt;@r:1") && !page.contains("hunter2"), "{page}");
    }
}
