//! The example in examples/tokens: a page that comes late, is loaded again and loses its connection shows a whole
//! answer, each token once.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{START, until};

const EXAMPLE: &str = include_str!("../../examples/tokens/webws.toml");

/// Webws with the example's endpoint, behind the shipped nginx.conf, and the address of the example's page.
async fn start(redis: &Redis) -> (Webws, Nginx, String) {
    let (_, endpoint) = EXAMPLE.split_once("[[endpoint]]\n").unwrap();
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(endpoint).start().await;
    let nginx = Nginx::start_complete(&webws.socket(), |_, text| text).await;
    let page = format!("http://{}/tokens/?answer=42", nginx.addr());
    (webws, nginx, page)
}

/// The example's producer.
fn produce(redis: &Redis, pause: &str) -> tokio::process::Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tokens/produce.sh");
    let mut command = tokio::process::Command::new(script);
    command.args(["42", "-p", &redis.port().to_string()]).env("PAUSE", pause);
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

async fn text(browser: &Browser, id: &str) -> String {
    let text = browser.execute(&format!("return document.getElementById('{id}').textContent")).await;
    text.as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_page_that_is_loaded_again_in_the_middle_of_an_answer_shows_all_of_it_once() {
    let redis = Redis::start().await;
    let (_webws, nginx, page) = start(&redis).await;
    let spy = redis.spy(b"answer:42").await;
    let browser = Browser::start().await;
    browser.client().goto(&page).await.unwrap();
    until("the page listens", START, async || redis.numsub(b"answer:42").await > 0).await;
    let mut producer = produce(&redis, "0.03");
    let has = async |tokens: usize| text(&browser, "answer").await.split_whitespace().count() >= tokens;
    until("the answer begins", START, async || has(10).await).await;
    browser.client().refresh().await.unwrap();
    until("more of it", START, async || has(30).await).await;
    // A second reader comes in the middle.
    let window = browser.client().new_window(true).await.unwrap();
    browser.client().switch_to_window(window.handle).await.unwrap();
    browser.client().goto(&page).await.unwrap();
    until("more of it in the second tab", START, async || has(50).await).await;
    let nginx = nginx.restart().await;
    browser.client().refresh().await.unwrap();
    assert!(producer.wait().await.unwrap().success());
    let payloads = spy.seen().into_iter().map(|payload| serde_json::from_slice::<Value>(&payload).unwrap());
    let tokens: String = payloads.filter_map(|payload| payload["token"].as_str().map(str::to_owned)).collect();
    let count = tokens.split_whitespace().count();
    assert!(count > 100, "{tokens}");
    for window in browser.client().windows().await.unwrap() {
        browser.client().switch_to_window(window).await.unwrap();
        let is_complete = async || text(&browser, "status").await == format!("complete: {count} tokens");
        until("the answer is complete", START, is_complete).await;
        assert_eq!(text(&browser, "answer").await, tokens);
    }
    drop(nginx);
}
