//! Promise: nginx takes no event of a client that it has handed off for an event of another client.
//!
//! nginx reuses the place of a connection, and tells its events from earlier ones by a single bit. So each client's
//! place has one other client, and then one that waits, when the client goes. Meanwhile others stay.
//! `STRAIGHT_CHURN_SECONDS=600 STRAIGHT_CLIENTS=5000 tests/run.sh --test main stranger -- --nocapture` runs longer.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{PATH, given, many};
use crate::support::client::{Client, Fin, Socket, Target};
use crate::support::frame::{PING, PONG, TEXT};
use crate::support::http::get;
use crate::support::nginx::{Nginx, Site};
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

const CLIENTS: usize = 50;

/// A request that waits for an upstream, as most do: nginx ends it when its client seems to have gone.
const SITE: &str = "location = /quick { return 200 quick; }
                    location = /slow { proxy_pass http://$server_addr:$server_port/slept; }
                    location = /slept { content_by_lua_block {
                        ngx.sleep(0.4) ngx.header.content_length = 4 ngx.print('slow') } }";

async fn requests(target: &Target, path: &'static str) -> JoinSet<bool> {
    let mut requests = JoinSet::new();
    for _ in 0..CLIENTS {
        let socket = Socket::connect(target).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write(request.as_bytes()).await.unwrap();
        requests.spawn(async move {
            let mut read = bytes::BytesMut::new();
            while socket.read(&mut read).await.is_ok() {}
            read.ends_with(&path.as_bytes()[1..])
        });
    }
    requests
}

/// Whether all threads are stopped (proc(5), status).
fn is_frozen(webws: &Webws) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", webws.pid())).unwrap();
    let mut states = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
    states.all(|status| status.contains("\nState:\tT"))
}

/// The last message to the clients that stay.
const LAST: &str = "it is over, ";

/// Answers pings until the last message comes; false when the client's connection ends before that.
async fn stay(mut client: Client, length: Duration) -> bool {
    while let Some(frame) = client.next_frame(length).await {
        match frame.opcode {
            PING => client.send_frame(PONG, Fin::Last, &frame.payload).await,
            TEXT if frame.payload.starts_with(LAST.as_bytes()) => return true,
            _ => {}
        }
    }
    false
}

/// Clients come and go among others of the same worker for `length`; the number of requests that were disturbed. Ends
/// with the first when `is_enough`.
async fn disturbed(webws: &Webws, nginx: &Nginx, length: Duration, is_enough: bool) -> usize {
    let (target, end, mut disturbed) = (nginx.target(), Instant::now() + length, 0);
    let mut rounds = 0;
    while Instant::now() < end && !(is_enough && disturbed > 0) {
        rounds += 1;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(&target, PATH).await);
        }
        let quick = requests(&target, "/quick").await.join_all().await;
        let slow = requests(&target, "/slow").await;
        // nginx accepts in the order in which clients come, so it has all the slow ones by now.
        assert_eq!(get(&target, "/quick").await.body, "quick");
        // Their sockets stay open for as long as webws does not see that they have gone.
        webws.signal(Signal::SIGSTOP);
        until("webws is frozen", SOON, async || is_frozen(webws)).await;
        drop(clients);
        disturbed += quick.into_iter().chain(slow.join_all().await).filter(|is_whole| !is_whole).count();
        webws.signal(Signal::SIGCONT);
    }
    super::tell(&format!(
        "{rounds} rounds of {CLIENTS} clients, {} other requests, {disturbed} disturbed",
        2 * CLIENTS * rounds
    ));
    disturbed
}

async fn start(edit: impl Fn(&str, String) -> String) -> (Webws, Nginx) {
    let webws = Webws::builder().broker("memory").straight().start().await;
    let site = Site { server: SITE, ..Site::default() };
    let nginx = Nginx::start_straight(site, (&webws.socket(), &webws.handoff()), edit).await;
    (webws, nginx)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_another_client_is_disturbed() {
    let (webws, nginx) = start(super::unchanged).await;
    let length = Duration::from_secs(given("STRAIGHT_CHURN_SECONDS").unwrap_or(5) as u64);
    Client::connect(&nginx.target(), PATH).await.close().await;
    let (before, resident) = (super::registered(&nginx), super::resident_kb(&nginx));
    let mut staying = JoinSet::new();
    for _ in 0..many() {
        staying.spawn(stay(Client::connect(&nginx.target(), PATH).await, length + START));
    }
    assert_eq!(disturbed(&webws, &nginx, length, false).await, 0);
    super::has_forgotten(&nginx, before).await;
    let grown = super::resident_kb(&nginx).saturating_sub(resident);
    super::tell(&format!(
        "nginx had {before:?} descriptors and registrations, and {resident} kB; it has {grown} kB more"
    ));
    Client::connect(&nginx.target(), PATH).await.send_text(LAST).await;
    let told = staying.join_all().await.into_iter().filter(|is_there| *is_there).count();
    assert_eq!(told, many(), "the others stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_test_above_sees_what_a_registration_that_is_left_behind_does() {
    let forget = "C.ngx_event_actions.del_conn(cast(\"void *\", c), 0)";
    let control = |name: &str, text: String| match name {
        "webws-straight.lua" => {
            assert_eq!(text.matches(forget).count(), 1, "the script no longer has {forget}");
            text.replace(forget, "")
        }
        _ => text,
    };
    let (webws, nginx) = start(control).await;
    assert!(disturbed(&webws, &nginx, Duration::from_secs(30), true).await > 0, "nothing was disturbed");
}
