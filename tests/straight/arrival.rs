//! Promise: `webws check --nginx` says of a running pair whether clients come straight or proxied, and why not.

use std::path::Path;

use super::{PATH, final_count, nginx_for, unchanged};
use crate::support::http::handshake;
use crate::support::nginx::{Nginx, Site};
use crate::support::program::{run, told};
use crate::support::webws::Webws;

/// The exit code, and what it says.
async fn check(webws: &Webws, url: &str) -> (Option<i32>, String) {
    let output = run(webws.dir(), &["check", "--nginx", url, "--config", "webws.toml"], &[]).await;
    let (code, stdout, stderr) = told(&output);
    let lines = (stdout.lines().count(), stderr.lines().count());
    assert_eq!(lines, if code == Some(0) { (1, 0) } else { (0, 1) }, "{stdout}{stderr}");
    (code, stdout + &stderr)
}

fn url(nginx: &Nginx) -> String {
    format!("http://{}/webws", nginx.addr())
}

async fn start() -> Webws {
    Webws::builder().broker("memory").straight().exchangeable().start().await
}

#[tokio::test]
async fn an_operator_is_told_how_clients_come() {
    let mut webws = start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    let plain = Nginx::start(&webws.socket()).await;
    for url in [url(&nginx), url(&nginx) + "/below?channel=1", url(&nginx).replace("http", "ws")] {
        let (code, said) = check(&webws, &url).await;
        assert!(code == Some(0) && said.starts_with("straight: "), "{url}: {said}");
    }
    let (code, said) = check(&webws, &url(&plain)).await;
    assert!(code == Some(1) && said.contains("proxied: ") && said.contains("webws-straight-location.conf"), "{said}");
    // A worker that has a connection to the socket already needs no file.
    std::fs::remove_file(webws.handoff()).unwrap();
    let (code, said) = check(&webws, &url(&nginx)).await;
    assert!(code == Some(0) && said.starts_with("straight: "), "{said}");
    let nginx = nginx_for(&webws, Site::default()).await;
    let (code, said) = check(&webws, &url(&nginx)).await;
    assert!(code == Some(1) && said.contains("proxied: away: ") && said.contains("listen"), "{said}");
    // Neither is a session, or a refusal.
    assert_eq!(final_count(&mut webws, "sessions_opened").await, 0);
    assert_eq!((webws.counter("handshakes_refused"), webws.counter("handoffs")), (0, 4));
    assert!(webws.warnings().is_empty(), "{}", webws.log());
}

#[tokio::test]
async fn an_operator_is_told_what_stands_in_the_way_of_the_question() {
    let (webws, other) = (start().await, start().await);
    let guard = Site { server: "auth_request /_auth; location = /_auth { return 401; }", ..Site::default() };
    let (guarded, elsewhere) = (nginx_for(&webws, guard).await, nginx_for(&other, Site::default()).await);
    let wrong_layout = |name: &str, text: String| match name {
        "webws-straight.lua" => text.replace("88 or 96", "80 or 88"),
        _ => text,
    };
    let odd = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), wrong_layout).await;
    let closed = format!("http://127.0.0.1:{}/webws", crate::support::free_port());
    for (url, why) in [
        (url(&guarded), "answered with 401 "),
        (format!("http://{}/nothing", guarded.addr()), "answered with 401 "),
        (format!("http://{}/nothing", elsewhere.addr()), "answered with 404 "),
        (url(&elsewhere), "answered with 400 "),
        (url(&odd), "proxied: layout: "),
        (closed, "cannot be asked"),
    ] {
        let (code, said) = check(&webws, &url).await;
        assert!(code == Some(1) && said.contains(why), "{url}: {said}");
    }
    // No webws, or none at that socket.
    let dir = tempfile::tempdir().unwrap();
    let ask = async |at: &Path, arguments: &[&str]| told(&run(at, &[&["check"], arguments].concat(), &[]).await);
    let (code, _, said) = ask(dir.path(), &["--nginx", &url(&odd), "--control", "control.sock"]).await;
    assert!(code == Some(1) && said.contains("is webws running"), "{said}");
    for (arguments, why) in [
        (&["--nginx", "https://localhost/webws", "--control", "control.sock"][..], "TLS"),
        (&["--nginx", "localhost", "--control", "control.sock"], "relative"),
        (&["--nginx", "--quiet", "--config", "webws.toml"], "cannot be used with"),
        (&["--control", "control.sock", "--config", "webws.toml"], "--nginx"),
    ] {
        let (code, _, said) = ask(webws.dir(), arguments).await;
        assert!(code == Some(64) && said.contains(why), "{arguments:?}: {said}");
    }
}

/// The question is a handshake like any other, and only the process that announced it gets its answer.
#[tokio::test]
async fn a_stranger_is_told_nothing() {
    let webws = start().await;
    let nginx = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), unchanged).await;
    let before = handshake(&nginx.target(), PATH).await;
    let (code, said) = check(&webws, &url(&nginx)).await;
    assert_eq!(code, Some(0), "{said}");
    let after = handshake(&nginx.target(), PATH).await;
    assert_eq!((before.head.status, &before.head.headers), (101, &after.head.headers));
    let refused = handshake(&nginx.target(), "/webws").await;
    assert!(refused.head.status == 400 && !refused.body.contains("straight"), "{refused:?}");
}
