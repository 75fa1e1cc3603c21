//! Promise: an nginx whose structs are not where the script looks for them logs one error, proxies from then on, and
//! never crashes.

use super::away::{assert_proxied, complaints};
use super::{PATH, is_straight};
use crate::support::START;
use crate::support::client::Client;
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;

/// Each is something in the script, and what is wrong in its place.
const WRONG: [(&str, &str, &str); 9] = [
    ("no signature", "cast(\"uint32_t *\", r)[0] ~= 0x50545448 then return false", "true then return false"),
    (
        "the connection behind its place",
        "pointer(r, 8), pointer(r, at)\n    if not is_readable(c",
        "pointer(r, 16), pointer(r, at)\n    if not is_readable(c",
    ),
    (
        "the connection far away",
        "pointer(r, 8), pointer(r, at)\n    if not is_readable(c",
        "pointer(r, 1000), pointer(r, at)\n    if not is_readable(c",
    ),
    (
        "no pointer at all",
        "pointer(r, 8), pointer(r, at)\n    if not is_readable(c",
        "cast(\"const uint8_t *\", 1), pointer(r, at)\n    if not is_readable(c",
    ),
    ("no way back", "pointer(c, 0) ~= r then return false", "pointer(c, 8) ~= r then return false"),
    ("the header before its place", "88 or 96", "80 or 88"),
    ("the header behind its place", "88 or 96", "96 or 104"),
    ("the descriptor before its place", "c + 24", "c + 20"),
    ("the descriptor behind its place", "c + 24", "c + 32"),
];

#[tokio::test]
async fn a_layout_that_is_not_as_expected_is_one_error_and_everything_is_proxied() {
    for (what, right, wrong) in WRONG {
        let mut webws = Webws::builder().broker("memory").workers(1).straight().start().await;
        let edit = |name: &str, text: String| match name {
            "webws-straight.lua" => {
                assert_eq!(text.matches(right).count(), 1, "{what}: the script no longer has {right}");
                text.replace(right, wrong)
            }
            _ => text,
        };
        let nginx = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), edit).await;
        assert_proxied(&nginx, 1).await;
        let worker = nginx.workers();
        assert_proxied(&nginx, 4).await;
        let (said, log) = (complaints(&nginx), nginx.error_log());
        assert!(said.len() == 1 && said[0].contains("[error]"), "{what}: {log}");
        assert!(said[0].contains("proxies all requests from now on"), "{what}: {said:?}");
        assert!(nginx.workers() == worker && !log.contains("exited on signal"), "{what}: {log}");
        webws.term();
        webws.wait_exit(START).await;
        assert_eq!((webws.counter("handoffs"), webws.counter("proxied")), (0, 5), "{what}");
        assert!(webws.log().contains(" proxied_layout=5"), "{what}: {}", webws.log());
    }
}

/// A worker without the symbol that makes nginx forget a connection, or on a machine that the script does not know.
#[tokio::test]
async fn an_nginx_without_what_the_script_needs_proxies() {
    for (what, right, wrong) in [
        ("another machine", "ffi.arch == \"arm64\")", "ffi.arch == \"arm64\") or true"),
        (
            "no such symbol",
            "extern webws_event_actions ngx_event_actions;",
            "extern webws_event_actions ngx_no_actions;",
        ),
        (
            "declarations that LuaJIT refuses",
            "extern webws_event_actions ngx_event_actions;",
            "extern webws_nothing ngx;",
        ),
    ] {
        let webws = Webws::builder().broker("memory").workers(1).straight().start().await;
        let edit = |name: &str, text: String| match name {
            "webws-straight.lua" => {
                assert_eq!(text.matches(right).count(), 1, "{what}: the script no longer has {right}");
                text.replace(right, wrong)
            }
            _ => text,
        };
        let nginx = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), edit).await;
        assert_proxied(&nginx, 5).await;
        assert_eq!(complaints(&nginx).len(), 1, "{what}: {}", nginx.error_log());
    }
}

/// What is checked before each hand-off, not only before the first one.
#[tokio::test]
async fn a_connection_that_is_not_the_clients_is_proxied_alone() {
    let webws = Webws::builder().broker("memory").workers(1).straight().start().await;
    let edit = |name: &str, text: String| match name {
        // As if nginx named another client than the one of the socket.
        "webws-straight.lua" => {
            text.replace("local text, port = ", "if var.arg_other then return false end\n    local text, port = ")
        }
        _ => text,
    };
    let nginx = Nginx::start_straight(Site::default(), (&webws.socket(), &webws.handoff()), edit).await;
    for (path, is_handed_off) in [(PATH, true), ("/webws?channel=%22zhang%22&other=1", false), (PATH, true)] {
        let client = Client::connect(&nginx.target(), path).await;
        assert_eq!(is_straight(client.head()), is_handed_off, "{path}");
        client.close().await;
    }
    assert_eq!(complaints(&nginx), [""; 0]);
}
