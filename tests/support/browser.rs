//! A real Chromium without a window, driven by WebDriver.
//!
//! Everything it writes is in its temporary directory, and none of its processes outlives the handle.

use std::fs::DirEntry;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use hyper::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use url::Url;

use super::{Process, START, free_port, holds_within, read_log};

const REMEDY: &str = "apt-get install chromium chromium-driver";

#[derive(Debug)]
pub(crate) struct Browser {
    client: Client,
    driver: Driver,
}

/// Whether pages have a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Online,
    Offline,
}

/// A command of the DevTools protocol, and its parameters.
#[derive(Debug)]
struct DevTools(&'static str, Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.expect("there is a session")))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        let Self(command, parameters) = self;
        (Method::POST, Some(json!({ "cmd": command, "params": parameters }).to_string()))
    }
}

/// chromedriver, and whatever it has started.
#[derive(Debug)]
struct Driver {
    process: Process,
    dir: TempDir,
}

impl Browser {
    pub(crate) async fn start() -> Browser {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let log = dir.path().join("chromedriver.log");
        let mut command = Command::new("chromedriver");
        command
            .args([format!("--port={port}"), format!("--log-path={}", log.display())])
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let driver = Driver { process: Process::spawn(&mut command, Signal::SIGKILL, REMEDY), dir };
        let listens = holds_within(START, || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
        assert!(listens, "chromedriver does not listen:\n{}", read_log(&log));
        let client = connect(port, &driver.dir).await.unwrap_or_else(|e| {
            panic!("chromium does not start: {e}; get it with: {REMEDY}\n{}", read_log(&log));
        });
        Browser { client, driver }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Refuses the page new requests, or lets them pass again. What is under way goes on: Chromium does not cut it.
    pub(crate) async fn set_network(&self, network: Network) {
        let conditions = json!({
            "offline": network == Network::Offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1
        });
        let commands = [("Network.enable", json!({})), ("Network.emulateNetworkConditions", conditions)];
        for (command, parameters) in commands {
            self.client.issue_cmd(DevTools(command, parameters)).await.unwrap();
        }
    }

    /// What `script` returns.
    pub(crate) async fn execute(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|e| panic!("{script}: {e}"))
    }
}

async fn connect(port: u16, dir: &TempDir) -> Result<Client, String> {
    let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
    let arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        &profile,
    ];
    let Value::Object(capabilities) =
        json!({ "goog:chromeOptions": { "args": arguments }, "acceptInsecureCerts": true })
    else {
        unreachable!("it is an object")
    };
    let connecting = ClientBuilder::new(HttpConnector::new())
        .capabilities(capabilities)
        .connect(&format!("http://127.0.0.1:{port}"))
        .await;
    connecting.map_err(|error| error.to_string())
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Chromium goes on when chromedriver alone is killed.
        end_all(self.dir.path());
    }
}

/// Kills the driver and what it started, and waits until all of it is gone.
fn end_all(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut dying = Vec::new();
    loop {
        for pid in processes_of(dir) {
            // It may be gone by itself meanwhile.
            kill(pid, Signal::SIGKILL).ok();
            dying.push(pid);
        }
        dying.retain(|pid| is_running(*pid));
        if dying.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::yield_now();
    }
}

/// Whether a thread of the process may still write: its environment goes before its last thread does.
fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !is_zombie || threads > 1
}

/// All processes with our directory as TMPDIR, and their descendants: some of Chromium's write their
/// title over their environment.
fn processes_of(dir: &Path) -> Vec<Pid> {
    let ours = format!("TMPDIR={}", dir.display());
    let pid = |entry: DirEntry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw);
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| pid(entry.ok()?));
    let parents: Vec<(Pid, Option<Pid>)> = all.map(|pid| (pid, parent(pid))).collect();
    let has_it = |pid: &Pid| {
        // A zombie's is empty, another user's is unreadable.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes())
    };
    let mut found: Vec<Pid> = parents.iter().map(|(pid, _)| *pid).filter(has_it).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children = parents.iter().filter(|(_, of)| *of == Some(parent)).map(|(child, _)| *child);
        let children: Vec<Pid> = children.filter(|child| !found.contains(child)).collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// proc(5), stat: the second field behind the name.
fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn no_process_of_a_browser_outlives_it() {
        let browser = Browser::start().await;
        assert_eq!(browser.execute("return 6 * 7").await, 42);
        let dir = browser.driver.dir.path().to_owned();
        assert!(processes_of(&dir).len() > 2, "chromium is not among {:?}", processes_of(&dir));
        drop(browser);
        assert_eq!(processes_of(&dir), []);
        assert!(!dir.exists());
    }
}
