//! Promise: the log never stands in the way. A reader that hangs costs lines, which are counted, and nothing else;
//! each line reads completely as plain text; the level changes while webws runs.
//!
//! The wording of lines is judged here. Other modules judge states, counters and fields.

use std::future::ready;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::support::client::Client;
use crate::support::http;
use crate::support::journal::{Entry, Journal};
use crate::support::program::{Program, json_lines, listen_in, of_level, run, socket_in, target_in, told};
use crate::support::redis::Redis;
use crate::support::{Process, SOON, START, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// Refused handshakes, each of which is a line at debug. More than wait in the queue and in the pipe together.
const LINES: usize = 6_000;

/// webws whose stderr is a small pipe that is not read until the test wants it.
struct Piped {
    process: Process,
    stderr: PipeReader,
    dir: TempDir,
}

impl Piped {
    async fn start(environment: &[(&str, &str)]) -> Piped {
        let dir = tempfile::tempdir().unwrap();
        let (stderr, writing) = std::io::pipe().unwrap();
        // Some twenty lines.
        fcntl(stderr.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_webws"));
        command.args(["run", "--broker", "memory", "--workers", "1", "--listen", &listen_in(dir.path())]);
        command.envs(environment.iter().copied()).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writing);
        let process = Process::spawn(&mut command, Signal::SIGKILL, "cargo build");
        let socket = socket_in(dir.path());
        until("it accepts", START, async || tokio::net::UnixStream::connect(&socket).await.is_ok()).await;
        Piped { process, stderr, dir }
    }

    async fn refuse(&self, count: usize) {
        for _ in 0..count {
            let answer = http::handshake(&target_in(self.dir.path()), "/nothing-there").await;
            assert_eq!(answer.head.status, 404, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_reader_of_stderr_that_hangs_stops_nothing_and_is_told_how_much_it_missed() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify.sock")).unwrap();
    let address = dir.path().join("notify.sock").display().to_string();
    let environment = [("WEBWS_LOG", "debug"), ("NOTIFY_SOCKET", address.as_str()), ("WATCHDOG_USEC", "900000")];
    let Piped { mut process, stderr, dir } = {
        let piped = Piped::start(&environment).await;
        piped.refuse(LINES).await;
        piped
    };
    // Everything goes on: messages, health, and the watchdog, whose socket was full as well.
    let mut client = Client::connect(&target_in(dir.path()), PATH).await;
    client.send_text("still there, ").await;
    client.expect_text("still there, zhang").await;
    assert_eq!(http::get(&target_in(dir.path()), "/healthz").await.head.status, 200);
    let mut buffer = [0; 4096];
    while manager.try_recv(&mut buffer).is_ok() {}
    let fed = async {
        loop {
            let length = manager.recv(&mut buffer).await.unwrap();
            if buffer[..length].starts_with(b"WATCHDOG=1") {
                break;
            }
        }
    };
    tokio::time::timeout(SOON, fed).await.expect("the watchdog is fed");
    client.close().await;
    // The reader goes on: what waited comes, and how much did not.
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = std::thread::spawn(move || {
        let (mut lines, mut tell) = (Vec::new(), Some(tell));
        for line in BufReader::new(stderr).lines().map(Result::unwrap) {
            if line.contains("\"dropped\"")
                && let Some(tell) = tell.take()
            {
                tell.send(()).unwrap();
            }
            lines.push(line);
        }
        lines
    });
    // With room in the queue again the report is written; the last lines find room as well.
    tokio::time::timeout(START, told).await.expect("the loss is reported").unwrap();
    process.signal(Signal::SIGTERM);
    assert!(process.wait_exit(START, &dir.path().join("none")).await.success());
    let lines: Vec<Value> = reading.join().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused = lines.iter().filter(|line| line["why"].is_string()).count();
    let dropped: u64 = lines.iter().filter_map(|line| line["dropped"].as_u64()).sum();
    assert!(dropped > 0, "nothing was dropped of {refused} lines");
    let all = refused as u64 + dropped;
    // Some that were dropped are other lines: of the watchdog, whose socket was full, and of the probes for the start.
    assert!((LINES as u64..LINES as u64 + 500).contains(&all), "{refused} came, {dropped} were dropped");
    // The report of dropped lines may come behind the last line of the service.
    let messages = lines.iter().filter_map(|line| line["message"].as_str());
    let last = messages.rev().find(|message| message.contains("stopped")).unwrap();
    assert!(last.contains(&format!("log_lines_dropped={dropped}")), "{last}");
}

#[tokio::test]
async fn a_reader_that_never_goes_on_does_not_hold_up_the_end() {
    let mut piped = Piped::start(&[("WEBWS_LOG", "debug")]).await;
    piped.refuse(100).await;
    piped.process.signal(Signal::SIGTERM);
    assert!(piped.process.wait_exit(START, &piped.dir.path().join("none")).await.success());
}

/// webws that logs to the journal.
async fn journaled(journal: &Journal, broker: &str, environment: &[(&str, &str)]) -> Process {
    let (listen, control) = (listen_in(journal.dir()), journal.dir().join("control.sock").display().to_string());
    let environment = [environment, &[("WEBWS_CONTROL", control.as_str())]].concat();
    let arguments = ["run", "--broker", broker, "--workers", "2", "--listen", &listen];
    let process = journal.spawn(&arguments, &environment);
    journal.accepts(&socket_in(journal.dir())).await;
    process
}

#[tokio::test]
async fn a_journald_that_is_frozen_stops_nothing() {
    let journal = Journal::new();
    let mut process = journaled(&journal, "memory", &[("WEBWS_LOG", "debug")]).await;
    // The kernel keeps some entries for it (net.unix.max_dgram_qlen), then its senders block.
    for _ in 0..LINES {
        let answer = http::handshake(&target_in(journal.dir()), "/nothing-there").await;
        assert_eq!(answer.head.status, 404, "{answer:?}");
    }
    let mut client = Client::connect(&target_in(journal.dir()), PATH).await;
    client.send_text("still there, ").await;
    client.expect_text("still there, zhang").await;
    client.close().await;
    let mut entries = Vec::new();
    until("journald is told what it missed", START, || {
        entries.extend(journal.entries());
        ready(entries.iter().any(|entry: &Entry| entry.contains_key("F_DROPPED")))
    })
    .await;
    let refused = entries.iter().filter(|entry| entry.contains_key("F_WHY")).count();
    let dropped = entries.iter().find_map(|entry| entry.get("F_DROPPED")).unwrap();
    assert!(refused + dropped.parse::<usize>().unwrap() >= LINES, "{refused} came, {dropped} were dropped");
    process.signal(Signal::SIGTERM);
    assert!(process.wait_exit(START, &journal.stderr()).await.success());
}

/// Fields that a message need not repeat: it says the same in another form, or they are for machines only.
const NOT_REPEATED: [&str; 3] = ["F_AFTER", "F_BACKTRACE", "F_REASONS"];

/// An outage, a gap, a hand-over, refusals, a wrong level, an end: whatever is logged by it.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story: each step causes a line")]
async fn every_line_of_the_journal_reads_completely() {
    let mut redis = Redis::start().await;
    let journal = Journal::new();
    let environment = [("WEBWS_LIMITS__MAX_SESSIONS", "1"), ("WEBWS_LOG", "loud")];
    let mut process = journaled(&journal, &redis.url(), &environment).await;
    let target = target_in(journal.dir());
    let mut entries = Vec::new();
    let mut see = async |what: &str, has: &dyn Fn(&Entry) -> bool| {
        let mut seen = None;
        until(what, START, || {
            entries.extend(journal.entries());
            seen = entries.iter().find(|entry| has(entry)).cloned();
            ready(seen.is_some())
        })
        .await;
        seen.unwrap()
    };
    let says = |start: &'static str| move |entry: &Entry| entry["MESSAGE"].starts_with(start);
    let wrong = see("the wrong level", &|entry| entry.get("F_FILTER").is_some_and(|filter| filter == "loud")).await;
    assert_eq!((wrong["PRIORITY"].as_str(), wrong["SYSLOG_IDENTIFIER"].as_str()), ("4", "webws"));
    let start = see("the start", &|entry| entry.contains_key("F_MAX_SESSIONS")).await;
    assert_eq!((start["PRIORITY"].as_str(), start["F_MAX_SESSIONS"].as_str()), ("6", "1"));
    see("Redis is there", &|entry| entry.contains_key("F_LINKS")).await;
    let mut client = Client::connect(&target, PATH).await;
    let control = journal.dir().join("control.sock").display().to_string();
    let level = run(journal.dir(), &["log", "debug", "--control", &control], &[]).await;
    assert!(level.status.success(), "{level:?}");
    assert_eq!(http::handshake(&target, PATH).await.head.status, 503);
    assert_eq!(http::handshake(&target, "/nothing-there").await.head.status, 404);
    let full = see("it is full", &|entry| entry.contains_key("F_COUNT")).await;
    assert_eq!((full["PRIORITY"].as_str(), full["F_COUNT"].as_str()), ("4", "1"));
    redis.kill();
    see("the outage", &says("Redis at ")).await;
    redis.start_again().await;
    see("its end", &says("Redis is back")).await;
    let gap = see("the gap", &|entry| entry.contains_key("F_LENGTH_MS")).await;
    assert_eq!((gap["F_CHANNELS"].as_str(), gap["F_CLOSING"].as_str()), ("1", "0"));
    let upgrade = run(journal.dir(), &["upgrade", "--control", &control], &[]).await;
    assert!(upgrade.status.success(), "{upgrade:?}");
    let handed_over = see("the hand-over", &|entry| entry.contains_key("F_STANDSTILL_MS")).await;
    let successor = handed_over["F_PID"].parse().unwrap();
    assert!(process.wait_exit(START, &journal.stderr()).await.success());
    client.send_text("there ").await;
    client.expect_text("there zhang").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(successor), Signal::SIGTERM).unwrap();
    client.expect_close(1001, START).await;
    see("the end", &says("stopped: ")).await;
    let _ = see;
    for entry in &entries {
        let message = &entry["MESSAGE"];
        for (name, value) in entry.iter().filter(|(name, _)| name.starts_with("F_")) {
            let bare = name["F_".len()..].to_lowercase();
            assert!(
                !bare.contains('_')
                    || !message.contains(&bare)
                    || is_a_setting(message, &bare)
                    || is_a_counter(message, &bare, value),
                "{bare}: {message}"
            );
            let is_there = NOT_REPEATED.contains(&name.as_str()) || message.contains(value.as_str());
            assert!(is_there, "the message lacks {name}={value}: {message}");
        }
    }
    // Known lines with their values.
    for (field, unit) in [("F_LENGTH_MS", "ms"), ("F_STANDSTILL_MS", "ms"), ("F_MAX_SESSIONS", "WebSockets")] {
        let entry = entries.iter().find(|entry| entry.contains_key(field)).unwrap();
        assert!(entry["MESSAGE"].contains(&format!("{} {unit}", entry[field])), "{entry:?}");
    }
}

/// Whether a message names the setting that has the field's name.
fn is_a_setting(message: &str, name: &str) -> bool {
    message.contains(&format!("limits.{name}"))
}

/// Whether a message lists the counter that has the field's name, with the field's value.
fn is_a_counter(message: &str, name: &str, value: &str) -> bool {
    message.starts_with("stopped") && format!("{message} ").contains(&format!(" {name}={value} "))
}

#[tokio::test]
async fn the_level_changes_without_a_restart_and_a_wrong_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen = [\"{}\"]\nbroker = \"memory\"\nlog = \"error\"\ncontrol = \"{}/control.sock\"\n",
        listen_in(dir.path()),
        dir.path().display()
    );
    std::fs::write(dir.path().join("webws.toml"), config).unwrap();
    let program = Program::start(dir.path(), &["run", "--config", "webws.toml"], &[]).await;
    let log = async |level: &str| told(&run(dir.path(), &["log", level, "--config", "webws.toml"], &[]).await);
    let is_refused = async || {
        assert_eq!(http::handshake(&target_in(dir.path()), "/nothing-there").await.head.status, 404);
    };
    let logged = |lines: &[Value]| lines.iter().filter(|line| line["status"] == 404).count();
    is_refused().await;
    assert_eq!(program.lines(), [0; 0]);
    let (code, said, _) = log("webws=debug").await;
    assert!(code == Some(0) && said.contains("it was error"), "{said}");
    is_refused().await;
    until("it is logged", SOON, async || logged(&program.lines()) == 1).await;
    for wrong in ["verbose", "webws=loud", ""] {
        let (code, _, complaint) = log(wrong).await;
        assert_eq!(code, Some(1), "{wrong}: {complaint}");
    }
    is_refused().await;
    until("the next is logged as well", SOON, async || logged(&program.lines()) == 2).await;
    let (code, ..) = log("error").await;
    assert_eq!(code, Some(0));
    is_refused().await;
    // The end writes what waits in the log's queue.
    program.stop().await;
    let lines = json_lines(&crate::support::read_log(&dir.path().join("webws.log")));
    assert_eq!(logged(&lines), 2, "{lines:#?}");
}

#[tokio::test]
async fn a_wrong_level_at_start_is_a_warning_and_info() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path())];
    let program = Program::start(dir.path(), &arguments, &[("WEBWS_LOG", "verbose")]).await;
    program.start_line().await;
    let warnings = of_level(&program.lines(), "WARN");
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning["filter"], "verbose", "{warning}");
    program.stop().await;
}

#[tokio::test]
async fn refused_handshakes_are_summed_up_by_reason_and_each_is_there_at_debug() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path())];
    let mut program = Program::start(dir.path(), &arguments, &[("WEBWS_LOG", "debug")]).await;
    for _ in 0..3 {
        assert_eq!(http::handshake(&target_in(dir.path()), "/nothing-there").await.head.status, 404);
    }
    assert_eq!(http::handshake(&target_in(dir.path()), "/webws").await.head.status, 400);
    let request =
        "GET /webws?channel=%22a%22 HTTP/1.1\r\nHost: h\r\nX-Real-IP: 203.0.113.9\r\nX-Request-ID: 5eed\r\n\r\n";
    let socket = crate::support::client::Socket::connect(&target_in(dir.path())).await.unwrap();
    assert_eq!(http::request(&socket, request.as_bytes()).await.head.status, 400);
    // Three that no endpoint has seen: a line without a colon, a line and a head that are too long.
    for (what, id, status) in [
        ("GET / HTTP/1.1\r\nno colon".to_owned(), "bad", 400),
        (format!("GET /{} HTTP/1.1", "x".repeat(70_000)), "none", 0),
        (format!("GET / HTTP/1.1\r\nX-Request-ID: large\r\nA: {}", "x".repeat(70_000)), "large", 431),
    ] {
        let request = format!("{what}\r\nX-Real-IP: 203.0.113.9\r\nX-Request-ID: {id}\r\n\r\n");
        let socket = crate::support::client::Socket::connect(&target_in(dir.path())).await.unwrap();
        let answer = http::request(&socket, request.as_bytes()).await;
        if status > 0 {
            assert_eq!(answer.head.status, status, "{answer:?}");
        } else {
            assert!([414, 431].contains(&answer.head.status), "{answer:?}");
        }
    }
    program.signal(Signal::SIGTERM);
    assert!(program.wait_exit(START).await.success());
    let lines = program.lines();
    for (id, address) in [("5eed", Some("203.0.113.9")), ("bad", Some("203.0.113.9")), ("large", None)] {
        let single: Vec<_> = lines.iter().filter(|line| line["request_id"] == id).collect();
        assert!(single.len() == 1, "{id}: {single:?}");
        assert!(address.is_none_or(|address| single[0]["address"] == address), "{id}: {single:?}");
    }
    let large: Vec<_> = lines.iter().filter(|line| line["request_id"] == "large").collect();
    assert_eq!(large[0]["why"], "the request head is too large");
    let sums: Vec<_> = lines.iter().filter(|line| line["refused"].is_u64()).collect();
    let [sum] = &sums[..] else { panic!("{sums:?}") };
    // Probes for the start are among them.
    assert!(sum["level"] == "INFO" && sum["refused"].as_u64().unwrap() >= 5, "{sum}");
    assert!(sum["reasons"].as_str().unwrap().contains("3 with 404"), "{sum}");
}

#[tokio::test]
async fn a_full_server_says_so_once_and_readiness_does() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path())];
    let mut program = Program::start(dir.path(), &arguments, &[("WEBWS_LIMITS__MAX_SESSIONS", "2")]).await;
    assert_eq!(program.start_line().await["max_sessions"], 2);
    let target = target_in(dir.path());
    let one = Client::connect(&target, PATH).await;
    assert_eq!(http::get(&target, "/readyz").await.head.status, 200);
    let _two = Client::connect(&target, PATH).await;
    for _ in 0..5 {
        http::handshake(&target, PATH).await.assert_unavailable("2");
    }
    let ready = http::get(&target, "/readyz").await;
    assert!(ready.head.status == 503 && ready.body.contains("full"), "{ready:?}");
    one.close().await;
    until("there is room", SOON, async || http::get(&target, "/readyz").await.head.status == 200).await;
    program.signal(Signal::SIGTERM);
    assert!(program.wait_exit(START).await.success());
    let warnings = of_level(&program.lines(), "WARN");
    let counts: Vec<_> = warnings.iter().map(|line| line["count"].as_u64().unwrap()).collect();
    // The first at once, the others together, at the latest at the end.
    assert_eq!(counts, [1, 4], "{warnings:?}");
}

#[tokio::test]
async fn slow_readers_that_are_closed_are_counted_in_one_line() {
    const CLIENTS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen = [\"{}\"]\nbroker = \"memory\"\nworkers = 1\n[[endpoint]]\npath = \"/webws\"\nmax_queue_bytes = 65536\n",
        listen_in(dir.path())
    );
    std::fs::write(dir.path().join("webws.toml"), config).unwrap();
    let mut program = Program::start(dir.path(), &["run", "--config", "webws.toml"], &[]).await;
    let target = target_in(dir.path());
    let mut slow = Vec::new();
    for _ in 0..CLIENTS {
        slow.push(Client::connect(&target, PATH).await);
    }
    let mut sender = Client::connect(&target, PATH).await;
    let text = "x".repeat(60_000);
    for _ in 0..100 {
        sender.send_text(&text).await;
        sender.expect_text(&format!("{text}zhang")).await;
    }
    sender.close().await;
    program.signal(Signal::SIGTERM);
    drop(slow);
    assert!(program.wait_exit(START).await.success());
    let warnings = of_level(&program.lines(), "WARN");
    let count: u64 = warnings.iter().map(|line| line["count"].as_u64().unwrap()).sum();
    assert!(count == CLIENTS as u64 && warnings.len() <= 2, "{warnings:?}");
}

/// ExecReload= and ExecStartPre= of the unit: their faults are in the journal once, as errors.
#[tokio::test]
async fn a_failed_reload_is_in_the_journal_once_and_a_failed_check_has_an_errors_priority() {
    let journal = Journal::new();
    let file = journal.dir().join("webws.toml");
    let control = journal.dir().join("control.sock");
    let listen = listen_in(journal.dir());
    let good = format!("listen = [\"{listen}\"]\nbroker = \"memory\"\ncontrol = \"{}\"\n", control.display());
    std::fs::write(&file, &good).unwrap();
    let mut process = journal.spawn(&["run", "--config", "webws.toml"], &[]);
    journal.accepts(&socket_in(journal.dir())).await;
    std::fs::write(&file, format!("{good}nonsense = 1\n")).unwrap();
    let mut entries = Vec::new();
    let control = control.display().to_string();
    let mut upgrade = journal.spawn(&["upgrade", "--control", &control], &[]);
    assert_eq!(upgrade.wait_exit(START, &journal.stderr()).await.code(), Some(1));
    until("it is logged", SOON, || {
        entries.extend(journal.entries());
        ready(entries.iter().any(|entry: &Entry| entry["MESSAGE"].contains("nonsense")))
    })
    .await;
    let said: Vec<_> = entries.iter().filter(|entry| entry["MESSAGE"].contains("nonsense")).collect();
    assert!(said.len() == 1 && said[0]["PRIORITY"] == "3", "{said:?}");
    assert_eq!(crate::support::read_log(&journal.stderr()), "", "beside the journal");
    let mut check = journal.spawn(&["check", "--quiet", "--config", "webws.toml"], &[]);
    assert_eq!(check.wait_exit(START, &journal.stderr()).await.code(), Some(78));
    let said = crate::support::read_log(&journal.stderr());
    assert!(said.starts_with("<3>webws: ") && said.lines().count() == 1 && said.contains("nonsense"), "{said}");
    // Without a fault it says nothing.
    std::fs::write(&file, &good).unwrap();
    let quiet = told(&run(journal.dir(), &["check", "--quiet", "--config", "webws.toml"], &[]).await);
    assert_eq!(quiet, (Some(0), String::new(), String::new()));
    process.signal(Signal::SIGTERM);
    assert!(process.wait_exit(START, &journal.stderr()).await.success());
}
