//! Promise: what nginx lets through in a request is judged by our own rules and no library's, the same
//! directly and behind nginx; and what nginx and webws would read differently is refused.

use crate::support::client::{Client, Socket, Target};
use crate::support::http::{Answer, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;

/// What hyper's refusals say.
const MALFORMED: &str = "well-formed";

/// A handshake for `target`, with `lines` in it.
fn upgrade(target: &[u8], lines: &[u8]) -> Vec<u8> {
    let head = b" HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    [b"GET ", target, head, lines, b"\r\n"].concat()
}

const KEY: &[u8] = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const HOST: &[u8] = b"Host: localhost\r\n";

fn usual(target: &[u8]) -> Vec<u8> {
    upgrade(target, &[HOST, KEY].concat())
}

async fn ask(target: &Target, bytes: &[u8]) -> Answer {
    request(&Socket::connect(target).await.unwrap(), bytes).await
}

/// The channel's name, as the lua wire shows it behind a text, when the request is accepted.
async fn channel(target: &Target, bytes: &[u8]) -> Result<String, u16> {
    let mut client = Client::request(Socket::connect(target).await.unwrap(), bytes).await.expect("no reply");
    if client.head().status != 101 {
        return Err(client.head().status);
    }
    client.send_text("it is ").await;
    let frame = client.next_but_pings(crate::support::SOON).await.expect("its own text");
    let text = String::from_utf8(frame.payload.to_vec()).unwrap();
    client.close().await;
    Ok(text.strip_prefix("it is ").unwrap().to_owned())
}

#[tokio::test]
async fn a_target_may_have_every_character_that_nginx_passes_on() {
    let webws = Webws::on("memory").await;
    let nginx = Nginx::start(&webws.socket()).await;
    let (ours, through) = (webws.target(), nginx.target());
    for (target, name) in [
        (r#"/webws?channel="zhang""#, "zhang"),
        (r#"/webws?channel="<a>^`{|}[]~'()*!$,:@""#, "<a>^`{|}[]~'()*!$,:@"),
        (r#"/webws?channel="\u4e2d\"""#, "\u{4e2d}\""),
        ("/webws?channel=\"\u{4e2d}\u{1f600}\"", "\u{4e2d}\u{1f600}"),
        ("/webws?channel=%22a<b>%22", "a<b>"),
        ("/webws?\"<>{}=\"&channel=\"a\"", "a"),
        ("/webws?token=%FF%00&channel=\"a\"", "a"),
        ("/webws?channel=\"a\"#\"b", "a"),
        ("http://localhost/webws?channel=\"a\"", "a"),
    ] {
        for way in [&ours, &through] {
            assert_eq!(channel(way, &usual(target.as_bytes())).await.as_deref(), Ok(name), "{target} at {way:?}");
        }
    }
    // What is not UTF-8 and not the channel's name is nobody's business.
    let latin1 = usual(b"/webws?name=Sch\xf6n&channel=\"a\"");
    assert_eq!(channel(&ours, &latin1).await.as_deref(), Ok("a"));
    assert_eq!(channel(&through, &latin1).await.as_deref(), Ok("a"));
}

/// Every byte in every place. nginx refuses some by itself, with its HTML; what it passes on must be
/// judged as it is directly, and by us.
#[tokio::test]
async fn each_byte_that_nginx_passes_on_is_judged_by_our_rules() {
    type Place = fn(u8) -> Vec<u8>;
    let places: [(&str, Place); 6] = [
        ("the channel's name", |byte| usual(&[b"/webws?channel=\"a", &[byte][..], b"n\""].concat())),
        ("another argument", |byte| usual(&[b"/webws?a=", &[byte][..], b"&channel=1"].concat())),
        ("the path", |byte| usual(&[b"/webws/a", &[byte][..], b"?channel=1"].concat())),
        ("a value", |byte| upgrade(b"/webws?channel=1", &[HOST, KEY, b"User-Agent: a", &[byte], b"b\r\n"].concat())),
        ("a name", |byte| upgrade(b"/webws?channel=1", &[HOST, KEY, b"X-", &[byte], b"b: c\r\n"].concat())),
        ("the origin", |byte| upgrade(b"/webws?channel=1", &[HOST, KEY, b"Origin: ", &[byte], b"\r\n"].concat())),
    ];
    let webws = Webws::on("memory").await;
    let nginx = Nginx::start(&webws.socket()).await;
    let (ours, through) = (webws.target(), nginx.target());
    let (mut wrong, mut passed) = (Vec::new(), 0);
    for (place, request) in places {
        // A backslash in a path is refused directly; the shipped location sends no path of a client's.
        let is_left_out = |byte| b"\r\n".contains(&byte) || (place == "the path" && byte == b'\\');
        for byte in (1..=u8::MAX).filter(|byte| !is_left_out(*byte)) {
            let (direct, proxied) = (ask(&ours, &request(byte)).await, ask(&through, &request(byte)).await);
            if proxied.body.contains("<html>") {
                continue;
            }
            passed += 1;
            let (direct, proxied) = ((direct.head.status, direct.body), (proxied.head.status, proxied.body));
            if direct != proxied || direct.1.contains(MALFORMED) {
                wrong.push(format!("{byte:#04x} in {place}: {direct:?}, through nginx {proxied:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(passed > 1_000, "nginx passed only {passed} on");
}

#[tokio::test]
async fn what_nginx_reads_in_another_way_is_refused() {
    let webws = Webws::on("memory").await;
    let nginx = Nginx::start(&webws.socket()).await;
    for query in [
        "CHANNEL=\"ann\"&channel=\"bob\"",
        "channel=\"ann\"&Channel=\"bob\"",
        "channel=\"ann\"&channel=\"bob\"",
        "channel=\"ann\"&%63hannel=\"bob\"",
        "%43hannel=\"ann\"&channel=\"bob\"",
        "channel=&channel=\"bob\"",
        "channel&channel=\"bob\"",
        "CHANNEL=\"bob\"",
    ] {
        for way in [webws.target(), nginx.target()] {
            let answer = ask(&way, &usual(format!("/webws?{query}").as_bytes())).await;
            assert_eq!(answer.head.status, 400, "{query} at {way:?}");
            assert!(answer.body.contains("channel argument"), "{answer:?}");
        }
    }
}

/// nginx chooses the location, and with it who may pass, by the normalised path; a proxy_pass without a path sends
/// the path as it came.
#[tokio::test]
async fn a_path_that_nginx_reads_in_another_way_joins_no_endpoint() {
    let endpoint = |path: &str| format!("path = \"{path}\"");
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml(&endpoint("/webws"))
        .endpoint_toml(&endpoint("/webws/admin"))
        .endpoint_toml(&endpoint("/admin"))
        .start()
        .await;
    let location = |path: &str| {
        format!(
            "location ^~ {path} {{ proxy_pass http://webws_sidecar; proxy_http_version 1.1; \
             proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }}\n"
        )
    };
    let server = location("/webws/open") + &location("/admin");
    // In the place of the shipped location, which sends no path as it came.
    let by_hand = |name: &str, text: String| if name == "webws-location.conf" { String::new() } else { text };
    let nginx = Nginx::start_in(Site { server: &server, ..Site::default() }, &webws.socket(), by_hand).await;
    for path in ["/admin", "/admin/", "/admin/x", "/admin/a.b/..c"] {
        for way in [webws.target(), nginx.target()] {
            let answer = ask(&way, &usual(format!("{path}?channel=1").as_bytes())).await;
            assert_eq!(answer.head.status, 101, "{path} at {way:?}: {answer:?}");
        }
    }
    // Each has nginx use the rules of /admin or /webws/open.
    for path in [
        "/webws/../admin",
        "/webws/admin/../open",
        "/webws/admin/..%2Fopen",
        "/webws/admin/..%2fopen",
        "/webws/%2e%2e/admin",
        "/webws/.%2E/admin",
        "/webws/./open",
        "/webws//open",
        "/webws/%6fpen/../open",
        "/admin/%2e/x",
        "/admin/a%5Cb",
        "/admin/a\\b",
    ] {
        for way in [webws.target(), nginx.target()] {
            let answer = ask(&way, &usual(format!("{path}?channel=1").as_bytes())).await;
            assert_eq!(answer.head.status, 400, "{path} at {way:?}: {answer:?}");
            assert!(answer.body.starts_with("the path has"), "{path} at {way:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_direct_handshake_names_one_host_and_has_a_whole_key() {
    let webws = Webws::on("memory").await;
    let target = webws.target();
    let lines = |host: &[u8], key: &[u8]| upgrade(b"/webws?channel=1", &[host, key].concat());
    for (what, host, key) in [
        ("no Host", &b""[..], KEY),
        ("a blank Host", b"Host: \r\n", KEY),
        ("two Hosts", b"Host: localhost\r\nHost: localhost\r\n", KEY),
        ("no key", HOST, b""),
        ("an empty key", HOST, b"Sec-WebSocket-Key: \r\n"),
        ("a short key", HOST, b"Sec-WebSocket-Key: YWJj\r\n"),
        ("a key of 17 bytes", HOST, b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=\r\n"),
        ("a key that is not base64", HOST, b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA-_==\r\n"),
        ("two keys", HOST, &[KEY, KEY].concat()),
    ] {
        let answer = ask(&target, &lines(host, key)).await;
        assert_eq!(answer.head.status, 400, "{what}: {answer:?}");
        assert!(!answer.body.contains(MALFORMED), "{what}: {answer:?}");
    }
    assert_eq!(ask(&target, &lines(HOST, KEY)).await.head.status, 101);
    // Who asks for our health need not.
    assert_eq!(ask(&target, b"GET /healthz HTTP/1.0\r\n\r\n").await.head.status, 200);
}

#[tokio::test]
async fn a_name_over_max_channel_bytes_is_refused() {
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/short\"\nchannel = \"plain\"\nmax_channel_bytes = 3")
        .endpoint_toml("path = \"/news\"\nchannel = \"path\"\nmax_channel_bytes = 3")
        .start()
        .await;
    let (fits, long) = ("x".repeat(512), "x".repeat(513));
    for (target, status) in [
        (format!("/webws?channel=\"{fits}\""), 101),
        (format!("/webws?channel=\"{long}\""), 400),
        ("/short?channel=%61%62%63".to_owned(), 101),
        ("/short?channel=%C3%A4bc".to_owned(), 400),
        ("/news/abc".to_owned(), 101),
        ("/news/abcd".to_owned(), 400),
    ] {
        let answer = ask(&webws.target(), &usual(target.as_bytes())).await;
        assert_eq!(answer.head.status, status, "{target}: {answer:?}");
    }
}

#[tokio::test]
async fn only_the_subprotocols_of_a_plain_endpoint_are_answered() {
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/plain\"\nwire = \"plain\"")
        .endpoint_toml("path = \"/chat\"\nwire = \"plain\"\nsubprotocols = [\"v2.chat\", \"v1.chat\"]")
        .start()
        .await;
    for (path, offered, answered) in [
        ("/webws", "anything, v1.chat", Some("anything")),
        ("/plain", "v1.chat", None),
        ("/chat", "v1.chat, v2.chat", Some("v1.chat")),
        ("/chat", "v0.chat, v2.chat", Some("v2.chat")),
        ("/chat", "v0.chat", None),
        ("/chat", "V1.CHAT", None),
    ] {
        let lines = [HOST, KEY, format!("Sec-WebSocket-Protocol: {offered}\r\n").as_bytes()].concat();
        let answer = ask(&webws.target(), &upgrade(format!("{path}?channel=1").as_bytes(), &lines)).await;
        assert_eq!(answer.head.status, 101, "{answer:?}");
        assert_eq!(answer.head.header("Sec-WebSocket-Protocol"), answered, "{path} {offered}");
    }
}
