//! An `EventSource` in a real browser, through nginx with TLS and HTTP/2: it receives everything, keeps its stream over
//! a live upgrade, and comes back by itself after a stop.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::PAYLOADS;
use crate::handover::Stage;
use crate::support::browser::{Browser, Network};
use crate::support::certificate::{NEW_KEY, openssl};
use crate::support::nginx::{Nginx, Site};
use crate::support::program::{Program, listen_in, socket_in};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::webws::{Builder, Webws};
use crate::support::{START, free_port, holds_within, lasting, until};

/// A history, and a log that stands in for it after a stop.
const KEPT: &str = "path = \"/webws\"\nhistory = { messages = 1000, age = \"1m\" }";
const REPLAY: &str = "[redis]\nreplay = \"on\"";

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
    open(browser, site, channel).await;
    until("it is open", START, async || state(browser).await == json!([1, 1, []])).await;
    let protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(browser.execute(protocol).await, "h2");
}

/// As [`listen`], without waiting. All pages of the window together keep the data of all events in `all`.
async fn open(browser: &Browser, site: &str, channel: &str) {
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
             sessionStorage.setItem('all', (sessionStorage.getItem('all') ?? '') + event.data + ' ');
           }});"
    );
    browser.execute(&script).await;
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

/// Waits until Redis has a replication log that its milestones name.
async fn has_log(redis: &Redis) {
    let is_active = async || {
        let info = redis.command(&["INFO", "replication"]).await;
        redis::from_redis_value::<String>(info).unwrap().contains("repl_backlog_active:1")
    };
    until("there is a log", START, is_active).await;
    // The next milestone knows the log, and the one behind it surely.
    lasting(Duration::from_millis(2_500)).await;
}

/// Publishes numbers on `chat:b` until it is told to stop; returns how many.
fn count_up(redis: &Redis) -> (oneshot::Sender<()>, JoinHandle<usize>) {
    let (url, (stop, mut stopped)) = (redis.url(), oneshot::channel());
    let producer = tokio::spawn(async move {
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut count = 0;
        while stopped.try_recv().is_err() {
            redis::cmd("PUBLISH").arg("chat:b").arg(count).exec_async(&mut connection).await.unwrap();
            count += 1;
            lasting(Duration::from_millis(20)).await;
        }
        count
    });
    (stop, producer)
}

/// Waits until the source is open, and has been opened more often than `before`; returns how often.
async fn is_back(browser: &Browser, what: &str, before: u64) -> u64 {
    let opened = async || {
        let state = state(browser).await;
        assert_ne!(state[0], 2, "the source gave up: {what}");
        (state[0] == 1).then(|| state[1].as_u64().unwrap())
    };
    until(what, START, async || opened().await.is_some_and(|opened| opened > before)).await;
    state(browser).await[1].as_u64().unwrap()
}

#[tokio::test]
async fn a_page_gets_each_message_once_whatever_happens_between_it_and_redis() {
    let more = |builder: Builder| builder.workers(2).endpoint_toml(KEPT).extra_toml(REPLAY);
    let mut stage = Stage::start_with(more).await;
    has_log(&stage.redis).await;
    let dir = tempfile::tempdir().unwrap();
    let (nginx, site) = secure(dir.path(), &stage.webws.socket()).await;
    let network = Proxy::start(site.rsplit(':').next().unwrap().parse().unwrap()).await;
    let site = network.url().replace("redis:", "https:");
    let browser = Browser::start().await;
    listen(&browser, &site, "b").await;
    let (stop, producer) = count_up(&stage.redis);
    let all = async || browser.execute("return sessionStorage.getItem('all') ?? ''").await.as_str().unwrap().to_owned();
    let goes_on = async |what: &str| {
        let before = all().await.len();
        until(&format!("more comes {what}"), START, async || all().await.len() > before).await;
    };
    goes_on("at first").await;

    browser.set_network(Network::Offline).await;
    network.reset();
    let failed = async || state(&browser).await[2].clone();
    until("it has come back in vain", START, async || failed().await == json!([0, 0])).await;
    browser.set_network(Network::Online).await;
    let opened = is_back(&browser, "back from offline", 1).await;
    goes_on("behind it").await;

    nginx.reload();
    stage.succeeds().await;
    stage.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    goes_on("on the same stream").await;
    assert_eq!(state(&browser).await[1], opened, "neither reload, upgrade nor a lost link is noticed");

    let _nginx = nginx.restart().await;
    is_back(&browser, "back from nginx' restart", opened).await;
    goes_on("behind it").await;

    browser.client().goto("about:blank").await.unwrap();
    lasting(Duration::from_secs(1)).await;
    listen(&browser, &site, "b").await;
    goes_on("on the next page").await;
    stop.send(()).unwrap();
    let count = producer.await.unwrap();
    let expected: String = (0..count).map(|n| format!("{n} ")).collect();
    let is_complete = holds_within(START, async || all().await.len() >= expected.len()).await;
    assert_eq!((is_complete, all().await), (true, expected));
}

#[tokio::test]
async fn a_page_outlives_a_server_that_is_stopped_and_gets_what_it_missed_meanwhile() {
    let redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let listening = listen_in(dir.path());
    let config = format!("listen = [{listening:?}]\nbroker = {:?}\n{REPLAY}\n[[endpoint]]\n{KEPT}\n", redis.url());
    std::fs::write(dir.path().join("webws.toml"), config).unwrap();
    let arguments = ["run", "--config", "webws.toml"];
    let program = Program::start(dir.path(), &arguments, &[]).await;
    has_log(&redis).await;
    let (_nginx, site) = secure(dir.path(), &socket_in(dir.path())).await;
    let browser = Browser::start().await;
    listen(&browser, &site, "a").await;
    redis.publish(b"chat:a", b"one").await;
    let mut expected = vec![json!(["message", "one"])];
    sees(&browser, &expected.clone().into()).await;
    program.stop().await;
    for n in 0..20 {
        redis.publish(b"chat:a", format!("missed {n}").as_bytes()).await;
        expected.push(json!(["message", format!("missed {n}")]));
    }
    // It comes back in vain, and does not give up.
    let failed = async || state(&browser).await[2].clone();
    until("it has come back in vain", START, async || failed().await.as_array().unwrap().len() > 1).await;
    assert_eq!(failed().await, json!([0, 0]));
    let _next = Program::start(dir.path(), &arguments, &[]).await;
    sees(&browser, &expected.into()).await;
}

#[tokio::test]
async fn a_page_that_is_opened_while_redis_is_away_gets_its_stream_when_redis_is_back() {
    let mut redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml("path = \"/webws\"").start().await;
    let dir = tempfile::tempdir().unwrap();
    let (_nginx, site) = secure(dir.path(), &webws.socket()).await;
    let browser = Browser::start().await;
    redis.kill();
    until("webws has noticed", START, async || !webws.is_ready().await).await;
    open(&browser, &site, "a").await;
    let failed = async || state(&browser).await[2].clone();
    until("it is refused", START, async || failed().await == json!([0])).await;
    redis.start_again().await;
    until("somebody listens", START, async || redis.numsub(b"chat:a").await > 0).await;
    redis.publish(b"chat:a", b"at last").await;
    sees(&browser, &json!([["message", "at last"]])).await;
}
