//! Promise: the page shows its position, drops its connection on demand, comes back with its position, and says what it
//! got of what it missed, over each transport that has positions.

use std::path::Path;

use fantoccini::Locator;

use super::{Page, dev};
use crate::support::browser::Browser;
use crate::support::client::{Socket, Target};
use crate::support::http::request;
use crate::support::program::{Program, listen_in};
use crate::support::{START, free_port, until};

/// Transports with positions, by their names in the list.
const TRANSPORTS: [&str; 3] = ["events", "meta", "poll"];

const FEW: &str = "[[endpoint]]\npath = \"/few\"\nchannel = \"plain\"\nhistory = { messages = 2 }\n\
                   [[endpoint]]\npath = \"/none\"\nchannel = \"plain\"\nprefix = \"none:\"\n";

impl Page<'_> {
    async fn choose_transport(&self, name: &str) {
        self.0.client().find(Locator::Id("transport")).await.unwrap().select_by_value(name).await.unwrap();
    }

    async fn text(&self, id: &str) -> String {
        let script =
            format!("const e = document.getElementById('{id}'); return e.checkVisibility() ? e.innerText : ''");
        self.0.execute(&script).await.as_str().unwrap().to_owned()
    }

    async fn says(&self, id: &str, part: &str) {
        until(&format!("{id} says {part:?}"), START, async || self.text(id).await.contains(part)).await;
    }

    async fn transports(&self) -> Vec<String> {
        let listed = "return [...document.querySelectorAll('#transport option')].map(e => e.value)";
        serde_json::from_value(self.0.execute(listed).await).unwrap()
    }

    /// Opens the page at that hash.
    async fn open(&self, address: &str, hash: &str) {
        // The same page with another hash would not be loaded again.
        self.0.client().goto("about:blank").await.unwrap();
        self.0.client().goto(&format!("http://{address}/{hash}")).await.unwrap();
    }
}

async fn publish(address: &str, message: &str) {
    let socket = Socket::connect(&Target::Tcp(address.parse().unwrap())).await.unwrap();
    let head = format!("POST /dev/publish?channel=chat:room&message={message} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(request(&socket, head.as_bytes()).await.head.status, 200);
}

#[tokio::test]
async fn the_page_drops_its_connection_and_shows_what_was_recovered() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _program = dev(dir.path(), &format!("tcp:{address}")).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    for transport in TRANSPORTS {
        page.open(&address, "").await;
        page.choose("/plain").await;
        page.choose_transport(transport).await;
        page.says("position", "none yet").await;
        page.connect("/plain", "room").await;
        publish(&address, "seen").await;
        page.receives(&["seen"]).await;
        let position = page.text("position").await;
        assert!(position.len() > 10, "{position}");
        page.click("drop").await;
        page.has_state("reconnecting").await;
        for message in ["a", "b", "c"] {
            publish(&address, message).await;
        }
        page.click("connect").await;
        page.receives(&["seen", "a", "b", "c"]).await;
        page.says("recovered", "3 messages recovered").await;
        page.has_state("connected").await;
        assert_ne!(page.text("position").await, position);
        // It comes back by itself, too, and then nothing was missed.
        page.click("drop").await;
        page.says("recovered", "0 messages recovered").await;
        assert_eq!(page.lines("trouble").await, [""; 0]);

        // A page that comes late.
        page.open(&address, &format!("#channel=room&endpoint=/plain&transport={transport}")).await;
        page.click("oldest").await;
        page.click("connect").await;
        page.says("recovered", "messages recovered").await;
        let last = ["seen", "a", "b", "c"].map(str::to_owned);
        let has_all = async || page.lines("received").await.ends_with(&last);
        until("what was kept is shown", START, has_all).await;
    }
    // WebSockets as browsers have always had them.
    page.click("disconnect").await;
    page.has_state("disconnected").await;
    page.choose_transport("websocket").await;
    assert_eq!((page.text("position").await, page.text("oldest-label").await), (String::new(), String::new()));
}

async fn with_few(dir: &Path, address: &str) -> Program {
    std::fs::write(dir.join("webws.toml"), format!("broker = \"memory\"\nworkers = 1\n{FEW}")).unwrap();
    let arguments =
        ["dev", "--config", "webws.toml", "--listen", &format!("tcp:{address}"), "--listen", &listen_in(dir)];
    Program::start(dir, &arguments, &[]).await
}

#[tokio::test]
async fn the_page_says_that_messages_may_be_missing_and_where_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let _program = with_few(dir.path(), &address).await;
    let browser = Browser::start().await;
    let page = Page(&browser);
    for transport in TRANSPORTS {
        page.open(&address, &format!("#channel=room&endpoint=/few&transport={transport}&connect=1")).await;
        page.has_state("connected").await;
        publish(&address, "seen").await;
        page.receives(&["seen"]).await;
        page.click("drop").await;
        page.has_state("reconnecting").await;
        for message in ["a", "b", "c"] {
            publish(&address, message).await;
        }
        page.click("connect").await;
        page.says("recovered", "may be missing: gap").await;
        page.has_state("connected").await;
        publish(&address, "live").await;
        page.receives(&["seen", "live"]).await;
        page.click("disconnect").await;
    }
    page.says("wire", "History: the last 2 messages").await;
    page.choose("/none").await;
    page.says("wire", "No history").await;
    assert_eq!(page.transports().await, ["websocket", "events"]);
    page.choose_transport("events").await;
    assert_eq!(page.text("position").await, "");
    page.connect("/none", "room").await;
    page.click("drop").await;
    page.has_state("reconnecting").await;
    page.click("connect").await;
    page.has_state("connected").await;
}
