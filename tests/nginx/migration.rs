//! Promise: the steps of webws-canary.conf lead from the Lua handler to the sidecar and back, with a real Lua
//! module: what guarded the handler guards both, and the way back brings everybody back.

use std::path::Path;

use nix::sys::signal::{Signal, kill};

use super::{PATH, change};
use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::http::{Answer, get, handshake, request};
use crate::support::nginx::{LUA, Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

/// What guarded the handler in its old location.
const ACCESS: &str = "access_by_lua_block { if ngx.var.cookie_session ~= 'yes' then return ngx.exit(403) end }";

/// In the handler's place: it says so.
const HANDLER: &str = "content_by_lua_block { ngx.status = 299 ngx.header.content_length = 12 ngx.say('the handler') }";

/// The steps of the migration, and what stands in `split_clients` before the handler's share.
fn migrated(share: &'static str, handler: &'static str) -> impl Fn(&str, String) -> String {
    move |name, text| match name {
        "webws-http.conf" => change(&text, "\n    1%  sidecar;", &format!("\n    {share}")),
        "webws-location.conf" => {
            let text = change(&text, "# if ($webws_variant = lua) ", "if ($webws_variant = lua) ");
            change(&text, "# include webws-access.conf;", "include webws-access.conf;")
        }
        "webws-canary.conf" => change(&text, "content_by_lua_file /etc/nginx/lua/webws.lua;", handler),
        "webws-access.conf" => format!("{text}{ACCESS}\n"),
        _ => text,
    }
}

async fn start(webws: &Webws, share: &'static str, handler: &'static str) -> Nginx {
    assert!(
        Path::new("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists(),
        "nginx has no Lua module: apt-get install libnginx-mod-http-lua"
    );
    let site = Site { main: LUA, server: "include {at}/webws-canary.conf;", ..Site::default() };
    Nginx::start_in(site, &webws.socket(), migrated(share, handler)).await
}

fn with_cookie() -> Vec<u8> {
    let request = String::from_utf8(upgrade_request(PATH)).unwrap();
    change(&request, "\r\n\r\n", "\r\nCookie: session=yes\r\n\r\n").into_bytes()
}

async fn allowed(target: &Target) -> Answer {
    request(&Socket::connect(target).await.unwrap(), &with_cookie()).await
}

async fn client(target: &Target) -> Client {
    Client::request(Socket::connect(target).await.unwrap(), &with_cookie()).await.expect("an upgrade")
}

#[tokio::test]
async fn what_guarded_the_handler_guards_both_at_every_share() {
    let webws = Webws::on("memory").await;
    for (share, served) in [("", 299), ("0.01%  sidecar;", 299), ("1%  sidecar;", 299), ("100%  sidecar;", 101)] {
        let nginx = start(&webws, share, HANDLER).await;
        for path in [PATH, "/webws/foo?channel=1"] {
            let refused = handshake(&nginx.target(), path).await;
            assert_eq!(refused.head.status, 403, "{share} {path}: {refused:?}");
        }
        assert_eq!(allowed(&nginx.target()).await.head.status, served, "{share}");
        // The handler's place is not public.
        assert_eq!(get(&nginx.target(), "/_webws_lua").await.head.status, 404);
    }
}

/// As handlers do: a link to Redis for each client, which stays when the client goes.
const LEAKING: &str = "content_by_lua_block {
        local link = ngx.socket.tcp()
        link:settimeout(1000000)
        assert(link:connect('127.0.0.1', REDIS))
        link:send('CLIENT SETNAME leaked\\r\\nSUBSCRIBE chat:zhang\\r\\n')
        ngx.status = 299
        ngx.say('the handler')
        ngx.flush(true)
        while link:receive() do end
    }";

async fn leaked(redis: &Redis) -> usize {
    redis.clients().await.iter().filter(|client| client.contains("name=leaked")).count()
}

/// Changes the share and reloads; returns when the new worker serves.
async fn set_share(nginx: &Nginx, from: &str, to: &str) {
    let path = nginx.dir().join("webws-http.conf");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(&text, from, to)).unwrap();
    let before = nginx.workers();
    nginx.reload();
    let changed = || nginx.workers().iter().any(|pid| !before.contains(pid));
    until("a new worker runs", START, async || changed()).await;
}

#[tokio::test]
async fn the_steps_lead_to_the_sidecar_and_back_with_every_client() {
    let redis = Redis::start().await;
    let mut webws = Webws::on(&redis.url()).await;
    let handler: &'static str = LEAKING.replace("REDIS", &redis.port().to_string()).leak();
    let nginx = start(&webws, "# 100%  sidecar;", handler).await;
    let served = async || {
        // The handler's answer has no end: its first line tells.
        let socket = Socket::connect(&nginx.target()).await.unwrap();
        socket.write(&with_cookie()).await.unwrap();
        let mut read = bytes::BytesMut::new();
        while !read.windows(2).any(|end| end == b"\r\n") {
            socket.read(&mut read).await.unwrap();
        }
        String::from_utf8_lossy(&read[9..12]).into_owned()
    };
    assert_eq!(served().await, "299");
    until("the handler has its link", SOON, async || leaked(&redis).await == 1).await;
    let old = nginx.workers();

    set_share(&nginx, "# 100%  sidecar;", "100%  sidecar;").await;
    until("the sidecar serves", START, async || served().await == "101").await;
    // The old worker may accept some more before it hears that it is old.
    let mut moved = client(&nginx.target()).await;
    while moved.head().status != 101 {
        moved = client(&nginx.target()).await;
    }
    // Its client has gone long ago; the old worker keeps the link, until it is ended.
    assert!(leaked(&redis).await > 0 && nginx.workers().contains(&old[0]));
    kill(old[0], Signal::SIGTERM).unwrap();
    until("the old worker is gone", START, async || !nginx.workers().contains(&old[0])).await;
    until("no link is left", START, async || leaked(&redis).await == 0).await;
    moved.send_text("here, ").await;
    moved.expect_text("here, zhang").await;

    set_share(&nginx, "100%  sidecar;", "# 100%  sidecar;").await;
    until("the handler serves", START, async || served().await == "299").await;
    // A reload brings nobody back; that the sidecar stops, does.
    moved.send_text("still here, ").await;
    moved.expect_text("still here, zhang").await;
    webws.term();
    moved.expect_close(1001, START).await;
    webws.wait_exit(START).await;
    assert_eq!(served().await, "299");
}
