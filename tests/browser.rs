//! Promise: the page that comes with webws works in a real browser, through a real nginx and with a real
//! Redis, which may restart without the page noticing.
//!
//! `access` is about the keyboard and assistive technology, `positions` about clients that come back, `straight` about
//! clients that nginx hands off.

mod access;
mod positions;
mod straight;

use fantoccini::Locator;
use fantoccini::wd::WindowHandle;
use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::nginx::Nginx;
use crate::support::program::{Program, listen_in};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, free_port, until};

/// The test page in the browser's current window.
struct Page<'a>(&'a Browser);

impl Page<'_> {
    async fn click(&self, id: &str) {
        self.0.client().find(Locator::Id(id)).await.unwrap().click().await.unwrap();
    }

    /// Types over what is there.
    async fn fill(&self, id: &str, text: &str) {
        let field = self.0.client().find(Locator::Id(id)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    async fn choose(&self, endpoint: &str) {
        self.0.client().find(Locator::Id("endpoint")).await.unwrap().select_by_value(endpoint).await.unwrap();
    }

    async fn has_state(&self, state: &str) {
        let state_is = async || self.0.execute("return document.getElementById('state').dataset.state").await == state;
        until(&format!("the page is {state}"), START, state_is).await;
    }

    async fn connect(&self, endpoint: &str, channel: &str) {
        self.choose(endpoint).await;
        self.fill("channel", channel).await;
        self.click("connect").await;
        self.has_state("connected").await;
    }

    async fn send(&self, text: &str) {
        self.fill("message", text).await;
        self.click("send").await;
    }

    /// The log's lines of that kind, as text.
    async fn lines(&self, kind: &str) -> Vec<String> {
        let script = format!("return [...document.querySelectorAll('#log li.{kind} .text')].map(e => e.textContent)");
        let lines = self.0.execute(&script).await;
        lines.as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    /// Waits until these and no other texts were received.
    async fn receives(&self, texts: &[&str]) {
        until(&format!("{texts:?} are received"), START, async || self.lines("received").await == texts).await;
    }

    /// Nothing went wrong, and it is still the first connection.
    async fn never_lost_its_connection(&self) {
        assert_eq!(self.lines("trouble").await, [""; 0]);
        self.has_state("connected").await;
        let connected = self.lines("state").await;
        assert_eq!(connected.iter().filter(|line| line.starts_with("connected to")).count(), 1, "{connected:?}");
    }
}

/// Publishes as an operator would; returns how many received it.
async fn redis_cli_publish(redis: &Redis, channel: &str, payload: &str) -> usize {
    let mut command = tokio::process::Command::new("redis-cli");
    command.args(["-p", &redis.port().to_string(), "PUBLISH", channel, payload]);
    let told = command.output().await;
    let told = told.unwrap_or_else(|e| panic!("cannot start redis-cli: {e}; get it with: apt-get install redis-tools"));
    let receivers = String::from_utf8_lossy(&told.stdout).trim().trim_start_matches("(integer) ").parse();
    receivers.unwrap_or_else(|e| panic!("{e}: {told:?}"))
}

#[tokio::test]
async fn a_browser_talks_through_nginx_and_redis_and_survives_a_restart_of_redis() {
    let mut redis = Redis::start().await;
    let webws = Webws::on(&redis.url()).await;
    let nginx = Nginx::start_complete(&webws.socket(), |_, text| text).await;
    let spy = redis.spy(b"chat:zhang").await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{}/", nginx.addr())).await.unwrap();
    page.has_state("disconnected").await;

    page.connect("/webws", "zhang").await;
    // The spy is one, the page the other.
    assert_eq!(redis_cli_publish(&redis, "chat:zhang", "from Redis, ").await, 2);
    page.receives(&["from Redis, zhang"]).await;
    page.send("from the page, ").await;
    page.receives(&["from Redis, zhang", "from the page, zhang"]).await;
    until("Redis has both", SOON, async || spy.seen() == ["from Redis, ", "from the page, "]).await;

    redis.has_answered().await;
    redis.kill();
    // What is sent now waits until Redis is back.
    page.send("meanwhile, ").await;
    redis.start_again().await;
    let before = ["from Redis, zhang", "from the page, zhang", "meanwhile, zhang"];
    page.receives(&before).await;
    assert_eq!(redis_cli_publish(&redis, "chat:zhang", "after the restart, ").await, 1);
    page.receives(&[&before[..], &["after the restart, zhang"]].concat()).await;
    page.never_lost_its_connection().await;

    page.click("disconnect").await;
    page.has_state("disconnected").await;
    let closed = async || page.lines("state").await.into_iter().find(|line| line.starts_with("closed after"));
    until("the close is logged", START, async || closed().await.is_some()).await;
    let closed = closed().await.unwrap();
    // The lua wire answers a close without a code, which a browser calls 1005.
    assert!(closed.contains(": 1005"), "{closed}");
    until("nobody is subscribed", START, async || redis.numsub(b"chat:zhang").await == 0).await;

    // A name that needs every kind of escaping.
    page.connect("/webws", "zh\"ä\\n +&%#1").await;
    assert_eq!(redis_cli_publish(&redis, "chat:zh\"ä\\n +&%#1", "odd: ").await, 1);
    page.receives(&[&before[..], &["after the restart, zhang", "odd: zh\"ä\\n +&%#1"]].concat()).await;
}

/// Opens the page's link to a second tab and returns both windows.
async fn second_tab(browser: &Browser) -> (WindowHandle, WindowHandle) {
    let first = browser.client().window().await.unwrap();
    Page(browser).click("twin").await;
    until("a second tab is open", START, async || browser.client().windows().await.unwrap().len() == 2).await;
    let second = browser.client().windows().await.unwrap().into_iter().find(|window| *window != first).unwrap();
    (first, second)
}

async fn dev(dir: &std::path::Path, address: &str) -> Program {
    Program::start(dir, &["dev", "--listen", address, "--listen", &listen_in(dir)], &[]).await
}

#[tokio::test]
async fn two_tabs_talk_with_nothing_but_webws_dev_on_both_endpoints() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let program = dev(dir.path(), &format!("tcp:{address}")).await;
    assert_eq!(program.start_line().await["broker"], "memory");
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{address}/")).await.unwrap();

    for (endpoint, suffix) in [("/webws", "room"), ("/plain", "")] {
        page.connect(endpoint, "room").await;
        let (first, second) = second_tab(&browser).await;
        browser.client().switch_to_window(second).await.unwrap();
        // The link carries the endpoint and the channel, and connects.
        page.has_state("connected").await;
        page.send("from the second, ").await;
        let told = format!("from the second, {suffix}");
        page.receives(&[&told]).await;
        browser.client().switch_to_window(first.clone()).await.unwrap();
        page.receives(&[&told]).await;
        page.send("from the first, ").await;
        let answer = format!("from the first, {suffix}");
        page.receives(&[&told, &answer]).await;
        browser.client().switch_to_window(second_of(&browser, &first).await).await.unwrap();
        page.receives(&[&told, &answer]).await;
        page.never_lost_its_connection().await;
        browser.client().close_window().await.unwrap();
        browser.client().switch_to_window(first).await.unwrap();
        page.never_lost_its_connection().await;
        page.click("disconnect").await;
        page.has_state("disconnected").await;
        page.click("clear").await;
    }
    // No outside asset.
    let loaded = browser.execute("return performance.getEntriesByType('resource').map(e => e.name).sort()").await;
    let files = ["log.js", "page.css", "page.js", "target.js", "transport.js"];
    let expected: Value = files.map(|file| format!("http://{address}/{file}")).to_vec().into();
    assert_eq!(loaded, expected, "the page loads something else");
}

async fn second_of(browser: &Browser, first: &WindowHandle) -> WindowHandle {
    browser.client().windows().await.unwrap().into_iter().find(|window| window != first).unwrap()
}

#[tokio::test]
async fn the_page_says_that_it_reconnects_and_does() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    // An address with everything in it connects by itself.
    browser.client().goto(&format!("http://{address}/#channel=room&endpoint=/plain&connect=1")).await.unwrap();
    page.has_state("connected").await;
    program.stop().await;
    page.has_state("reconnecting").await;
    let trouble = page.lines("trouble").await;
    assert!(trouble[0].starts_with("closed: 1001"), "{trouble:?}");
    let program = dev(dir.path(), &format!("tcp:{address}")).await;
    page.has_state("connected").await;
    page.send("here again").await;
    page.receives(&["here again"]).await;
    program.stop().await;
    // Whoever does not want to wait gives up.
    page.has_state("reconnecting").await;
    page.click("disconnect").await;
    page.has_state("disconnected").await;
}
