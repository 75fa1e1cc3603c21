//! Promise: `webws dev` shows a developer what happens, and nobody else gets at it: not another site's page in
//! the developer's browser, and not by a name that resolves to this machine.

use std::path::Path;

use crate::support::client::{Client, Socket, Target};
use crate::support::http::{Answer, get, request};
use crate::support::program::{Program, listen_in};
use crate::support::redis::Redis;
use crate::support::{SOON, START, free_port, until};

struct Dev {
    program: Program,
    address: String,
}

impl Dev {
    async fn start(dir: &Path, arguments: &[&str]) -> Dev {
        let address = format!("127.0.0.1:{}", free_port());
        let (tcp, unix) = (format!("tcp:{address}"), listen_in(dir));
        let arguments = [&["dev", "--listen", &tcp, "--listen", &unix], arguments].concat();
        Dev { program: Program::start(dir, &arguments, &[]).await, address }
    }

    fn target(&self) -> Target {
        Target::Tcp(self.address.parse().unwrap())
    }

    /// Sends a request line and headers.
    async fn ask(&self, head: &str) -> Answer {
        let head = format!("{}\r\nConnection: close\r\n\r\n", head.replace('\n', "\r\n"));
        request(&Socket::connect(&self.target()).await.unwrap(), head.as_bytes()).await
    }

    async fn handshake(&self, headers: &str) -> u16 {
        let head = format!("GET /webws?channel=%22zhang%22 HTTP/1.1\n{headers}");
        let upgrade = "\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let request = format!("{head}{upgrade}\n\n").replace('\n', "\r\n");
        let client = Client::request(Socket::connect(&self.target()).await.unwrap(), request.as_bytes()).await;
        client.expect("an answer").head().status
    }
}

#[tokio::test]
async fn only_pages_of_this_machine_reach_the_developers_redis() {
    let redis = Redis::start().await;
    let spy = redis.spy(b"chat:zhang").await;
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--broker", &redis.url()]).await;
    let own = format!("Host: {}", dev.address);
    for (headers, status) in [
        (own.clone(), 101),
        (format!("{own}\nOrigin: http://{}", dev.address), 101),
        (format!("{own}\nOrigin: http://localhost:3000"), 101),
        ("Host: localhost:8080\nOrigin: http://localhost:8080".to_owned(), 101),
        (format!("{own}\nOrigin: https://evil.example"), 403),
        (format!("{own}\nOrigin: null"), 403),
        // DNS rebinding: for the browser it is the page's own origin.
        ("Host: evil.example:8080\nOrigin: http://evil.example:8080".to_owned(), 403),
        ("Host: evil.example".to_owned(), 403),
    ] {
        assert_eq!(dev.handshake(&headers).await, status, "{headers}");
    }
    let publish = "/dev/publish?channel=chat:zhang&message=forged HTTP/1.1";
    for request in [
        format!("POST {publish}\n{own}\nOrigin: https://evil.example"),
        format!("POST {publish}\nHost: evil.example"),
        // An image on any page.
        format!("GET {publish}\n{own}"),
    ] {
        let answer = dev.ask(&request).await;
        assert!(matches!(answer.head.status, 403 | 405), "{request}: {answer:?}");
    }
    let page = dev.ask("GET / HTTP/1.1\nHost: evil.example").await;
    assert!(page.head.status == 403 && page.body.contains("evil.example"), "{page:?}");

    let told = dev.ask(&format!("POST /dev/publish?channel=chat:zhang&message=h%C3%A9+llo HTTP/1.1\n{own}")).await;
    assert_eq!((told.head.status, told.body.as_str()), (200, "published on chat:zhang\n"), "{told:?}");
    until("Redis has it and nothing else", SOON, async || spy.seen() == ["hé llo"]).await;
    assert_eq!(dev.ask(&format!("POST /dev/publish?channel=chat:zhang HTTP/1.1\n{own}")).await.head.status, 400);
}

#[tokio::test]
async fn it_says_where_its_page_is_and_shows_refused_handshakes() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]).await;
    let says = async |part: &str| {
        let message = |line: &serde_json::Value| line["message"].as_str().unwrap().contains(part);
        let said = || dev.program.lines().iter().any(|line| line["level"] == "INFO" && message(line));
        until(&format!("it says {part:?}"), START, async || said()).await;
    };
    says(&format!("http://{}/", dev.address)).await;
    assert_eq!(dev.ask("GET /webws?channel=zhang HTTP/1.1\nHost: localhost").await.head.status, 400);
    says("refused /webws with 400: the channel's name is wrong").await;
    assert_eq!(dev.handshake("Host: localhost\nOrigin: http://evil.example").await, 403);
    says("refused /webws with 403: ").await;
}

#[tokio::test]
async fn its_page_lists_the_endpoints_that_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let page = get(&Dev::start(dir.path(), &[]).await.target(), "/").await.body;
    assert_eq!(page.matches("<option").count(), 2, "{page}");
    assert!(page.contains("value=\"/webws\"") && page.contains("value=\"/plain\""), "{page}");

    let redis = Redis::start().await;
    let settings = format!(
        "listen = [\"unix:/nowhere/webws.sock\"]\ncontrol = \"/nowhere/control.sock\"\nbroker = {:?}\n\
         [[endpoint]]\npath = \"/news\"\nchannel = \"path\"\nprefix = \"news:\"\nwire = \"plain\"\npublish = false\n",
        redis.url()
    );
    std::fs::write(dir.path().join("webws.toml"), settings).unwrap();
    let dev = Dev::start(dir.path(), &["--config", "webws.toml"]).await;
    let page = get(&dev.target(), "/").await.body;
    assert_eq!(page.matches("<option").count(), 1, "{page}");
    for part in
        ["value=\"/news\"", "data-rule=\"path\"", "data-prefix=\"news:\"", &format!("redis-cli -u {}", redis.url())]
    {
        assert!(page.contains(part), "{part} in {page}");
    }
    let mut client = Client::connect(&dev.target(), "/news/sport").await;
    redis.publish(b"news:sport", b"goal").await;
    client.expect_text("goal").await;
}
