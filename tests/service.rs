//! Promise: webws is a good service: it takes systemd's sockets, tells READY, STOPPING and WATCHDOG, logs
//! JSON where no terminal is, and drains at SIGTERM.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::UnixDatagram;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::http;
use crate::support::program::{Program, json_lines, listen_in, socket_in, target_in};
use crate::support::redis::Redis;
use crate::support::{SOON, START, free_port, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// `systemd-socket-activate` with `arguments`, then webws with `options`.
fn activated(dir: &Path, arguments: &[&str], options: &[&str]) -> Program {
    let mut command = Command::new("systemd-socket-activate");
    command.args(arguments).arg(env!("CARGO_BIN_EXE_webws")).arg("run").args(options).current_dir(dir);
    Program::spawn_command(&mut command, dir)
}

/// Connects, which makes systemd-socket-activate become webws; nobody reads that connection.
async fn knock(target: &Target) -> Socket {
    let slot = RefCell::new(None);
    let connects = async || {
        let connected = Socket::connect(target).await.ok();
        slot.replace(connected);
        slot.borrow().is_some()
    };
    until("systemd-socket-activate listens", START, connects).await;
    slot.into_inner().unwrap()
}

/// What webws logged behind the lines of systemd-socket-activate.
fn own_lines(program: &Program) -> Vec<Value> {
    let own = |line: &&str| line.starts_with('{');
    json_lines(&program.log().split_inclusive('\n').filter(own).collect::<String>())
}

#[tokio::test]
async fn sockets_of_systemd_take_the_place_of_those_in_the_settings() {
    let redis = Redis::start().await;
    for name in [&["--fdname=ws:ws"][..], &[]] {
        let dir = tempfile::tempdir().unwrap();
        let unix = socket_in(dir.path()).display().to_string();
        let tcp = format!("127.0.0.1:{}", free_port());
        let unused = format!("unix:{}/unused.sock", dir.path().display());
        let arguments = [name, &["-l", &unix, "-l", &tcp]].concat();
        let mut program =
            activated(dir.path(), &arguments, &["--broker", &redis.url(), "--listen", &unused, "--workers", "2"]);
        // The first connection waits in the backlog and is served like any other.
        let socket = knock(&target_in(dir.path())).await;
        let mut first = Client::upgrade(socket, PATH).await;
        let mut second = Client::connect(&Target::Tcp(tcp.parse().unwrap()), PATH).await;
        redis.publish(b"chat:zhang", b"to both, ").await;
        first.expect_text("to both, zhang").await;
        second.expect_text("to both, zhang").await;
        let line = own_lines(&program).into_iter().next().unwrap();
        assert_eq!(line["listen"], format!("unix:{unix}, tcp:{tcp}"));
        assert!(!dir.path().join("unused.sock").exists(), "it listens elsewhere too");
        first.close().await;
        second.close().await;
        program.signal(Signal::SIGTERM);
        assert!(program.wait_exit(SOON).await.success(), "{}", program.log());
        assert!(socket_in(dir.path()).exists(), "the file of systemd's socket is gone");
    }
}

#[tokio::test]
async fn a_socket_by_another_name_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let unix = socket_in(dir.path()).display().to_string();
    let mut program = activated(dir.path(), &["--fdname=http", "-l", &unix], &["--broker", "memory"]);
    let _socket = knock(&target_in(dir.path())).await;
    assert_eq!(program.wait_exit(START).await.code(), Some(1), "{}", program.log());
    let log = program.log();
    let sentence = log.lines().find(|line| line.starts_with("webws: ")).unwrap_or_default();
    assert!(sentence.contains("'http'") && sentence.contains("FileDescriptorName=ws"), "{log}");
}

#[tokio::test]
async fn sockets_meant_for_another_process_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let environment = [("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "ws")];
    let listen = listen_in(dir.path());
    let program = Program::start(dir.path(), &["run", "--broker", "memory", "--listen", &listen], &environment).await;
    assert_eq!(program.start_line().await["listen"], listen);
    program.stop().await;
}

/// systemd's end of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    address: String,
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let path = dir.join("notify.sock");
        Manager { socket: UnixDatagram::bind(&path).unwrap(), address: path.display().to_string() }
    }

    /// The next message but those that only renew the status, as its lines; empty at the deadline.
    async fn next(&self, deadline: Duration) -> Vec<String> {
        let others = async {
            loop {
                let message = self.receive().await;
                if !matches!(&message[..], [line] if line.starts_with("STATUS=")) {
                    return message;
                }
            }
        };
        timeout(deadline, others).await.unwrap_or_default()
    }

    async fn receive(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).await.unwrap();
        str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned).collect()
    }

    /// Waits for a status that contains `text`.
    async fn shows(&self, text: &str) {
        let shown = async {
            while !self.receive().await.iter().any(|line| line.starts_with("STATUS=") && line.contains(text)) {}
        };
        timeout(START, shown).await.unwrap_or_else(|_| panic!("no status with '{text}' within {START:?}"));
    }

    /// Takes messages until one has that line.
    async fn hears(&self, line: &str) {
        let heard = async { while !self.next(START).await.iter().any(|l| l == line) {} };
        timeout(START, heard).await.unwrap_or_else(|_| panic!("no {line} within {START:?}"));
    }
}

#[tokio::test]
async fn ready_watchdog_and_stopping_are_told_to_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let listen = listen_in(dir.path());
    let environment =
        [("NOTIFY_SOCKET", manager.address.as_str()), ("WATCHDOG_USEC", "900000"), ("WEBWS_DRAIN_TIME", "3s")];
    let mut program = Program::spawn(dir.path(), &["run", "--broker", "memory", "--listen", &listen], &environment);
    let ready = manager.next(START).await;
    assert!(ready.contains(&"READY=1".to_owned()), "the first message is {ready:?}");
    assert!(ready.iter().any(|line| line.starts_with("STATUS=") && line.contains(&listen)), "{ready:?}");
    // READY means ready: no second try is needed.
    let clients =
        [Client::connect(&target_in(dir.path()), PATH).await, Client::connect(&target_in(dir.path()), PATH).await];
    let start = Instant::now();
    for _ in 0..3 {
        let message = manager.next(SOON).await;
        assert_eq!(message, ["WATCHDOG=1"]);
    }
    assert!(start.elapsed() < Duration::from_millis(3 * 900), "too slow for the watchdog: {:?}", start.elapsed());

    program.signal(Signal::SIGTERM);
    manager.hears("STOPPING=1").await;
    // It lives while it drains, and systemd hears so.
    manager.hears("WATCHDOG=1").await;
    drop(clients);
    assert!(program.wait_exit(START).await.success());
}

#[tokio::test]
async fn the_status_that_systemctl_shows_follows_what_happens() {
    let mut redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let listen = listen_in(dir.path());
    let environment = [("NOTIFY_SOCKET", manager.address.as_str()), ("WEBWS_LIMITS__MAX_SESSIONS", "7")];
    let arguments = ["run", "--broker", &redis.url(), "--listen", &listen];
    let program = Program::spawn(dir.path(), &arguments, &environment);
    manager.shows("0 of at most 7 WebSockets open, 0 handshakes under way; ready").await;
    let client = Client::connect(&target_in(dir.path()), PATH).await;
    manager.shows("1 of at most 7 WebSockets open").await;
    redis.kill();
    manager.shows("NOT READY").await;
    redis.start_again().await;
    manager.shows("ready, messages flow").await;
    client.close().await;
    manager.shows("0 of at most 7").await;
    program.stop().await;
}

#[tokio::test]
async fn systemd_is_told_of_the_process_that_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::new(dir.path());
    let listen = listen_in(dir.path());
    let environment = [("NOTIFY_SOCKET", manager.address.as_str()), ("WATCHDOG_USEC", "900000")];
    let mut program = Program::spawn(dir.path(), &["run", "--broker", "memory", "--listen", &listen], &environment);
    manager.hears("READY=1").await;
    let mut client = Client::connect(&target_in(dir.path()), PATH).await;
    program.signal(Signal::SIGUSR2);
    // First whom to listen to, by the one who is listened to; then, by the new one, that it is ready.
    let heard = async {
        loop {
            let message = manager.next(START).await;
            if message != ["WATCHDOG=1"] {
                return message;
            }
        }
    };
    let message = heard.await;
    let [line] = &message[..] else { panic!("{message:?}") };
    let pid: i32 = line.strip_prefix("MAINPID=").unwrap().parse().unwrap();
    assert!(program.wait_exit(START).await.success(), "{}", program.log());
    manager.hears("READY=1").await;
    assert!(Path::new(&format!("/proc/{pid}/exe")).exists());
    for _ in 0..3 {
        assert_eq!(manager.next(SOON).await, ["WATCHDOG=1"]);
    }
    client.send_text("still there ").await;
    client.expect_text("still there zhang").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    manager.hears("STOPPING=1").await;
    client.expect_close(1001, START).await;
}

#[tokio::test]
async fn the_watchdog_is_fed_by_the_process_it_is_meant_for() {
    for (meant_for_us, expected) in [("$$", true), ("1", false)] {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::new(dir.path());
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("export WATCHDOG_PID={meant_for_us}; exec \"$0\" run --broker memory --listen \"$1\""))
            .args([env!("CARGO_BIN_EXE_webws"), &listen_in(dir.path())])
            .env("NOTIFY_SOCKET", &manager.address)
            .env("WATCHDOG_USEC", "600000");
        let program = Program::spawn_command(&mut command, dir.path());
        manager.hears("READY=1").await;
        let message = manager.next(if expected { SOON } else { Duration::from_millis(1_500) }).await;
        assert_eq!(message.contains(&"WATCHDOG=1".to_owned()), expected, "{meant_for_us}: {message:?}");
        program.stop().await;
    }
}

#[tokio::test]
async fn sigterm_closes_the_clients_with_1001_spread_over_drain_time_and_exits_0() {
    const CLIENTS: usize = 60;
    const DRAIN: Duration = Duration::from_secs(2);
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    let arguments = ["run", "--broker", "memory", "--listen", &listen, "--workers", "2"];
    let mut program = Program::start(dir.path(), &arguments, &[("WEBWS_DRAIN_TIME", "2s")]).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&target_in(dir.path()), PATH).await);
    }
    // Accepted, and the handshake not begun.
    let late = Socket::connect(&target_in(dir.path())).await.unwrap();
    // Accepting is in order, so the one before was accepted when this one is served.
    Client::connect(&target_in(dir.path()), PATH).await.close().await;

    program.signal(Signal::SIGTERM);
    let start = Instant::now();
    let mut closing = JoinSet::new();
    for mut client in clients {
        closing.spawn(async move {
            let frame = client.next_but_pings(START).await;
            assert_eq!(frame.as_ref().and_then(|frame| frame.close_code()), Some(1001), "{frame:?}");
            start.elapsed()
        });
    }
    until("new connections are refused", SOON, async || Socket::connect(&target_in(dir.path())).await.is_err()).await;
    http::request(&late, &upgrade_request(PATH)).await.assert_unavailable("2");
    drop(late);
    let closed = closing.join_all().await;
    let early = closed.iter().filter(|elapsed| **elapsed < DRAIN / 2).count();
    assert!((CLIENTS / 5..=CLIENTS * 4 / 5).contains(&early), "{early} of {CLIENTS} in the first half: {closed:?}");
    let last = closed.iter().max().unwrap();
    assert!(*last > DRAIN * 3 / 4 && *last < DRAIN * 2, "the last after {last:?}");
    assert_eq!(program.wait_exit(START).await.code(), Some(0), "{}", program.log());
    assert!(!socket_in(dir.path()).exists(), "the socket file stays behind");
    let messages: Vec<_> = program.lines().iter().map(|line| line["message"].to_string()).collect();
    assert!(messages.iter().any(|message| message.contains(&format!("closed_going_away={CLIENTS}"))), "{messages:?}");
}

#[tokio::test]
async fn clients_work_until_their_turn_and_a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGTERM)] {
        let dir = tempfile::tempdir().unwrap();
        let manager = Manager::new(dir.path());
        let listen = listen_in(dir.path());
        let environment = [("NOTIFY_SOCKET", manager.address.as_str()), ("WEBWS_DRAIN_TIME", "120s")];
        let arguments = ["run", "--broker", "memory", "--listen", &listen, "--workers", "1"];
        let mut program = Program::start(dir.path(), &arguments, &environment).await;
        let mut clients =
            [Client::connect(&target_in(dir.path()), PATH).await, Client::connect(&target_in(dir.path()), PATH).await];
        program.signal(first);
        // One of two is closed now, the other in a minute.
        let [a, b] = &mut clients;
        let (closed, other) = tokio::select! {
            frame = a.next_but_pings(START) => (frame, b),
            frame = b.next_but_pings(START) => (frame, a),
        };
        assert_eq!(closed.as_ref().and_then(|frame| frame.close_code()), Some(1001), "{closed:?}");
        other.send_text("still here, ").await;
        other.expect_text("still here, zhang").await;
        program.signal(second);
        let status = program.wait_exit(SOON).await;
        assert_eq!(status.code(), Some(0), "{status}: {}", program.log());
        assert!(other.ends_within(SOON).await.is_some(), "the other client still hangs on");
    }
}

#[tokio::test]
async fn a_second_signal_right_behind_the_first_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    for _ in 0..5 {
        let manager = Manager::new(dir.path());
        let environment = [("NOTIFY_SOCKET", manager.address.as_str()), ("WEBWS_DRAIN_TIME", "120s")];
        let arguments = ["run", "--broker", "memory", "--listen", &listen, "--workers", "1"];
        let mut program = Program::start(dir.path(), &arguments, &environment).await;
        let _clients =
            [Client::connect(&target_in(dir.path()), PATH).await, Client::connect(&target_in(dir.path()), PATH).await];
        program.signal(Signal::SIGTERM);
        manager.hears("STOPPING=1").await;
        program.signal(Signal::SIGTERM);
        program.wait_exit(SOON).await;
        std::fs::remove_file(dir.path().join("notify.sock")).unwrap();
    }
}
