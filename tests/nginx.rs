//! Promise: the nginx configuration that is shipped works as it stands, tells clients when to come back,
//! and keeps what is in query strings to itself.
//!
//! `site` is about the site around it, `migration` about the way from the Lua handler and back.

mod migration;
pub(crate) mod site;

use crate::support::client::Client;
use crate::support::http::{get, handshake};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// The configuration as it is.
fn unchanged(_: &str, text: String) -> String {
    text
}

/// Replaces a line that must be there, once.
fn change(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} in:\n{text}");
    text.replace(from, to)
}

#[tokio::test]
async fn the_complete_configuration_passes_its_check_and_serves() {
    let webws = Webws::on("memory").await;
    let nginx = Nginx::start_complete(&webws.socket(), unchanged).await;
    let mut one = Client::connect(&nginx.target(), PATH).await;
    let mut other = Client::connect(&nginx.target(), PATH).await;
    one.send_text("through it, ").await;
    one.expect_text("through it, zhang").await;
    other.expect_text("through it, zhang").await;
    one.close().await;
    other.close().await;

    for (path, content_type, content) in [
        ("/", "text/html", include_str!("../src/front/page/index.html")),
        ("/transport.js", "text/javascript", include_str!("../src/front/page/transport.js")),
        ("/target.js", "text/javascript", include_str!("../src/front/page/target.js")),
        ("/log.js", "text/javascript", include_str!("../src/front/page/log.js")),
        ("/page.js", "text/javascript", include_str!("../src/front/page/page.js")),
        ("/page.css", "text/css", include_str!("../src/front/page/page.css")),
    ] {
        let answer = get(&nginx.target(), path).await;
        assert_eq!((answer.head.status, answer.body.as_str()), (200, content), "{path}");
        assert_eq!(answer.head.header("Content-Type"), Some(content_type));
        assert!(answer.head.header("Content-Security-Policy").is_some_and(|policy| policy.contains("'none'")));
    }
    // Nothing else of the sidecar is public.
    assert_eq!(handshake(&nginx.target(), "/plain?channel=zhang").await.head.status, 404);
}

#[tokio::test]
async fn a_sidecar_that_is_down_is_a_502_that_says_when_to_come_back() {
    let mut webws = Webws::on("memory").await;
    let nginx = Nginx::start_complete(&webws.socket(), unchanged).await;
    Client::connect(&nginx.target(), PATH).await.close().await;
    webws.term();
    webws.wait_exit(SOON).await;
    // No socket file; then one that nobody listens on.
    for _ in 0..2 {
        let answer = handshake(&nginx.target(), PATH).await;
        assert_eq!((answer.head.status, answer.all("Retry-After")), (502, vec!["5"]), "{answer:?}");
        drop(std::os::unix::net::UnixListener::bind(webws.socket()));
    }
    // A pause is no verdict: the first handshake after it succeeds.
    std::fs::remove_file(webws.socket()).unwrap();
    let listener = tokio::net::UnixListener::bind(webws.socket()).unwrap();
    let target = nginx.target();
    let waiting = handshake(&target, PATH);
    let accepted = async { listener.accept().await.unwrap().0.writable().await };
    tokio::select! {
        answer = waiting => panic!("{answer:?}"),
        accepted = accepted => accepted.unwrap(),
    }
}

#[tokio::test]
async fn refusals_of_the_sidecar_pass_as_they_are() {
    let mut redis = Redis::start().await;
    let webws =
        Webws::builder().broker(&redis.url()).workers(1).extra_toml("[limits]\nretry_after = \"7s\"").start().await;
    let nginx = Nginx::start_complete(&webws.socket(), unchanged).await;
    Client::connect(&nginx.target(), PATH).await.close().await;
    redis.kill();
    until("the sidecar refuses", START, async || handshake(&webws.target(), PATH).await.head.status == 503).await;
    let direct = handshake(&webws.target(), PATH).await;
    let through = handshake(&nginx.target(), PATH).await;
    through.assert_unavailable("7");
    assert_eq!(through.body, direct.body);
    let direct = handshake(&webws.target(), "/webws").await;
    let through = handshake(&nginx.target(), "/webws").await;
    assert_eq!((through.head.status, &through.body), (400, &direct.body), "{through:?}");
    assert!(through.all("Retry-After").is_empty(), "{through:?}");
    // A 101 has none of the headers for refusals.
    redis.start_again().await;
    until("the sidecar serves", START, async || handshake(&webws.target(), PATH).await.head.status == 101).await;
    let client = Client::connect(&nginx.target(), PATH).await;
    assert_eq!((client.head().header("Retry-After"), client.head().header("Allow")), (None, None));
}

#[tokio::test]
async fn query_strings_do_not_reach_the_access_log() {
    let mut webws = Webws::on("memory").await;
    let nginx = Nginx::start_complete(&webws.socket(), unchanged).await;
    Client::connect(&nginx.target(), "/webws?channel=%22zhang%22&token=hunter2").await.close().await;
    assert_eq!(handshake(&nginx.target(), "/webws?token=hunter2").await.head.status, 400);
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!(handshake(&nginx.target(), "/webws?channel=1&token=hunter2").await.head.status, 502);
    until("three lines are written", START, async || nginx.access_log().lines().count() == 3).await;
    let mut statuses = Vec::new();
    for line in nginx.access_log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(line["uri"], "/webws", "{line}");
        assert!(!line.to_string().contains("hunter2") && !line.to_string().contains("zhang"), "{line}");
        statuses.push(line["status"].as_u64().unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [101, 400, 502]);
}
