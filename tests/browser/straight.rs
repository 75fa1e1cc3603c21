//! A browser whose connections nginx hands off, with the complete configuration that is shipped.

use serde_json::json;

use super::{Page, redis_cli_publish};
use crate::handover::upgrade;
use crate::support::browser::Browser;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{START, holds_within, until};

const LISTEN: &str = "window.seen = []; window.opened = 0; window.failed = 0;
    window.source = new EventSource('/webws?channel=%22zhang%22');
    source.onopen = () => window.opened++;
    source.onerror = () => window.failed++;
    source.onmessage = (event) => window.seen.push(event.data);";

#[tokio::test]
async fn a_browser_comes_straight_with_both_transports_and_notices_neither_upgrade_nor_reload() {
    let redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).straight().exchangeable().start().await;
    let nginx = Nginx::start_complete_straight(&webws.socket(), &webws.handoff()).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{}/", nginx.addr())).await.unwrap();
    page.connect("/webws", "zhang").await;
    browser.execute(LISTEN).await;
    let state = async || browser.execute("return [source.readyState, window.opened, window.failed]").await;
    until("the source is open", START, async || state().await == json!([1, 1, 0])).await;
    let straight = || nginx.access_log().lines().filter(|line| line.contains("\"status\":444")).count();
    until("both are handed off", START, async || straight() == 2).await;
    let sees = async |expected: &[&str]| {
        let seen = async || browser.execute("return window.seen").await;
        assert!(holds_within(START, async || seen().await == json!(expected)).await, "{}", seen().await);
    };

    assert!(redis_cli_publish(&redis, "chat:zhang", "from Redis, ").await > 0);
    page.receives(&["from Redis, zhang"]).await;
    page.send("from the page, ").await;
    page.receives(&["from Redis, zhang", "from the page, zhang"]).await;
    sees(&["from Redis, ", "from the page, "]).await;
    nginx.reload();
    for turn in 0..2 {
        let (is_done, text) = upgrade(&webws).await;
        assert!(is_done, "turn {turn}: {text}\n{}", webws.log());
    }
    page.send("after the upgrades, ").await;
    page.receives(&["from Redis, zhang", "from the page, zhang", "after the upgrades, zhang"]).await;
    sees(&["from Redis, ", "from the page, ", "after the upgrades, "]).await;
    page.never_lost_its_connection().await;
    assert_eq!(state().await, json!([1, 1, 0]), "the same stream");
    assert_eq!(straight(), 2, "{}", nginx.access_log());
}
