//! A real Chromium without a window, driven by WebDriver.
//!
//! Everything it writes is in its temporary directory, and none of its processes outlives the handle.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{Process, START, free_port, holds_within, read_log};

const REMEDY: &str = "apt-get install chromium chromium-driver";

#[derive(Debug)]
pub(crate) struct Browser {
    client: Client,
    driver: Driver,
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
    let Value::Object(capabilities) = json!({ "goog:chromeOptions": { "args": arguments } }) else {
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
        // Chromium goes on when chromedriver is killed.
        self.process.kill();
        end_all(self.dir.path());
    }
}

/// Kills what the driver started and waits until it is gone: all of it has our directory as TMPDIR.
fn end_all(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(dir);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left {
            // It may be gone by itself meanwhile.
            kill(pid, Signal::SIGKILL).ok();
        }
        std::thread::yield_now();
    }
}

fn processes_of(dir: &Path) -> Vec<Pid> {
    let ours = format!("TMPDIR={}", dir.display());
    let has_it = |process: &PathBuf| {
        // A zombie's is empty, another user's is unreadable.
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == ours.as_bytes())
    };
    let pid = |process: PathBuf| process.file_name()?.to_str()?.parse().ok().map(Pid::from_raw);
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    all.filter(has_it).filter_map(pid).collect()
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
