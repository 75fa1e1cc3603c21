//! Promise: an endpoint with `origins` serves pages of these origins only, whatever asks; these may read what they get
//! (CORS). An endpoint without serves every page, and says nothing of origins. The shipped nginx map compares origins
//! the same way.

use crate::support::client::{Socket, Target};
use crate::support::events::{EventStream, events_request};
use crate::support::http::{Answer, request};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, client::upgrade_request};

const RULES: &str = "origins = [\"https://a.example\", \"https://*.b.example\", \"same-host\"]";
const PATH: &str = "/webws?channel=%22a%22";

async fn start(redis: &Redis) -> Webws {
    Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .endpoint_toml(RULES)
        .endpoint_toml("path = \"/any\"")
        .endpoint_toml(&format!("path = \"/strict\"\n{RULES}\nno_origin = \"refuse\""))
        .start()
        .await
}

/// Adds fields to a request.
fn with(request: &[u8], fields: &str) -> Vec<u8> {
    let text = std::str::from_utf8(request).unwrap();
    text.replace("Host: localhost\r\n", &format!("Host: localhost\r\n{fields}")).into_bytes()
}

async fn ask(target: &Target, bytes: &[u8]) -> Answer {
    request(&Socket::connect(target).await.unwrap(), bytes).await
}

/// The names of the fields by which a page may read an answer.
fn cors(answer: &[(String, String)]) -> Vec<&str> {
    let names = answer.iter().map(|(name, _)| name.as_str());
    names
        .filter(|name| name.to_ascii_lowercase().starts_with("access-control-") || name.eq_ignore_ascii_case("vary"))
        .collect()
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_before_anything_is_subscribed() {
    let redis = Redis::start().await;
    let mut webws = start(&redis).await;
    let nginx = Nginx::start(&webws.socket()).await;
    let requests = |path: &str| [upgrade_request(path), events_request(path).into_bytes()];
    let mut refused = 0;
    for target in [webws.target(), nginx.target()] {
        for origin in [
            "http://a.example",
            "https://a.example.evil.com",
            "https://a.example:8443",
            "https://b.example",
            "https://evilb.example",
            "https://localhost:8443",
            "null",
            "https://a.example, https://evil.example",
        ] {
            for bytes in requests(PATH) {
                let answer = ask(&target, &with(&bytes, &format!("Origin: {origin}\r\n"))).await;
                assert_eq!((answer.head.status, cors(&answer.head.headers).len()), (403, 0), "{origin}: {answer:?}");
                assert!(answer.body.contains("origin"), "{answer:?}");
                refused += 1;
            }
        }
    }
    for bytes in requests(PATH) {
        let both = "Origin: https://a.example\r\nOrigin: https://evil.example\r\n";
        assert_eq!(ask(&webws.target(), &with(&bytes, both)).await.head.status, 403);
        let elsewhere = "Origin: http://localhost\r\nX-Forwarded-Proto: https\r\n";
        assert_eq!(ask(&webws.target(), &with(&bytes, elsewhere)).await.head.status, 403);
        refused += 2;
    }
    for bytes in requests("/strict?channel=%22a%22") {
        assert_eq!(ask(&webws.target(), &bytes).await.head.status, 403);
        refused += 1;
    }
    assert_eq!(redis.numsub(b"chat:a").await, 0);
    for (path, origin) in [
        (PATH, ""),
        (PATH, "Origin: https://a.example\r\n"),
        (PATH, "Origin: HTTPS://A.example.:443\r\n"),
        (PATH, "Origin: https://d.c.b.example\r\n"),
        (PATH, "Origin: http://localhost\r\n"),
        ("/strict?channel=1", "Origin: https://a.example\r\n"),
        ("/any?channel=1", "Origin: null\r\nOrigin: http://evil.example\r\n"),
    ] {
        let answer = ask(&webws.target(), &with(&upgrade_request(path), origin)).await;
        assert_eq!((answer.head.status, cors(&answer.head.headers).len()), (101, 0), "{path} {origin}: {answer:?}");
    }
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!(webws.counter("handshakes_refused"), refused, "{}", webws.log());
}

#[tokio::test]
async fn an_allowed_page_may_read_events_and_refusals_and_no_other_page_is_told_anything() {
    let mut redis = Redis::start().await;
    let webws = start(&redis).await;
    let nginx = Nginx::start(&webws.socket()).await;
    let fields = ["Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers"];
    let fields = [fields.as_slice(), &["Vary"]].concat();
    let origin = "Origin: https://C.b.example\r\n";
    for target in [webws.target(), nginx.target()] {
        let stream = EventStream::request(&target, &with(events_request(PATH).as_bytes(), origin)).await;
        assert_eq!(cors(&stream.head.headers), fields, "{stream:?}");
        assert_eq!(stream.head.header("Access-Control-Allow-Origin"), Some("https://C.b.example"));
        assert_eq!(stream.head.header("Access-Control-Allow-Credentials"), Some("true"));
        let silent = EventStream::open(&target, PATH).await;
        assert_eq!(cors(&silent.head.headers), [""; 0]);
        let answer = ask(&target, &with(events_request("/webws").as_bytes(), origin)).await;
        let names = cors(&answer.head.headers).len();
        assert_eq!((answer.head.status, names), (400, fields.len()), "{answer:?}");
    }
    let any = with(events_request("/any?channel=1").as_bytes(), origin);
    assert_eq!(cors(&EventStream::request(&webws.target(), &any).await.head.headers), [""; 0]);
    redis.kill();
    crate::support::until("it refuses", crate::support::START, async || {
        let other = with(events_request("/webws?channel=2").as_bytes(), origin);
        let answer = ask(&webws.target(), &other).await;
        answer.head.status == 503 && cors(&answer.head.headers) == fields
    })
    .await;
}

#[tokio::test]
async fn a_browser_that_asks_first_is_answered_for_allowed_pages() {
    let webws = Webws::builder().broker("memory").endpoint_toml(RULES).endpoint_toml("path = \"/any\"").start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let preflight = |path: &str, origin: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: GET\r\n\
             Access-Control-Request-Headers: last-event-id\r\nAccept: */*\r\n\r\n"
        )
    };
    for target in [webws.target(), nginx.target()] {
        for path in [PATH, "/webws", "/webws/below?channel=1"] {
            let answer = ask(&target, preflight(path, "https://a.example").as_bytes()).await;
            assert_eq!((answer.head.status, answer.body.as_str()), (204, ""), "{path}: {answer:?}");
            for (name, value) in [
                ("Access-Control-Allow-Origin", "https://a.example"),
                ("Access-Control-Allow-Methods", "GET"),
                ("Access-Control-Allow-Credentials", "true"),
                ("Vary", "Origin"),
            ] {
                assert_eq!(answer.head.header(name), Some(value), "{answer:?}");
            }
            let allowed = answer.head.header("Access-Control-Allow-Headers").unwrap();
            assert!(allowed.split(", ").any(|name| name == "Last-Event-ID"), "{allowed}");
        }
        let answer = ask(&target, preflight(PATH, "http://a.example").as_bytes()).await;
        assert_eq!((answer.head.status, cors(&answer.head.headers).len()), (403, 0), "{answer:?}");
    }
    for (target, request) in [
        (webws.target(), preflight("/any?channel=1", "https://a.example")),
        (webws.target(), preflight(PATH, "https://a.example").replace("Access-Control-Request-Method", "X-Method")),
        (nginx.target(), preflight(PATH, "https://a.example").replace("Access-Control-Request-Method: GET", "X: y")),
        (nginx.target(), preflight(PATH, "https://a.example").replace("Request-Method: GET", "Request-Method: PUT")),
        (nginx.target(), preflight(PATH, "https://a.example").replace("OPTIONS", "POST")),
    ] {
        let answer = ask(&target, request.as_bytes()).await;
        assert_eq!((answer.head.status, answer.head.header("Allow")), (405, Some("GET")), "{request}: {answer:?}");
    }
}

#[tokio::test]
async fn the_shipped_map_compares_scheme_host_and_port() {
    let webws = Webws::on("memory").await;
    let switched = |name: &str, text: String| {
        if name != "webws-http.conf" {
            return text;
        }
        let off = "default                                     0;   # <<< THE SWITCH";
        assert_eq!(text.matches(off).count(), 1);
        text.replace(off, &off.replace("0;", "1;"))
    };
    let nginx = Nginx::start_complete(&webws.socket(), switched).await;
    let own = nginx.addr();
    for (host, origin, status) in [
        (own.to_string(), format!("http://{own}"), 101),
        ("Own.example".to_owned(), "http://own.example".to_owned(), 101),
        ("own.example".to_owned(), "https://own.example".to_owned(), 403),
        ("own.example".to_owned(), "http://own.example:8443".to_owned(), 403),
        ("own.example:81".to_owned(), "http://own.example".to_owned(), 403),
        ("own.example".to_owned(), "http://own.example.evil.com".to_owned(), 403),
        ("own.example".to_owned(), "http://xown.example".to_owned(), 403),
        ("own.example".to_owned(), "null".to_owned(), 403),
        ("own.example".to_owned(), "https://www.example.com".to_owned(), 101),
        ("own.example".to_owned(), "https://example.com".to_owned(), 101),
        ("own.example".to_owned(), "http://example.com".to_owned(), 403),
        ("own.example".to_owned(), "https://example.com:8443".to_owned(), 403),
        ("own.example".to_owned(), "https://example.com.evil.com".to_owned(), 403),
    ] {
        let fields = format!("Host: {host}\r\nOrigin: {origin}");
        let request = String::from_utf8(upgrade_request(PATH)).unwrap().replace("Host: localhost", &fields);
        assert_eq!(ask(&nginx.target(), request.as_bytes()).await.head.status, status, "{fields}");
    }
    assert_eq!(ask(&nginx.target(), &upgrade_request(PATH)).await.head.status, 101);
}
