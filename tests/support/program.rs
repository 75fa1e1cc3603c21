//! webws with any command line, in a directory that the test made and may fill.
//!
//! `run` is for command lines that end by themselves, `Program` for those that serve. What it logs is
//! JSON, because its stderr is no terminal; `Program::lines` reads it back.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::UnixStream;

use super::client::Target;
use super::{Process, START, holds_within, read_log};

/// Names and values for the environment.
pub(crate) type Variables<'a> = &'a [(&'a str, &'a str)];

/// Runs `webws` with `arguments` in `dir` to its end.
pub(crate) async fn run(dir: &Path, arguments: &[&str], environment: Variables<'_>) -> Output {
    let mut command = tokio::process::Command::from(command(dir, arguments, environment));
    let ended = command.kill_on_drop(true).output();
    let ended = tokio::time::timeout(START, ended).await;
    ended.unwrap_or_else(|_| panic!("webws {arguments:?} still runs after {START:?}")).unwrap()
}

/// A command line that ended, for asserts: code, stdout, stderr.
pub(crate) fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn command(dir: &Path, arguments: &[&str], environment: Variables<'_>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webws"));
    command.args(arguments).envs(environment.iter().copied()).current_dir(dir).stdin(Stdio::null());
    command
}

/// A webws that serves.
#[derive(Debug)]
pub(crate) struct Program {
    process: Process,
    log: PathBuf,
}

impl Program {
    /// Spawns `webws` with `arguments` in `dir`, where `webws.log` collects what it says.
    pub(crate) fn spawn(dir: &Path, arguments: &[&str], environment: Variables<'_>) -> Program {
        Program::spawn_command(&mut command(dir, arguments, environment), dir)
    }

    /// Spawns a command that becomes webws sooner or later.
    pub(crate) fn spawn_command(command: &mut Command, dir: &Path) -> Program {
        let log = dir.join("webws.log");
        let file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Program { process: Process::spawn(command, Signal::SIGKILL, "cargo build"), log }
    }

    /// Spawns it and waits until it accepts on the Unix socket `dir/webws.sock`.
    pub(crate) async fn start(dir: &Path, arguments: &[&str], environment: Variables<'_>) -> Program {
        let mut program = Program::spawn(dir, arguments, environment);
        program.accepts_on(&socket_in(dir)).await;
        program
    }

    /// Waits until it accepts on that Unix socket.
    pub(crate) async fn accepts_on(&mut self, socket: &Path) {
        let mut exit = None;
        let ready = holds_within(START, || {
            exit = self.process.exit_status();
            let ended = exit.is_some();
            async move { ended || UnixStream::connect(socket).await.is_ok() }
        })
        .await;
        assert!(ready && exit.is_none(), "webws did not start ({exit:?}):\n{}", self.log());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it without notice.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// How it ended, or `None` while it runs.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        self.process.wait_exit(deadline, &self.log).await
    }

    /// SIGTERM; it must end well.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(START).await;
        assert!(status.success(), "{status}\n{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        read_log(&self.log)
    }

    /// The log's lines; what is no JSON panics.
    pub(crate) fn lines(&self) -> Vec<Value> {
        json_lines(&self.log())
    }

    /// The line that says what it listens on.
    pub(crate) async fn start_line(&self) -> Value {
        let mut found = None;
        holds_within(START, || {
            found = self.lines().into_iter().find(|line| line["max_sessions"].is_u64());
            std::future::ready(found.is_some())
        })
        .await;
        found.unwrap_or_else(|| panic!("no start line:\n{}", self.log()))
    }
}

impl Drop for Program {
    /// A failing test shows the log before its directory goes.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("--- webws' log ---\n{}---\n", self.log());
            std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
        }
    }
}

/// Where `Program::start` expects the socket.
pub(crate) fn socket_in(dir: &Path) -> PathBuf {
    dir.join("webws.sock")
}

/// `--listen`'s argument for it.
pub(crate) fn listen_in(dir: &Path) -> String {
    format!("unix:{}", socket_in(dir).display())
}

/// The same, to connect to.
pub(crate) fn target_in(dir: &Path) -> Target {
    Target::Unix(socket_in(dir))
}

/// The lines of a log, of which the last may be half written.
pub(crate) fn json_lines(log: &str) -> Vec<Value> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The lines of a log as data. Lines that are no JSON are left out: other programs may write to the same file.
pub(crate) fn entries(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The log's lines of that level.
pub(crate) fn of_level(lines: &[Value], level: &str) -> Vec<Value> {
    lines.iter().filter(|line| line["level"] == level).cloned().collect()
}
