//! Promise: nginx gives webws the client's own socket, and is out of the connection. What cannot be handed off is
//! proxied, nothing of it is lost, and webws knows why.
//!
//! `away` is about a webws that takes no clients, `outlive` about sessions that outlive nginx' workers, `stranger` about
//! the other clients of the same worker, `events` about server-sent events and long-polls, `layout` about an nginx that
//! is built differently, `slow` about slow readers, `arrival` about an operator that asks.

mod arrival;
mod away;
mod events;
mod layout;
mod outlive;
mod slow;
mod stranger;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use crate::support::certificate::authority;
use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::events::{EventStream, events_request};
use crate::support::frame::{Head, TEXT, client_frame};
use crate::support::http::{Answer, handshake, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;
use crate::support::{SOON, START, free_port, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// The script as it is.
fn unchanged(_: &str, text: String) -> String {
    text
}

/// An nginx with one worker that hands clients off to this webws.
async fn nginx_for(webws: &Webws, site: Site<'_>) -> Nginx {
    Nginx::start_straight(site, (&webws.socket(), &webws.handoff()), unchanged).await
}

/// Whether the answer came from webws itself: nginx names itself in what it passes on.
fn is_straight(head: &Head) -> bool {
    head.header("Server").is_none()
}

/// The descriptors that nginx' first worker has, and those that its epoll watches (proc(5), fdinfo).
fn registered(nginx: &Nginx) -> (usize, usize) {
    let of = |what: &str| format!("/proc/{}/{what}", nginx.workers()[0]);
    let numbers = std::fs::read_dir(of("fd")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers: Vec<_> = numbers.collect();
    // One may be closed meanwhile.
    let infos = numbers.iter().filter_map(|number| std::fs::read_to_string(of(&format!("fdinfo/{number}"))).ok());
    let watched = infos.map(|info| info.lines().filter(|line| line.starts_with("tfd:")).count()).sum();
    (numbers.len(), watched)
}

/// Waits until nginx' first worker has no more descriptors and registrations than `before`.
async fn has_forgotten(nginx: &Nginx, before: (usize, usize)) {
    let is_no_more = |(descriptors, watched)| descriptors <= before.0 && watched <= before.1;
    until("nginx has forgotten its clients", START, async || is_no_more(registered(nginx))).await;
}

/// The resident memory of nginx' first worker (proc(5), VmRSS), in kB.
fn resident_kb(nginx: &Nginx) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", nginx.workers()[0])).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A number from the environment, for a longer run.
fn given(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|number| number.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// How many clients are handed off and stay; more by STRAIGHT_CLIENTS.
fn many() -> usize {
    given("STRAIGHT_CLIENTS").unwrap_or(500)
}

/// A figure of a longer run, which `--nocapture` shows.
fn tell(figure: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("{figure}\n").as_bytes()).unwrap();
}

/// Stops webws, and returns its count of that name.
async fn final_count(webws: &mut Webws, name: &str) -> u64 {
    webws.term();
    webws.wait_exit(START).await;
    webws.counter(name)
}

#[tokio::test]
async fn nginx_is_out_of_a_connection_that_it_has_handed_off() {
    // However long it takes until all are there, which answer no ping.
    let builder = Webws::builder().broker("memory").straight().endpoint_toml("idle_timeout = \"0s\"");
    let mut webws = builder.start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    // The first one makes the worker's datagram socket.
    Client::connect(&nginx.target(), PATH).await.close().await;
    let before = registered(&nginx);
    let (resident, count) = (resident_kb(&nginx), many());
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(&nginx.target(), PATH).await);
    }
    assert!(clients.iter().all(|client| is_straight(client.head())), "{:?}", clients[0].head());
    has_forgotten(&nginx, before).await;
    // A proxied client takes some 18 kB of nginx.
    let grown = resident_kb(&nginx).saturating_sub(resident);
    tell(&format!(
        "{count} clients: nginx has {before:?} descriptors and registrations as before, and {grown} kB more"
    ));
    assert!(grown < 1_024, "{grown} kB more than {resident} kB, after {count} clients");
    let (first, others) = clients.split_first_mut().unwrap();
    first.send_text("straight, ").await;
    for client in others {
        client.expect_text("straight, zhang").await;
    }
    first.expect_text("straight, zhang").await;
    let logged = || nginx.access_log().lines().filter(|line| line.contains("\"status\":444")).count();
    until("each is logged with 444", SOON, async || logged() == count + 1).await;
    for client in clients {
        client.close().await;
    }
    assert_eq!(final_count(&mut webws, "handoffs").await, count as u64 + 1);
}

#[tokio::test]
async fn refusals_come_straight_as_webws_wrote_them() {
    let limit = "[limits]\nmax_sessions = 1\nretry_after = \"7s\"";
    let webws = Webws::builder().broker("memory").workers(1).straight().extra_toml(limit).start().await;
    let nginx = nginx_for(&webws, Site::default()).await;
    for path in ["/webws", "/webws?channel=zhang"] {
        let (straight, direct) = (handshake(&nginx.target(), path).await, handshake(&webws.target(), path).await);
        assert_eq!((straight.head.status, &straight.body), (400, &direct.body), "{straight:?}");
        // The two may be answered in different seconds.
        let fields = |answer: &Answer| -> Vec<_> {
            answer.head.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).cloned().collect()
        };
        assert_eq!(fields(&straight), fields(&direct));
    }
    let client = Client::connect(&nginx.target(), PATH).await;
    let full = handshake(&nginx.target(), PATH).await;
    full.assert_unavailable("7");
    assert!(is_straight(&full.head), "{full:?}");
    client.close().await;
    until("there is room", SOON, async || handshake(&nginx.target(), PATH).await.head.status == 101).await;
}

/// The request for a WebSocket, as text.
fn websocket(path: &str) -> String {
    String::from_utf8(upgrade_request(path)).unwrap()
}

/// Sends a request through nginx, whose answer is not waited for.
async fn send(nginx: &Nginx, request: &[u8]) -> Socket {
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    socket.write(request).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_what_the_proxied_location_sends() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, handoff) = (dir.path().join("webws.sock"), dir.path().join("handoff.sock"));
    let site = Site { server: "set_real_ip_from 127.0.0.1; real_ip_header X-Client;", ..Site::default() };
    let nginx = Nginx::start_straight(site, (&socket, &handoff), unchanged).await;
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let many = "X-Client: 203.0.113.9\r\nOrigin: http://localhost\r\nUser-Agent: a b\r\nUser-Agent: c\r\nCookie: no\r\n\
                X-Real-IP: forged\r\nX-Webws-Endpoint: forged\r\nX-Webws-Straight: forged\r\n\
                Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Extensions: permessage-deflate\r\nX-Other: no\r\n";
    let odd = "Content-Length: 0\r\nAccept: */*\r\nLast-Event-ID: 7\r\nAccess-Control-Request-Method: GET\r\n";
    let with = |more: &str| websocket("/webws").replacen("Host: ", &format!("{more}Host: "), 1);
    let mut requests = vec![with(many), with(odd)];
    for path in [
        PATH,
        "/webws?",
        "/webws?a=\"<>^`{|}\\%zz?#",
        "//webws//?x",
        "/webws/%20%22%23%25%3F%3c%5C%5e%60%7b%7C%7D%7f%e4%0a+&=;?y",
        "/%77ebws",
    ] {
        requests.push(websocket(path));
    }
    for request in requests {
        // Without a socket for handoffs, it is proxied.
        let _client = send(&nginx, request.as_bytes()).await;
        let (mut stream, _) = tokio::task::block_in_place(|| listener.accept()).unwrap();
        let mut bytes = vec![0; 65_536];
        let len = std::io::Read::read(&mut stream, &mut bytes).unwrap();
        let proxied = String::from_utf8_lossy(&bytes[..len]).into_owned();
        let receiver = UnixDatagram::bind(&handoff).unwrap();
        let _client = send(&nginx, request.as_bytes()).await;
        let len = tokio::task::block_in_place(|| receiver.recv(&mut bytes)).unwrap();
        let straight = String::from_utf8_lossy(&bytes[..len]).into_owned();
        std::fs::remove_file(&handoff).unwrap();
        let is_same = |line: &&str| !line.starts_with("X-Request-ID: ");
        let (why, expected): (Vec<_>, Vec<_>) =
            proxied.split("\r\n").filter(is_same).partition(|line| line.starts_with("X-Webws-Straight: "));
        assert_eq!(why, ["X-Webws-Straight: no; reason=away"], "{proxied}");
        assert_eq!(straight.split("\r\n").filter(is_same).collect::<Vec<_>>(), expected);
        assert!(straight.contains("\r\nX-Request-ID: ") && straight.ends_with("\r\n\r\n"), "{straight}");
    }
}

#[tokio::test]
async fn what_cannot_be_handed_off_is_proxied_and_webws_knows_why() {
    let mut webws = Webws::builder().broker("memory").straight().start().await;
    let dir = tempfile::tempdir().unwrap();
    let (tls, unix) = (free_port(), dir.path().join("nginx.sock"));
    authority(dir.path(), "site");
    let at = dir.path().display();
    let server = format!(
        "listen 127.0.0.1:{tls} ssl http2; ssl_certificate {at}/site.pem; ssl_certificate_key {at}/site.key;
         listen unix:{at}/nginx.sock;"
    );
    let nginx = nginx_for(&webws, Site { server: &server, ..Site::default() }).await;
    // A frame right behind the head.
    let ahead = [upgrade_request(PATH), client_frame(0x80 | TEXT, b"at once, ")].concat();
    let mut client = Client::request(Socket::connect(&nginx.target()).await.unwrap(), &ahead).await.unwrap();
    assert!(client.head().status == 101 && !is_straight(client.head()), "{:?}", client.head());
    client.expect_text("at once, zhang").await;
    // A body.
    let with_body = websocket(PATH).replacen("\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx", 1);
    let mut client =
        Client::request(Socket::connect(&nginx.target()).await.unwrap(), with_body.as_bytes()).await.unwrap();
    client.send_text("with a body, ").await;
    client.expect_text("with a body, zhang").await;
    // HTTP/1.0, which has events only.
    let old = |request: String| request.replacen("HTTP/1.1", "HTTP/1.0", 1);
    let socket = Socket::connect(&nginx.target()).await.unwrap();
    let refused = request(&socket, old(websocket(PATH)).as_bytes()).await;
    assert_eq!(refused.head.status, 400, "{refused:?}");
    let events = EventStream::request(&nginx.target(), old(events_request(PATH)).as_bytes()).await;
    assert!(!is_straight(&events.head));
    // A client of nginx' Unix socket.
    Client::connect(&Target::Unix(unix), PATH).await.close().await;
    // TLS, and events over HTTP/2, which is TLS here as well.
    let upgrade = "Connection: Upgrade|Upgrade: websocket|Sec-WebSocket-Version: 13|\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    for (version, headers, status) in [("--http1.1", upgrade, " 101"), ("--http2", "Accept: text/event-stream", " 200")]
    {
        let mut curl = Command::new("curl");
        curl.args(["-sSkiN", "--max-time", "1", version]);
        for header in headers.split('|') {
            curl.args(["-H", header]);
        }
        let told = curl.arg(format!("https://127.0.0.1:{tls}{PATH}")).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).to_ascii_lowercase();
        assert!(told.contains(status) && told.contains("server: nginx"), "{version}: {told}");
    }
    assert!(is_straight(&handshake(&nginx.target(), PATH).await.head));
    webws.term();
    webws.wait_exit(START).await;
    assert_eq!((webws.counter("handoffs"), webws.counter("proxied")), (1, 6));
    for reason in ["ahead=1", "body=1", "protocol=1", "unix=1", "tls=2"] {
        assert!(webws.log().contains(&format!(" proxied_{reason}")), "{reason}: {}", webws.log());
    }
}

#[tokio::test]
async fn what_guards_a_site_guards_a_handoff_and_runs_once() {
    let webws = Webws::builder().broker("memory").straight().start().await;
    let lua = "access_by_lua_block { if ngx.var.arg_token ~= 'yes' then return ngx.exit(403) end }";
    let guards = [
        ("auth_basic site; auth_basic_user_file {at}/nginx.conf;", 401),
        ("deny all;", 403),
        ("auth_request /_auth; location = /_auth { return 401; }", 401),
        ("satisfy any; deny all; auth_request /_auth; location = /_auth { return 403; }", 403),
        (lua, 403),
        ("rewrite_by_lua_block { return ngx.exit(403) }", 403),
    ];
    for (server, status) in guards {
        let nginx = nginx_for(&webws, Site { server, ..Site::default() }).await;
        for path in [PATH, "/webws/foo?channel=1"] {
            assert_eq!(handshake(&nginx.target(), path).await.head.status, status, "{server} {path}");
        }
    }
    // One that lets clients in runs once, for those that are proxied as well.
    let server = "auth_request /_auth; log_subrequest on;
                  location = /_auth { access_log {at}/auth.log; return 204; }";
    let nginx = nginx_for(&webws, Site { server, ..Site::default() }).await;
    // The place of what is proxied is not public.
    assert_eq!(handshake(&nginx.target(), "/@/webws?channel=1").await.head.status, 404);
    let counted = || std::fs::read_to_string(nginx.dir().join("auth.log")).unwrap_or_default().lines().count();
    until("that check is logged", SOON, async || counted() == 1).await;
    let ahead = [upgrade_request(PATH), client_frame(0x80 | TEXT, b"x")].concat();
    let checks = || counted() - 1;
    for (request, is_handed_off, expected) in [(upgrade_request(PATH), true, 1), (ahead, false, 2)] {
        let client = Client::request(Socket::connect(&nginx.target()).await.unwrap(), &request).await.unwrap();
        assert_eq!((client.head().status, is_straight(client.head())), (101, is_handed_off));
        until("the check is logged", SOON, async || checks() == expected).await;
    }
}

/// What the shipped location has and the other has not, line by line.
#[test]
fn the_straight_location_proxies_as_the_shipped_location_does() {
    let read = |name: &str| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("nginx").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (plain, straight) = (read("webws-location.conf"), read("webws-straight-location.conf"));
    let lines = |text: &str| -> Vec<String> {
        let code = text.lines().map(|line| line.split("# the path").next().unwrap_or(line).trim().to_owned());
        code.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    };
    let straight = lines(&straight);
    for line in lines(&plain) {
        assert!(straight.contains(&line), "webws-straight-location.conf has no {line:?}");
    }
    // The script's list is that of the proxied location.
    let script = read("webws-straight.lua");
    for line in straight.iter().filter(|line| line.starts_with("proxy_set_header ")) {
        let [_, name, value] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let entry = format!("{{ \"{name}\", \"{}\" }},", value.trim_matches(['$', ';']));
        let is_for_the_proxy = matches!(name, "Content-Length" | "X-Webws-Straight");
        assert_eq!(script.contains(&entry), !is_for_the_proxy, "{entry}");
    }
}
