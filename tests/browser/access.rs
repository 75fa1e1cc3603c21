//! Promise: the page is usable by keyboard and with a screen reader: the focus is never lost, what cannot be
//! sent is said, and axe has no serious finding.

use fantoccini::Locator;
use serde_json::{Value, json};

use super::{Page, dev};
use crate::support::browser::Browser;
use crate::support::{START, free_port, until};

const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";

impl Page<'_> {
    /// Types into whatever has the focus.
    async fn press(&self, keys: &str) {
        self.0.client().active_element().await.unwrap().send_keys(keys).await.unwrap();
    }

    async fn has_focus(&self, id: &str) {
        let focused = async || self.0.execute("return document.activeElement.id").await == id;
        until(&format!("{id} has the focus"), START, focused).await;
    }

    async fn has_no_problem(&self) {
        let script = "return document.getElementById('problem').textContent";
        until("no problem is said", START, async || self.0.execute(script).await == "").await;
    }

    async fn says_problem(&self, part: &str) {
        let script = "return document.getElementById('problem').textContent";
        let says = async || self.0.execute(script).await.as_str().unwrap().contains(part);
        until(&format!("the page says {part:?}"), START, says).await;
    }
}

#[tokio::test]
async fn all_of_it_works_by_keyboard_and_the_focus_is_never_lost() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{address}/")).await.unwrap();
    browser.client().find(Locator::Id("channel")).await.unwrap().click().await.unwrap();
    page.press(TAB).await;
    page.has_focus("connect").await;
    page.press(ENTER).await;
    page.has_state("connected").await;
    page.has_focus("connect").await;
    // Once more is nothing, and no loss.
    page.press(ENTER).await;
    page.never_lost_its_connection().await;

    browser.client().find(Locator::Id("message")).await.unwrap().click().await.unwrap();
    page.press(ENTER).await;
    page.says_problem("the message is empty").await;
    let too_long = "const m = document.getElementById('message'); m.value = 'ä'.repeat(32768); \
                    m.dispatchEvent(new Event('input'));";
    browser.execute(too_long).await;
    page.has_no_problem().await;
    page.press(ENTER).await;
    page.says_problem("65536 bytes, and one message holds at most 65535").await;
    page.has_focus("message").await;
    page.fill("message", "short").await;
    page.press(ENTER).await;
    page.receives(&["shortzhang"]).await;
    assert_eq!(page.lines("sent").await, ["short"]);
    page.has_no_problem().await;
    page.press(TAB).await;
    page.has_focus("send").await;
    // The connection goes, and with it the use of the button that has the focus.
    program.stop().await;
    page.has_state("reconnecting").await;
    page.has_focus("send").await;
    page.press(ENTER).await;
    page.says_problem("there is no connection").await;
    browser.execute("document.getElementById('disconnect').focus()").await;
    page.press(ENTER).await;
    page.has_state("disconnected").await;
    page.has_focus("channel").await;
}

#[tokio::test]
async fn a_transport_is_chosen_and_the_connection_dropped_by_keyboard() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{address}/")).await.unwrap();
    browser.execute("document.getElementById('endpoint').focus()").await;
    page.press(TAB).await;
    page.has_focus("transport").await;
    page.press("Server").await;
    for next in ["channel", "connect", "disconnect", "drop", "oldest"] {
        page.press(TAB).await;
        page.has_focus(next).await;
    }
    page.press(" ").await;
    browser.execute("document.getElementById('channel').focus()").await;
    page.press(ENTER).await;
    page.has_state("connected").await;
    page.has_focus("channel").await;
    browser.execute("document.getElementById('drop').focus()").await;
    page.press(ENTER).await;
    page.has_state("reconnecting").await;
    page.has_focus("drop").await;
    // Once more is nothing.
    page.press(ENTER).await;
    page.has_state("connected").await;
    assert_eq!(page.lines("trouble").await, [""; 0]);
}

#[tokio::test]
async fn the_page_shows_how_to_publish_on_its_channel_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{address}/")).await.unwrap();
    page.connect("/webws", "it's \"ä").await;
    let line = browser.execute("return document.getElementById('shell').textContent").await;
    let line = line.as_str().unwrap();
    assert!(line.starts_with("curl ") && line.lines().count() == 1, "{line}");
    let told = tokio::process::Command::new("sh").args(["-c", line]).output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout), "published on chat:it's \"ä\n", "{line} {told:?}");
    page.receives(&["helloit's \"ä"]).await;
}

#[tokio::test]
async fn axe_has_no_serious_finding() {
    if std::env::var_os("WEBWS_TEST_WITHOUT_AXE").is_some() {
        eprintln!("the page is not judged by axe: WEBWS_TEST_WITHOUT_AXE is set");
        return;
    }
    let axe = std::env::var_os("AXE_CORE").expect(
        "AXE_CORE names no axe.min.js. Get it with: cd target && npm pack axe-core@4.10.3 && tar -xzf axe-core-4.10.3.tgz \
         && export AXE_CORE=$PWD/package/axe.min.js; or use tests/run.sh, which does so. Without axe: \
         WEBWS_TEST_WITHOUT_AXE=1",
    );
    let axe = std::fs::read_to_string(&axe).unwrap_or_else(|e| panic!("{}: {e}", axe.display()));
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    browser.client().goto(&format!("http://{address}/")).await.unwrap();
    let findings = async || {
        let script = format!(
            "{axe}\nconst done = arguments[arguments.length - 1];\n\
             axe.run().then((found) => done(found.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html)])));"
        );
        let found: Value = browser.client().execute_async(&script, Vec::new()).await.unwrap();
        let serious = |finding: &&Value| finding[0] == "serious" || finding[0] == "critical";
        found.as_array().unwrap().iter().filter(serious).cloned().collect::<Vec<_>>()
    };
    assert_eq!(json!(findings().await), json!([]), "at rest");
    page.connect("/webws", "zhang").await;
    page.send("a message").await;
    page.receives(&["a messagezhang"]).await;
    page.send("").await;
    page.says_problem("empty").await;
    browser.execute("document.getElementById('outside').open = true").await;
    assert_eq!(json!(findings().await), json!([]), "connected");
    page.click("disconnect").await;
    browser.execute("document.getElementById('transport').value = 'events'").await;
    page.connect("/plain", "zhang").await;
    page.click("drop").await;
    page.has_state("reconnecting").await;
    assert_eq!(json!(findings().await), json!([]), "dropped");
    for width in [360, 1_280] {
        browser.client().set_window_size(width, 800).await.unwrap();
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.execute(overflow).await, 0, "{width}");
    }
}
