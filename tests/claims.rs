//! Promise: an endpoint with `claims = "headers"` gives a client what nginx says, and no form of a request gains more.
//! Only trusted users are believed; what has expired is closed; a live upgrade takes nothing away and adds nothing.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::events::events_request;
use crate::support::http::{Answer, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, until};

const ALICE: &str = "/webws?channel=%22alice%22";
const BOB: &str = "/webws?channel=%22bob%22";

/// A site that knows its users by a cookie, and the service that `auth_request` asks.
const SITE: Site<'_> = Site {
    user: "",
    main: "",
    http: r#"
    map $cookie_session $known_user { default ""; a1 alice; b2 bob; }
    map $cookie_session $known_channels { default ""; a1 "rw:alice r:news*"; b2 "rw:bob"; }
    server {
        listen unix:{at}/auth.sock;
        location / {
            if ($known_user = "") { return 401; }
            add_header X-Webws-User $known_user;
            add_header X-Webws-Channels $known_channels;
            return 204;
        }
    }"#,
    server: r#"
    location = /_auth {
        internal;
        proxy_pass http://unix:{at}/auth.sock:/;
        proxy_pass_request_body off;
        proxy_set_header Content-Length "";
    }"#,
};

async fn start(redis: &Redis) -> Webws {
    let keys = "claims = \"headers\"\nno_origin = \"allow\"\n";
    Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .setting("socket_mode = \"0666\"")
        .setting("trusted_users = [\"root\"]")
        .endpoint_toml(keys)
        .endpoint_toml(&format!("path = \"/open\"\n{keys}claims_required = false"))
        .endpoint_toml("path = \"/strict\"\nclaims = \"headers\"")
        .exchangeable()
        .start()
        .await
}

/// Uncomments the include for the recipe of the README.
fn guarded(name: &str, text: String) -> String {
    match name {
        "webws-access.conf" => crate::readme::block("nginx", "auth_request_set").to_owned(),
        "webws-location.conf" | "webws-straight-location.conf" => {
            assert!(text.contains("    # include webws-access.conf;"));
            text.replace("    # include webws-access.conf;", "    include webws-access.conf;")
        }
        _ => text,
    }
}

fn with(request: &[u8], fields: &str) -> Vec<u8> {
    let text = std::str::from_utf8(request).unwrap();
    text.replace("Host: localhost\r\n", &format!("Host: localhost\r\n{fields}")).into_bytes()
}

fn claims(channels: &str, lifetime: Duration) -> String {
    let expires = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + lifetime;
    let expires = expires.as_secs();
    format!("X-Webws-User: u1\r\nX-Webws-Channels: {channels}\r\nX-Webws-Expires: {expires}\r\n")
}

async fn ask(target: &Target, path: &str, fields: &str) -> Answer {
    request(&Socket::connect(target).await.unwrap(), &with(&upgrade_request(path), fields)).await
}

async fn join(target: &Target, path: &str, fields: &str) -> Client {
    let socket = Socket::connect(target).await.unwrap();
    let client = Client::request(socket, &with(&upgrade_request(path), fields)).await.unwrap();
    assert_eq!(client.head().status, 101, "{:?}", client.head());
    client
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn behind_nginx_a_client_gets_what_its_user_may_have_and_nothing_else() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let nginx = Nginx::start_in(SITE, &webws.socket(), guarded).await;
    let target = nginx.target();
    let alice = "Cookie: session=a1\r\n";
    let mut own = join(&target, ALICE, alice).await;
    own.send_text("hello").await;
    own.expect_text("helloalice").await;
    let mut reader = join(&target, "/webws?channel=%22news/1%22", alice).await;
    reader.send_text("forbidden").await;
    reader.expect_close(1008, SOON).await;
    let forged = "X-Webws-User: bob\r\nX-Webws-Channels: rw:bob\r\nX_Webws_Channels: rw:bob\r\n";
    for (path, fields, status) in [
        (BOB, alice.to_owned(), 403),
        (BOB, format!("{alice}{forged}"), 403),
        (BOB, format!("{alice}Connection: X-Webws-Channels\r\n{forged}"), 403),
        (BOB, forged.to_owned(), 401),
        (BOB, String::new(), 401),
        ("/webws?CHANNEL=%22alice%22&channel=%22bob%22", alice.to_owned(), 400),
        ("/webws?channel=%22alice%22&channel=%22bob%22", alice.to_owned(), 400),
        ("/webws?channel=%22alice%22&%63hannel=%22bob%22", alice.to_owned(), 400),
        ("/webws?%63hannel=%22bob%22", alice.to_owned(), 403),
        ("/webws?channel=%22\\u0062ob%22", alice.to_owned(), 403),
        ("/webws/below?channel=%22bob%22", alice.to_owned(), 403),
        ("/webws?channel=%22alice%00%22", alice.to_owned(), 400),
        ("/webws?channel=%22Alice%22", alice.to_owned(), 403),
    ] {
        let answer = ask(&target, path, &fields).await;
        assert_eq!(answer.head.status, status, "{path} {fields}: {answer:?}");
    }
    let events = with(events_request(BOB).as_bytes(), alice);
    assert_eq!(request(&Socket::connect(&target).await.unwrap(), &events).await.head.status, 403);
    assert_eq!(redis.numsub(b"chat:bob").await, 0);
    // As shipped, the location says nothing of a client, whatever the client says.
    let plain = Nginx::start(&webws.socket()).await;
    let answer = ask(&plain.target(), BOB, forged).await;
    assert_eq!(answer.head.status, 403, "{answer:?}");
    assert!(answer.body.contains("names none"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_comes_straight_gets_what_its_user_may_have_and_nothing_else() {
    let mut webws = Webws::builder()
        .broker("memory")
        .straight()
        .endpoint_toml("claims = \"headers\"\nno_origin = \"allow\"\n")
        .start()
        .await;
    let nginx = Nginx::start_straight(SITE, (&webws.socket(), &webws.handoff()), guarded).await;
    let (target, alice) = (nginx.target(), "Cookie: session=a1\r\n");
    let mut own = join(&target, ALICE, alice).await;
    own.send_text("hello").await;
    own.expect_text("helloalice").await;
    let forged = "X-Webws-User: bob\r\nX-Webws-Channels: rw:bob\r\n";
    for (path, fields, status) in [(BOB, alice.to_owned(), 403), (BOB, format!("{alice}{forged}"), 403)] {
        assert_eq!(ask(&target, path, &fields).await.head.status, status, "{path} {fields}");
    }
    assert_eq!(ask(&target, BOB, forged).await.head.status, 401);
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!((webws.counter("handoffs"), webws.counter("claims_dropped")), (3, 0));
}

#[tokio::test]
async fn a_process_of_another_user_and_tcp_are_not_believed() {
    let redis = Redis::start().await;
    let mut webws = start(&redis).await;
    let fields = claims("rw:alice", HOUR);
    assert_eq!(ask(&webws.target(), ALICE, &fields).await.head.status, 101);
    let over_tcp = ask(&webws.tcp_target(), ALICE, &fields).await;
    assert_eq!(over_tcp.head.status, 403, "{over_tcp:?}");
    assert!(over_tcp.body.contains("trusted_users"), "{over_tcp:?}");
    let mut dropped = 1;
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(webws.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "--max-time", "10"]);
        command.arg("--unix-socket").arg(webws.socket());
        for field in [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        .into_iter()
        .chain(fields.lines())
        {
            command.args(["-H", field]);
        }
        let output = command.arg(format!("http://localhost{ALICE}")).output().await.unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(told.contains("not trusted"), "{told}");
        dropped += 1;
    }
    // Where claims are not required, the client is one without claims.
    let path = "/open?channel=%22bob%22";
    assert_eq!(ask(&webws.tcp_target(), path, &fields).await.head.status, 101);
    assert_eq!(ask(&webws.target(), path, &fields).await.head.status, 403);
    let twice = format!("{fields}X-Webws-Channels: rw:bob\r\n");
    let answer = ask(&webws.target(), path, &twice).await;
    assert_eq!((answer.head.status, answer.body.contains("twice")), (500, true), "{answer:?}");
    until("the site's fault is logged", SOON, async || webws.log().contains("nginx's location")).await;
    webws.term();
    webws.wait_exit(SOON).await;
    assert_eq!(webws.counter("claims_dropped"), dropped + 1);
}

#[tokio::test]
async fn what_has_expired_is_closed_and_an_upgrade_keeps_rights_and_end() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let target = webws.target();
    join(&target, ALICE, &claims("r:alice", Duration::from_secs(2))).await.expect_close(4401, SOON).await;
    let mut reader = join(&target, ALICE, &claims("r:alice", HOUR)).await;
    let lifetime = Duration::from_secs(15);
    let mut guest = join(&target, ALICE, &claims("r:alice", lifetime)).await;
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webws"));
    let upgraded = command.args(["upgrade", "--config", "webws.toml"]).current_dir(webws.dir()).output();
    let upgraded = upgraded.await.unwrap();
    assert!(upgraded.status.success(), "{upgraded:?}\n{}", webws.log());
    until("the new process has the sessions", SOON, async || !webws.heirs().is_empty()).await;
    redis.publish(b"chat:alice", b"news").await;
    reader.expect_text("newsalice").await;
    guest.expect_text("newsalice").await;
    reader.send_text("forbidden").await;
    reader.expect_close(1008, SOON).await;
    guest.expect_close(4401, lifetime + SOON).await;
    assert_eq!(ask(&target, BOB, &claims("r:alice", HOUR)).await.head.status, 403);
    assert_eq!(
        ask(&target, ALICE, "X-Webws-User: u1\r\nX-Webws-Channels: r:*\r\nX-Webws-Expires: 1\r\n").await.head.status,
        403
    );
}

#[tokio::test]
async fn pages_of_other_sites_get_nothing_by_a_users_claims() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let (path, claims) = ("/strict?channel=%22alice%22", claims("rw:alice", HOUR));
    for (origin, status) in [
        ("Origin: http://localhost\r\n", 101),
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: http://localhost.evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://localhost\r\nOrigin: http://evil.example\r\n", 403),
        ("", 403),
    ] {
        let answer = ask(&webws.target(), path, &format!("{claims}{origin}")).await;
        assert_eq!(answer.head.status, status, "{origin}: {answer:?}");
    }
}
