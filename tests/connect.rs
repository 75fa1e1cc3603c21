//! Promise: one slow step on the way to Redis does not spend the time of the others, and what is said names the
//! step and the address; of the way to Sentinels it holds as well.
//!
//! Names, nameservers and addresses are made in namespaces (unshare(1)), where that is needed: the test runs itself
//! again inside of them.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::sentinel_access::Sentinel;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, START, holds_within, until};

const PATH: &str = "/webws?channel=%22a%22";

/// The variable that says that this is the inner run.
const INSIDE: &str = "TEST_INSIDE";

/// Whether this process is alone with its network and its mounts; else `test` was run where it is.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount"]).arg(std::env::current_exe().unwrap());
    let output = command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    false
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lets `text` stand in the file at `path` of this system.
fn mount(dir: &Path, path: &str, text: &str) {
    let file = dir.join(path.replace('/', "_"));
    std::fs::write(&file, text).unwrap();
    run(&format!("mount --bind {} {path}", file.display()));
}

/// Answers all questions for IPv4 addresses with 127.0.0.1, unless it is dead.
fn serve_names(socket: &UdpSocket, is_dead: &AtomicBool) {
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        if is_dead.load(Ordering::Relaxed) {
            continue;
        }
        let question = &question[..len];
        let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap();
        let is_v4 = question[name_end + 1..name_end + 3] == [0, 1];
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
        answer.extend(&question[12..name_end + 5]);
        if is_v4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 0, 1]);
        }
        drop(socket.send_to(&answer, from));
    }
}

#[tokio::test]
async fn a_name_is_found_behind_a_nameserver_that_is_dead() {
    if !is_inside("connect::a_name_is_found_behind_a_nameserver_that_is_dead") {
        return;
    }
    run("ip link set lo up");
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "/etc/hosts", "127.0.0.1 localhost\n");
    mount(dir.path(), "/etc/nsswitch.conf", "hosts: files dns\n");
    mount(dir.path(), "/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 127.0.0.2\noptions timeout:3\n");
    let _dead = UdpSocket::bind("127.0.0.53:53").unwrap();
    let alive = UdpSocket::bind("127.0.0.2:53").unwrap();
    std::thread::spawn(move || serve_names(&alive, &AtomicBool::new(false)));
    let redis = Redis::start().await;
    let broker = format!("redis://redis.test:{}", redis.port());
    let settings = "[redis]\nconnect_timeout = \"1s\"";
    let webws = Webws::builder().broker(&broker).workers(1).extra_toml(settings).start().await;
    until("it is said", SOON, async || webws.warns_of("'redis.test' was not resolved within 1s")).await;
    assert!(upgrades_within(&webws.target(), PATH, 4 * SOON).await, "{}", webws.log());
    assert_eq!(webws.warnings().len(), 1, "{}", webws.log());
}

/// A listener whose backlog is full: the kernel drops whoever knocks. It stays so for as long as this exists.
struct Hole {
    address: SocketAddr,
    _listener: tokio::net::TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Hole {
    async fn dig(ip: [u8; 4]) -> Hole {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((ip, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            waiting.push(taken.unwrap());
        }
        Hole { address, _listener: listener, _waiting: waiting }
    }
}

#[tokio::test]
async fn an_address_that_swallows_packets_does_not_block_the_next_one() {
    let (redis, hole) = (Redis::start().await, Hole::dig([127, 0, 0, 1]).await);
    let port = hole.address.port();
    let _way = Proxy::start_on(([127, 0, 0, 2], port).into(), redis.port()).await;
    let settings = "[redis]\nconnect_timeout = \"20s\"";
    let hosts = ["127.0.0.1", "127.0.0.2"].map(|address| format!("{address} redis.test\n")).concat();
    let broker = format!("redis://redis.test:{port}");
    let webws = Webws::builder().broker(&broker).workers(1).extra_toml(settings).hosts(&hosts).start().await;
    let since = Instant::now();
    assert!(upgrades_within(&webws.target(), PATH, SOON).await, "{}", webws.log());
    let mut witness = Witness::join(&webws.target(), PATH).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert!(since.elapsed() < 3 * SOON, "{:?}", since.elapsed());
    assert_eq!(webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_named_and_in_a_unit_so_is_the_remedy() {
    if !is_inside("connect::an_address_that_does_not_answer_is_named_and_in_a_unit_so_is_the_remedy") {
        return;
    }
    run("ip link set lo up; ip addr add 10.9.0.2/32 dev lo");
    let hole = Hole::dig([10, 9, 0, 2]).await;
    let settings = "[redis]\nconnect_timeout = \"300ms\"";
    let what = format!("{} did not accept the connection within 300ms", hole.address);
    let sentinel = format!("redis+sentinel://{}/main", hole.address);
    let brokers = [format!("redis://{}", hole.address), sentinel];
    let both = [("INVOCATION_ID", true), ("NOTHING", false)];
    for (broker, (variable, is_named)) in brokers.iter().flat_map(|broker| both.map(|variable| (broker, variable))) {
        let builder = Webws::builder().broker(broker).workers(1).extra_toml(settings);
        let webws = builder.env(variable, "0123").start().await;
        until("it is said", SOON, async || webws.warns_of(&what)).await;
        let is_of_sentinel = webws.warns_of(&format!("the Sentinel {}: ", hole.address));
        assert_eq!(is_of_sentinel, broker.contains("sentinel"), "{}", webws.log());
        let is_in_a_unit = is_named || std::env::var_os("INVOCATION_ID").is_some();
        assert_eq!(webws.warns_of("IPAddressAllow=10.9.0.2"), is_in_a_unit, "{}", webws.log());
    }
}

#[tokio::test]
async fn a_server_that_takes_connections_and_says_nothing_is_passed_over_and_named() {
    let redis = Redis::start().await;
    // Nobody accepts: the kernel does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let _way = Proxy::start_on(([127, 0, 0, 2], port).into(), redis.port()).await;
    let broker = format!("redis://redis.test:{port}");
    let settings = "[redis]\nconnect_timeout = \"500ms\"";
    let hosts = ["127.0.0.1", "127.0.0.2"].map(|address| format!("{address} redis.test\n")).concat();
    let webws = Webws::builder().broker(&broker).workers(1).extra_toml(settings).hosts(&hosts).start().await;
    assert!(upgrades_within(&webws.target(), PATH, 2 * SOON).await, "{}", webws.log());
    webws.set_hosts("127.0.0.1 redis.test\n");
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    let what = format!("127.0.0.1:{port} accepted the connection and did not answer the greeting within 500ms");
    let says = async || webws.readiness().await.1.contains(&what);
    until("it says so", SOON, says).await;
    drop(silent);
}

#[tokio::test]
async fn sentinels_that_swallow_packets_or_say_nothing_do_not_block_the_others() {
    let redis = Redis::start().await;
    let sentinel = Sentinel::start(redis.port(), "").await;
    let hole = Hole::dig([127, 0, 0, 1]).await;
    // Nobody accepts: the kernel does.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // One more, by a name whose first address is the hole.
    let _way = Proxy::start_on(([127, 0, 0, 2], hole.address.port()).into(), sentinel.port).await;
    let hosts = ["127.0.0.1", "127.0.0.2"].map(|address| format!("{address} sentinel.test\n")).concat();
    let [swallows, mute] = [hole.address, silent.local_addr().unwrap()];
    let named = format!("sentinel.test:{}", hole.address.port());
    for living in [format!("127.0.0.1:{}", sentinel.port), named] {
        let broker = format!("redis+sentinel://{swallows},{mute},{living}/main");
        let settings = "[redis]\nconnect_timeout = \"60s\"";
        let webws = Webws::builder().broker(&broker).workers(1).extra_toml(settings).hosts(&hosts).start().await;
        assert!(upgrades_within(&webws.target(), PATH, 2 * SOON).await, "{}", webws.log());
        let mut witness = Witness::join(&webws.target(), PATH).await;
        witness.client.send_text("there and back ").await;
        witness.await_text("there and back a", SOON).await;
        assert_eq!(webws.warnings(), [0; 0]);
    }
}

#[tokio::test]
async fn a_sentinel_that_says_nothing_is_named_with_the_step() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = silent.local_addr().unwrap();
    let broker = format!("redis+sentinel://{place}/main");
    let settings = "[redis]\nconnect_timeout = \"300ms\"";
    let webws = Webws::builder().broker(&broker).workers(1).extra_toml(settings).start().await;
    let what = format!(
        "the Sentinel {place}: {place} accepted the connection and did not say where the master is within 300ms"
    );
    until("it is said", SOON, async || webws.warns_of(&what)).await;
}

#[tokio::test]
async fn look_ups_of_sentinels_do_not_pile_up_and_links_stay_while_no_nameserver_answers() {
    if !is_inside("connect::look_ups_of_sentinels_do_not_pile_up_and_links_stay_while_no_nameserver_answers") {
        return;
    }
    run("ip link set lo up");
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "/etc/hosts", "127.0.0.1 localhost\n");
    mount(dir.path(), "/etc/nsswitch.conf", "hosts: files dns\n");
    mount(dir.path(), "/etc/resolv.conf", "nameserver 127.0.0.2\noptions timeout:10\n");
    let (socket, is_dead) = (UdpSocket::bind("127.0.0.2:53").unwrap(), Arc::new(AtomicBool::new(false)));
    std::thread::spawn({
        let is_dead = is_dead.clone();
        move || serve_names(&socket, &is_dead)
    });
    let redis = Redis::start().await;
    let sentinel = Sentinel::start(redis.port(), "").await;
    let broker = format!("redis+sentinel://sentinel.test:{}/main", sentinel.port);
    let settings = "[redis]\nconnect_timeout = \"1s\"";
    let webws = Webws::builder().broker(&broker).workers(4).extra_toml(settings).start().await;
    assert!(upgrades_within(&webws.target(), PATH, START).await, "{}", webws.log());
    let mut witness = Witness::join(&webws.target(), PATH).await;
    is_dead.store(true, Ordering::Relaxed);
    let look_ups = || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", webws.pid())).unwrap();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "webws-look-up").count()
    };
    until("one is under way", SOON, async || look_ups() == 1).await;
    // All workers ask each second.
    assert!(!holds_within(SOON, async || look_ups() > 1).await, "they pile up");
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert_eq!(webws.outages(), [0; 0]);
}
