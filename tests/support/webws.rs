//! The program under test, as an operator runs it: a config file, a Unix socket, signals, a log.

use std::fs::{DirEntry, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::client::Target;
use super::http;
use super::ledger::{self, Gap};
use super::program::entries;
use super::{Process, START, free_port, holds_within, read_log};

#[derive(Debug)]
pub(crate) struct Webws {
    process: Process,
    tcp: SocketAddr,
    dir: TempDir,
}

/// What goes into the config file, in its order, and into the environment.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    settings: String,
    tables: String,
    endpoints: String,
    environment: Vec<(String, String)>,
    hosts: Option<String>,
    descriptors: Option<usize>,
    is_exchangeable: bool,
    is_straight: bool,
}

impl Webws {
    /// Starts with `config`, a config file without `listen`.
    pub(crate) async fn start(config: &str) -> Webws {
        Webws::builder().extra_toml(config).start().await
    }

    /// Starts with the default endpoint (`/webws`, lua wire) on that broker.
    pub(crate) async fn on(broker: &str) -> Webws {
        Webws::builder().broker(broker).start().await
    }

    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// The Unix socket it listens on.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("webws.sock")
    }

    /// Where a straight one takes clients.
    pub(crate) fn handoff(&self) -> PathBuf {
        self.dir.path().join("handoff.sock")
    }

    pub(crate) fn target(&self) -> Target {
        Target::Unix(self.socket())
    }

    /// The TCP address it listens on as well.
    pub(crate) fn tcp_target(&self) -> Target {
        Target::Tcp(self.tcp)
    }

    /// Its temporary directory, which holds `webws.toml`, `webws.sock` and `webws.log`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process that serves: the one that was started, or who took over last.
    pub(crate) fn pid(&self) -> u32 {
        self.heirs().pop().unwrap_or(self.process.pid())
    }

    /// Those who took over, in their order, as the log has them.
    pub(crate) fn heirs(&self) -> Vec<u32> {
        let done = self.entries_with("standstill_ms").into_iter();
        done.filter_map(|entry| entry["pid"].as_u64()?.try_into().ok()).collect()
    }

    /// Whether a process that was started to take over still exists as a child (proc(5), task/TID/children).
    pub(crate) fn is_handing_over(&self) -> bool {
        // The process may have ended.
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        let children = |thread: std::io::Result<DirEntry>| {
            // A thread may have ended meanwhile.
            std::fs::read_to_string(thread.ok()?.path().join("children")).ok()
        };
        threads.filter_map(children).any(|children| !children.trim().is_empty())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a pid is an i32"));
        kill(pid, signal).unwrap();
    }

    pub(crate) fn term(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait_exit(deadline, &self.dir.path().join("webws.log")).await
    }

    /// What it has written to stdout and stderr so far.
    pub(crate) fn log(&self) -> String {
        read_log(&self.dir.path().join("webws.log"))
    }

    /// What /readyz answers: the status and the body.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        let answer = http::get(&self.target(), "/readyz").await;
        (answer.head.status, answer.body)
    }

    pub(crate) async fn is_ready(&self) -> bool {
        self.readiness().await.0 == 200
    }

    /// The log's lines as data, in order.
    pub(crate) fn entries(&self) -> Vec<Value> {
        entries(&self.log())
    }

    /// The entries that have that field.
    pub(crate) fn entries_with(&self, field: &str) -> Vec<Value> {
        self.entries().into_iter().filter(|entry| !entry[field].is_null()).collect()
    }

    /// The entries at WARN and ERROR.
    pub(crate) fn warnings(&self) -> Vec<Value> {
        let is_warning = |entry: &Value| entry["level"] == "WARN" || entry["level"] == "ERROR";
        self.entries().into_iter().filter(is_warning).collect()
    }

    /// The warnings that Redis is away, each with `server` and `error`. No field tells them from other warnings
    /// about a server: this is the only place that knows their wording.
    pub(crate) fn outages(&self) -> Vec<Value> {
        let is_outage = |entry: &Value| {
            entry["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("Redis at ") && text.contains(" is unavailable: "))
        };
        self.warnings().into_iter().filter(is_outage).collect()
    }

    /// Whether the `error` of any warning contains `part`.
    pub(crate) fn warns_of(&self, part: &str) -> bool {
        self.warnings().iter().any(|entry| entry["error"].as_str().is_some_and(|error| error.contains(part)))
    }

    /// The gaps that the log reports.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        ledger::gaps(&self.log())
    }

    /// A counter of the process that stopped last, whose last line has all counters as fields; one that is 0 may be
    /// absent.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let entries = self.entries();
        let stopped = entries.iter().rev().find(|entry| entry["sessions_opened"].is_u64());
        let stopped = stopped.unwrap_or_else(|| panic!("no counters in {entries:?}"));
        stopped[name].as_u64().unwrap_or_default()
    }

    /// Resident memory (proc(5), VmRSS).
    pub(crate) fn rss_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The file that is started when it is exchanged.
    pub(crate) fn binary(&self) -> PathBuf {
        self.dir.path().join("webws")
    }

    /// What shall go wrong in the processes that it starts; nothing when it is empty.
    pub(crate) fn set_fault(&self, fault: &str) {
        std::fs::write(self.dir.path().join("fault"), fault).unwrap();
    }

    /// Changes what it finds in /etc/hosts.
    pub(crate) fn set_hosts(&self, hosts: &str) {
        // In place: the file is mounted, not its name.
        std::fs::write(self.dir.path().join("hosts"), hosts).unwrap();
    }

    pub(crate) fn fd_count(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Builder {
    pub(crate) fn broker(self, url: &str) -> Builder {
        self.setting(&format!("broker = {url:?}"))
    }

    pub(crate) fn workers(self, n: usize) -> Builder {
        self.setting(&format!("workers = {n}"))
    }

    /// A line for the top of the file, such as `drain_time = "1s"`.
    pub(crate) fn setting(mut self, line: &str) -> Builder {
        self.settings += &format!("{line}\n");
        self
    }

    /// Tables, such as `[limits]\nmax_sessions = 5`; top-level keys may come before the first.
    pub(crate) fn extra_toml(mut self, toml: &str) -> Builder {
        self.tables += &format!("{toml}\n");
        self
    }

    /// The keys of one `[[endpoint]]`.
    pub(crate) fn endpoint_toml(mut self, keys: &str) -> Builder {
        self.endpoints += &format!("[[endpoint]]\n{keys}\n");
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Builder {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As a binary of its own (`Webws::binary`), with a control socket and faults on demand.
    pub(crate) fn exchangeable(mut self) -> Builder {
        self.is_exchangeable = true;
        self.setting("control = \"control.sock\"").env("HANDOVER_FAULT", "fault")
    }

    /// Takes clients that nginx hands off, too.
    pub(crate) fn straight(mut self) -> Builder {
        self.is_straight = true;
        self
    }

    /// What it finds in /etc/hosts, which `Webws::set_hosts` changes.
    pub(crate) fn hosts(mut self, hosts: &str) -> Builder {
        self.hosts = Some(hosts.to_owned());
        self
    }

    /// With that limit of open files.
    pub(crate) fn descriptors(mut self, limit: usize) -> Builder {
        self.descriptors = Some(limit);
        self
    }

    /// Writes the config file, starts webws and waits until it accepts.
    pub(crate) async fn start(self) -> Webws {
        let dir = tempfile::tempdir().unwrap();
        let tcp = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let at = dir.path().display();
        let mut listen = vec![format!("unix:{at}/webws.sock"), format!("tcp:{tcp}")];
        listen.extend(self.is_straight.then(|| format!("handoff:{at}/handoff.sock")));
        let Builder { settings, tables, endpoints, environment, hosts, descriptors, is_exchangeable, .. } = self;
        let config = format!("listen = {listen:?}\n{settings}{tables}{endpoints}");
        std::fs::write(dir.path().join("webws.toml"), &config).unwrap();
        let log = File::create(dir.path().join("webws.log")).unwrap();
        let mut command = match hosts {
            None if is_exchangeable => {
                let binary = dir.path().join("webws");
                // A link, where that is possible, for it is large.
                if std::fs::hard_link(env!("CARGO_BIN_EXE_webws"), &binary).is_err() {
                    std::fs::copy(env!("CARGO_BIN_EXE_webws"), &binary).unwrap();
                }
                Command::new(binary)
            }
            None if descriptors.is_some() => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={}", descriptors.unwrap_or_default()));
                command.arg(env!("CARGO_BIN_EXE_webws"));
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_webws")),
            // In namespaces of its own, where anybody may mount (unshare(1)).
            Some(hosts) => {
                std::fs::write(dir.path().join("hosts"), hosts).unwrap();
                let mut command = Command::new("unshare");
                command.args(["--map-root-user", "--mount", "sh", "-c"]);
                command.arg("mount --bind hosts /etc/hosts && exec \"$0\" \"$@\"").arg(env!("CARGO_BIN_EXE_webws"));
                command
            }
        };
        command
            .args(["run", "--config", "webws.toml"])
            .envs(environment)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let process = Process::spawn(&mut command, Signal::SIGKILL, "cargo build");
        let mut webws = Webws { process, tcp, dir };
        let socket = webws.socket();
        let mut exit = None;
        let ready = holds_within(START, || {
            exit = webws.process.exit_status();
            let (socket, ended) = (socket.clone(), exit.is_some());
            async move { ended || UnixStream::connect(socket).await.is_ok() }
        })
        .await;
        assert!(ready && exit.is_none(), "webws did not start ({exit:?}):\n{}\n{config}", webws.log());
        webws
    }
}

impl Drop for Webws {
    /// A failing test shows the log before its directory goes.
    fn drop(&mut self) {
        for heir in self.heirs() {
            // Most have ended.
            kill(Pid::from_raw(heir.try_into().expect("a pid is an i32")), Signal::SIGKILL).ok();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(30).collect::<Vec<_>>();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            let text = format!("--- the end of webws' log ---\n{tail}\n---\n");
            std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
        }
    }
}

mod tests {
    use super::*;
    use crate::support::SOON;
    use crate::support::client::Client;
    use crate::support::redis::Redis;

    #[tokio::test]
    async fn webws_serves_both_its_listeners_and_exits_cleanly_on_term() {
        let redis = Redis::start().await;
        let mut webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
        for target in [webws.target(), webws.tcp_target()] {
            let mut client = Client::connect(&target, "/webws?channel=%22both%22").await;
            client.send_text("here, ").await;
            client.expect_text("here, both").await;
            client.close().await;
        }
        assert!(webws.rss_kb() > 0 && webws.fd_count() > 3);
        webws.term();
        let status = webws.wait_exit(SOON).await;
        assert!(status.success(), "{status}\n{}", webws.log());
    }
}
