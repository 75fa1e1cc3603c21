//! Promise: a signal that somebody sends in passing never costs a WebSocket. SIGHUP is a reload; SIGTERM, SIGINT and
//! SIGQUIT drain; the others do nothing.

use std::path::Path;

use nix::libc;
use nix::sys::signal::Signal;

use crate::support::client::Client;
use crate::support::program::{Program, listen_in, of_level, target_in};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{Process, SOON, START, until};

const PATH: &str = "/webws?channel=%22zhang%22";

async fn echoes(client: &mut Client, text: &str) {
    client.send_text(&format!("{text} ")).await;
    client.expect_text(&format!("{text} zhang")).await;
}

/// Sends a signal by its number: `nix` has no names for real-time ones.
fn send(pid: u32, number: i32) {
    assert!(kill(pid, number), "kill -{number}");
}

fn kill(pid: u32, number: i32) -> bool {
    std::process::Command::new("kill").args([format!("-{number}"), pid.to_string()]).status().unwrap().success()
}

#[tokio::test]
async fn sighup_is_a_reload_and_closes_nobody() {
    let redis = Redis::start().await;
    let mut webws = Webws::builder().broker(&redis.url()).start().await;
    let mut client = Client::connect(&webws.target(), PATH).await;
    webws.signal(Signal::SIGHUP);
    until("it is handed over", START, async || webws.heirs().len() == 1).await;
    assert!(webws.wait_exit(START).await.success(), "{}", webws.log());
    echoes(&mut client, "after the reload").await;
    // The new process understands it as well.
    send(webws.heirs()[0], libc::SIGHUP);
    until("it is handed over again", START, async || webws.heirs().len() == 2).await;
    echoes(&mut client, "after another").await;
    send(webws.heirs()[1], libc::SIGTERM);
    client.expect_close(1001, START).await;
}

#[tokio::test]
async fn signals_that_mean_nothing_do_nothing() {
    for command in ["run", "dev"] {
        let dir = tempfile::tempdir().unwrap();
        let environment = [("WEBWS_LOG", "debug")];
        let arguments = [command, "--broker", "memory", "--listen", &listen_in(dir.path())];
        let mut program = Program::start(dir.path(), &arguments, &environment).await;
        let mut client = Client::connect(&target_in(dir.path()), PATH).await;
        let named = [
            libc::SIGUSR1,
            libc::SIGPIPE,
            libc::SIGALRM,
            libc::SIGVTALRM,
            libc::SIGPROF,
            libc::SIGIO,
            libc::SIGPWR,
            libc::SIGSTKFLT,
            libc::SIGTTIN,
            libc::SIGTTOU,
            libc::SIGXFSZ,
            libc::SIGURG,
            libc::SIGWINCH,
            libc::SIGCHLD,
            libc::SIGCONT,
        ];
        for number in named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
            send(program.pid(), number);
            assert_eq!(program.exit_status(), None, "{command}: signal {number}");
        }
        echoes(&mut client, "still there").await;
        until("SIGUSR1 is answered for", SOON, async || program.log().contains("SIGUSR1")).await;
        // SIGQUIT drains, as SIGTERM.
        program.signal(Signal::SIGQUIT);
        client.expect_close(1001, START).await;
        assert!(program.wait_exit(START).await.success(), "{command}: {}", program.log());
    }
}

/// As in a container, where the first process ends all others with it.
#[tokio::test]
async fn sighup_does_not_kill_the_first_process_of_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args([env!("CARGO_BIN_EXE_webws"), "run", "--broker", "memory", "--listen", &listen_in(dir.path())]);
    let mut program = Program::spawn_command(&mut command, dir.path());
    program.accepts_on(&dir.path().join("webws.sock")).await;
    let mut client = Client::connect(&target_in(dir.path()), PATH).await;
    let first = child_of(program.pid());
    for _ in 0..2 {
        send(first, libc::SIGHUP);
    }
    until("it says why it does not", SOON, async || !of_level(&program.lines(), "ERROR").is_empty()).await;
    echoes(&mut client, "still there").await;
    assert_eq!(program.exit_status(), None);
}

fn child_of(pid: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// A terminal that is closed takes `dev` along, which nothing else would end; `run` goes on.
#[tokio::test]
async fn a_terminal_that_is_closed_ends_dev_and_not_run() {
    for command in ["dev", "run"] {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        // script(1) makes a terminal, and closes it when it is killed.
        let line = format!(
            "echo $$ > {}; exec {} {command} --broker memory --listen {}",
            pid_file.display(),
            env!("CARGO_BIN_EXE_webws"),
            listen_in(dir.path())
        );
        let mut terminal = std::process::Command::new("script");
        terminal.args(["-q", "-c", &line, "/dev/null"]).stdin(std::process::Stdio::null());
        terminal.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut terminal = Process::spawn(&mut terminal, Signal::SIGKILL, "apt-get install bsdutils");
        let target = target_in(dir.path());
        until("it accepts", START, async || crate::support::client::Socket::connect(&target).await.is_ok()).await;
        let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let mut client = Client::connect(&target, PATH).await;
        terminal.kill();
        if command == "dev" {
            client.expect_close(1001, START).await;
            until("it has ended", START, async || !is_there(pid)).await;
            continue;
        }
        until("another process has taken over", START, async || !is_there(pid)).await;
        echoes(&mut client, "still there").await;
        end_all_of(dir.path());
        client.expect_close(1001, START).await;
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

/// Ends the processes that were started with a directory's socket.
fn end_all_of(dir: &Path) {
    let wanted = listen_in(dir);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(arguments) = std::fs::read_to_string(process.path().join("cmdline")) else { continue };
        let is_webws = arguments.starts_with(env!("CARGO_BIN_EXE_webws")) && arguments.contains(&wanted);
        if let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_webws) {
            // The one that has handed over may have ended meanwhile.
            kill(pid, libc::SIGTERM);
        }
    }
}
