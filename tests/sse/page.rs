//! An `EventSource` in a real browser, through nginx with TLS and HTTP/2: it receives everything, keeps its stream over
//! a live upgrade, and comes back by itself after a stop.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::PAYLOADS;
use crate::handover::Stage;
use crate::support::browser::Browser;
use crate::support::certificate::{NEW_KEY, openssl};
use crate::support::nginx::{Nginx, Site};
use crate::support::program::{Program, listen_in, socket_in};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{START, free_port, holds_within, until};

/// nginx with TLS and HTTP/2, and its address for a browser. It serves an empty page at all other paths.
async fn secure(dir: &std::path::Path, socket: &std::path::Path) -> (Nginx, String) {
    openssl(dir, &format!("req -x509 {NEW_KEY} -keyout page.key -out page.pem -subj /CN=localhost -days 2"));
    let (port, at) = (free_port(), dir.display());
    let server = format!(
        "listen 127.0.0.1:{port} ssl http2; ssl_certificate {at}/page.pem; ssl_certificate_key {at}/page.key;
         location / {{ default_type text/html; return 200 '<!doctype html><title>events</title>'; }}"
    );
    let nginx = Nginx::start_in(Site { server: &server, ..Site::default() }, socket, |_, text| text).await;
    (nginx, format!("https://127.0.0.1:{port}"))
}

/// Opens an `EventSource` on a page of the site, which keeps what it gets. It continues from the last event of the
/// page that was in this window before.
async fn listen(browser: &Browser, site: &str, channel: &str) {
    browser.client().goto(site).await.unwrap();
    let script = format!(
        "window.opened = 0; window.failed = []; window.seen = [];
         const last = sessionStorage.getItem('last');
         window.source = new EventSource('/webws?channel=%22{channel}%22' + (last ? '&lastEventID=' + last : ''));
         source.onopen = () => window.opened++;
         source.onerror = () => window.failed.push(source.readyState);
         for (const kind of ['message', 'binary', 'gap'])
           source.addEventListener(kind, (event) => {{
             window.seen.push([kind, event.data]);
             sessionStorage.setItem('last', event.lastEventId);
           }});"
    );
    browser.execute(&script).await;
    until("it is open", START, async || state(browser).await == json!([1, 1, []])).await;
    let protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.execute(protocol).await, "h2");
}

/// The state of the source, how often it was opened, and its state at each error.
async fn state(browser: &Browser) -> Value {
    browser.execute("return [source.readyState, window.opened, window.failed]").await
}

async fn sees(browser: &Browser, expected: &Value) {
    let seen = async || browser.execute("return window.seen").await;
    let is_seen = holds_within(START, async || seen().await == *expected).await;
    assert!(is_seen, "{} is seen, not {expected}", seen().await);
}

#[tokio::test]
async fn a_page_receives_every_payload_and_keeps_its_stream_over_an_upgrade() {
    let mut stage = Stage::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (_nginx, site) = secure(dir.path(), &stage.webws.socket()).await;
    let browser = Browser::start().await;
    listen(&browser, &site, "b").await;
    for (payload, ..) in PAYLOADS {
        stage.redis.publish(b"chat:b", payload).await;
    }
    let mut expected: Vec<_> = PAYLOADS.iter().map(|(_, kind, data)| json!([kind, data])).collect();
    sees(&browser, &expected.clone().into()).await;
    stage.succeeds().await;
    stage.redis.publish(b"chat:b", b"after").await;
    expected.push(json!(["message", "after"]));
    sees(&browser, &expected.into()).await;
    assert_eq!(state(&browser).await, json!([1, 1, []]), "the same stream");
}

#[tokio::test]
async fn a_page_comes_back_by_itself_after_a_stop() {
    let redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--listen", &listen_in(dir.path()), "--broker", &redis.url()];
    let program = Program::start(dir.path(), &arguments, &[]).await;
    let (_nginx, site) = secure(dir.path(), &socket_in(dir.path())).await;
    let browser = Browser::start().await;
    listen(&browser, &site, "a").await;
    redis.publish(b"chat:a", b"before").await;
    sees(&browser, &json!([["message", "before"]])).await;
    program.stop().await;
    // It waits for at least two seconds, as the stream has told it.
    let _next = Program::start(dir.path(), &arguments, &[]).await;
    until("it is open again", START, async || state(&browser).await == json!([1, 2, [0]])).await;
    redis.publish(b"chat:a", b"after").await;
    sees(&browser, &json!([["message", "before"], ["message", "after"]])).await;
}

#[tokio::test]
async fn a_page_that_loses_its_connection_or_is_loaded_again_misses_nothing() {
    let redis = Redis::start().await;
    let kept = "history = { messages = 100, age = \"1m\" }";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(kept).start().await;
    let dir = tempfile::tempdir().unwrap();
    let (nginx, site) = secure(dir.path(), &webws.socket()).await;
    let browser = Browser::start().await;
    listen(&browser, &site, "a").await;
    redis.publish(b"chat:a", b"one").await;
    let mut expected = vec![json!(["message", "one"])];
    sees(&browser, &expected.clone().into()).await;
    // nginx' worker has the connection; its master starts another worker.
    let workers = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", nginx.pid())).unwrap();
    for worker in workers.split_whitespace() {
        kill(Pid::from_raw(worker.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    until("the connection is lost", START, async || state(&browser).await == json!([0, 1, [0]])).await;
    for n in 0..20 {
        redis.publish(b"chat:a", format!("missed {n}").as_bytes()).await;
        expected.push(json!(["message", format!("missed {n}")]));
    }
    sees(&browser, &expected.into()).await;
    assert_eq!(state(&browser).await, json!([1, 2, [0]]), "it came back by itself");

    browser.client().goto("about:blank").await.unwrap();
    redis.publish(b"chat:a", b"meanwhile").await;
    listen(&browser, &site, "a").await;
    redis.publish(b"chat:a", b"live").await;
    sees(&browser, &json!([["message", "meanwhile"], ["message", "live"]])).await;
}
