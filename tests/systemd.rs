//! Promise: under a real systemd `reload` exchanges the binary and the configuration while every WebSocket
//! stays connected, and fails visibly when it cannot; systemd follows to the new process.
//!
//! A user's manager does, in namespaces of its own. Where none can be started (it takes root, or rather a
//! cgroup that one may write to), `service.rs` has its notify protocol alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::client::Fin;
use crate::support::frame::{CONTINUATION, TEXT};
use crate::support::ledger::gaps;
use crate::support::program::{entries, of_level, socket_in, target_in};
use crate::support::redis::Redis;
use crate::support::witness::Witness;
use crate::support::{Process, SOON, START, holds_within, lasting, until};

const PATH: &str = "/webws?channel=%22a%22";

/// WatchdogSec= of the service.
const WATCHDOG: Duration = Duration::from_secs(2);

/// What a user's manager may do of the shipped unit: no sandbox, no other user.
const KEPT: [&str; 10] = [
    "[",
    "Type=",
    "NotifyAccess=",
    "Exec",
    "FileDescriptorStoreMax=",
    "Runtime",
    "Environment=",
    "Restart",
    "Timeout",
    "KillMode=",
];

/// Two managers would put their services into the same control group, and each would wait for, and kill, the
/// other's processes.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A systemd of its own, with the shipped service in it.
struct Manager {
    dir: TempDir,
    _process: Process,
    _only: tokio::sync::MutexGuard<'static, ()>,
}

impl Manager {
    /// `None` when this machine does not let us.
    async fn start(redis: &Redis) -> Option<Manager> {
        let only = ONE_AT_A_TIME.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        for part in ["run", "config/systemd/user"] {
            std::fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/webws.service");
        let unit = std::fs::read_to_string(shipped).unwrap();
        let unit = unit
            .lines()
            .filter(|line| KEPT.iter().any(|kept| line.starts_with(kept)))
            .map(|line| line.replace("/usr/bin/webws", &format!("{path}/webws")))
            .map(|line| line.replace("systemctl ", "systemctl --user "))
            .map(|line| line.replace("/etc/webws/webws.toml", &format!("{path}/webws.toml")));
        let unit = unit.collect::<Vec<_>>().join("\n").replace("[Install]", "");
        let unit = format!(
            "{unit}\nWatchdogSec={WATCHDOG:?}\nStandardOutput=append:{path}/webws.log\nStandardError=inherit\n"
        );
        std::fs::write(dir.path().join("config/systemd/user/webws.service"), unit).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_webws"), dir.path().join("webws")).unwrap();
        let config = format!("listen = [\"unix:{path}/webws.sock\"]\nbroker = \"{}\"\nworkers = 2\n", redis.url());
        std::fs::write(dir.path().join("webws.toml"), config).unwrap();
        // It insists on a system that was booted by systemd, which it knows by this directory.
        let booted = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && exec systemd --user";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", booted]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("XDG_RUNTIME_DIR", dir.path().join("run")).env("XDG_CONFIG_HOME", dir.path().join("config"));
        let mut process = Process::spawn(&mut command, Signal::SIGTERM, "apt-get install util-linux systemd");
        let private = dir.path().join("run/systemd/private");
        let is_there = holds_within(START, || {
            let has_ended = process.exit_status().is_some();
            let private = private.clone();
            async move { has_ended || private.exists() }
        });
        (is_there.await && private.exists()).then_some(Manager { dir, _process: process, _only: only })
    }

    fn systemctl(&self, words: &[&str]) -> (bool, String) {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(words).env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn show(&self, property: &str) -> String {
        self.show_of("webws.service", property)
    }

    fn show_of(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", unit, "--value", "-p", property]).1.trim().to_owned()
    }

    /// Puts the shipped socket beside the service, as it is but for the user.
    fn add_socket(&self) {
        let units = self.file("config/systemd/user");
        let shipped = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/webws.socket"));
        let socket = shipped.unwrap().replace("/run/webws", &self.dir.path().display().to_string());
        let socket =
            socket.lines().filter(|line| !line.starts_with("SocketUser=") && !line.starts_with("SocketGroup="));
        std::fs::write(units.join("webws.socket"), socket.collect::<Vec<_>>().join("\n")).unwrap();
        let service = std::fs::read_to_string(units.join("webws.service")).unwrap();
        // Restarts are counted; one by an impatient watchdog would be one too many.
        let service = service.replace("WatchdogSec=2s\n", "");
        let service = format!("[Unit]\nRequires=webws.socket\nAfter=webws.socket\nStartLimitIntervalSec=0\n{service}");
        std::fs::write(units.join("webws.service"), service).unwrap();
        let (is_done, text) = self.systemctl(&["daemon-reload"]);
        assert!(is_done, "{text}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = crate::support::read_log(&self.file("webws.log"));
            std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes()).unwrap();
        }
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story: start, reload, stop")]
async fn reload_exchanges_the_process_and_systemd_follows() {
    let redis = Redis::start().await;
    let Some(manager) = Manager::start(&redis).await else {
        println!("no systemd can be started here; its notify protocol is tested without");
        return;
    };
    let (is_done, text) = manager.systemctl(&["start", "webws.service"]);
    assert!(is_done, "{text}");
    let target = target_in(manager.dir.path());
    let mut witness = Witness::join(&target, PATH).await;
    let mut pids = vec![manager.show("MainPID")];
    let goes_on = async |witness: &mut Witness, text: &str| {
        witness.client.send_text(&format!("{text} ")).await;
        witness.await_text(&format!("{text} a"), SOON).await;
        witness.assert_open();
    };
    for n in 0..2 {
        let (is_done, text) = manager.systemctl(&["reload", "webws.service"]);
        assert!(is_done, "{text}");
        goes_on(&mut witness, &format!("after reload {n}")).await;
        until("systemd follows", SOON, async || !pids.contains(&manager.show("MainPID"))).await;
        pids.push(manager.show("MainPID"));
        until("it is active", SOON, async || manager.show("ActiveState") == "active").await;
        assert_eq!(manager.show("NRestarts"), "0");
    }
    // One that cannot be fails, and says why where one looks.
    let good = std::fs::read_to_string(manager.file("webws.toml")).unwrap();
    std::fs::write(manager.file("webws.toml"), format!("nonsense = 1\n{good}")).unwrap();
    assert!(!manager.systemctl(&["reload", "webws.service"]).0);
    std::fs::write(manager.file("webws.toml"), &good).unwrap();
    assert_eq!(manager.show("MainPID"), *pids.last().unwrap());
    goes_on(&mut witness, "after a reload that failed").await;
    // Twice as long as the watchdog waits for a sign of life.
    lasting(2 * WATCHDOG).await;
    assert_eq!((manager.show("MainPID"), manager.show("NRestarts")), (pids.last().unwrap().clone(), "0".to_owned()));
    goes_on(&mut witness, "watched").await;
    // A restart keeps the WebSocket, and says what is missing.
    for n in 0..2 {
        witness.client.send_frame(TEXT, Fin::More, format!("half {n}, ").as_bytes()).await;
        let (is_done, text) = manager.systemctl(&["restart", "webws.service"]);
        assert!(is_done, "{text}");
        witness.client.send_frame(CONTINUATION, Fin::Last, b"whole ").await;
        witness.await_text(&format!("half {n}, whole a"), SOON).await;
        goes_on(&mut witness, &format!("after restart {n}")).await;
        assert!(!pids.contains(&manager.show("MainPID")));
        pids.push(manager.show("MainPID"));
        let log = || crate::support::read_log(&manager.file("webws.log"));
        until("the gap is told", SOON, async || gaps(&log()).len() == n + 1).await;
        // A restart that went well: SIGTERM behind ExecStop= is no second signal, and the gap is no surprise.
        assert_eq!(of_level(&entries(&log()), "WARN"), [0; 0]);
    }
    assert_eq!(manager.show("NRestarts"), "0");
    let (is_done, text) = manager.systemctl(&["reload", "webws.service"]);
    assert!(is_done, "{text}");
    goes_on(&mut witness, "after a reload after a restart").await;
    until("systemd follows", SOON, async || !pids.contains(&manager.show("MainPID"))).await;
    pids.push(manager.show("MainPID"));
    // What systemd has to do, it does for the new process: it starts it again, and stops it.
    assert!(Command::new("kill").args(["-KILL", pids.last().unwrap()]).status().unwrap().success());
    until("it is started again", SOON, async || manager.show("NRestarts") == "1").await;
    until("it serves", SOON, async || crate::support::client::Socket::connect(&target).await.is_ok()).await;
    let mut witness = Witness::join(&target, PATH).await;
    let (is_done, text) = manager.systemctl(&["reload", "webws.service"]);
    assert!(is_done, "{text}");
    goes_on(&mut witness, "again").await;
    let (is_done, text) = manager.systemctl(&["stop", "webws.service"]);
    assert!(is_done, "{text}");
    while witness.closed.is_none() {
        assert!(witness.take(SOON).await, "no close frame");
    }
    assert_eq!((witness.closed, manager.show("ActiveState").as_str()), (Some(1001), "inactive"));
    assert!(!socket_in(manager.dir.path()).exists());
}

#[tokio::test]
async fn stop_closes_the_listening_socket_and_restart_and_crash_keep_it() {
    let redis = Redis::start().await;
    let Some(manager) = Manager::start(&redis).await else {
        println!("no systemd can be started here; booted/run.sh tests the units");
        return;
    };
    manager.add_socket();
    let socket = socket_in(manager.dir.path());
    let target = target_in(manager.dir.path());
    let act = |words: &[&str]| {
        let (is_done, text) = manager.systemctl(words);
        assert!(is_done, "{words:?}: {text}");
    };
    let states = || ["webws.service", "webws.socket"].map(|unit| manager.show_of(unit, "ActiveState"));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&socket).unwrap());
    act(&["start", "webws.service"]);
    assert_eq!(states(), ["active", "active"]);
    let before = inode();
    let mut witness = Witness::join(&target, PATH).await;
    act(&["restart", "webws.service"]);
    witness.client.send_text("restarted ").await;
    witness.await_text("restarted a", SOON).await;
    let pid = manager.show("MainPID");
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    // It waits in the backlog for the next process.
    let mut witness = Witness::join(&target, PATH).await;
    assert_eq!((inode(), manager.show("NRestarts").as_str()), (before, "1"));
    act(&["stop", "webws.service"]);
    while witness.closed.is_none() {
        assert!(witness.take(SOON).await, "no close frame");
    }
    assert_eq!(witness.closed, Some(1001));
    let are_down = async || until("both are down", SOON, async || states() == ["inactive", "inactive"]).await;
    are_down().await;
    assert!(!socket.exists());
    // One does not go without the other.
    act(&["start", "webws.socket"]);
    Witness::join(&target, PATH).await.assert_open();
    act(&["stop", "webws.socket"]);
    are_down().await;
    // Nor is the socket left behind by a service that cannot start.
    std::fs::write(manager.file("webws.toml"), "nonsense = 1\n").unwrap();
    assert!(!manager.systemctl(&["start", "webws.service"]).0);
    assert_eq!(states(), ["activating", "active"], "it is tried again");
    act(&["stop", "webws.service"]);
    are_down().await;
}
