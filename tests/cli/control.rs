//! Asking a running webws: at the right socket, found without being named, and at any other one, which is
//! said without waiting.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use crate::support::START;
use crate::support::program::{Program, listen_in, run, told};
use crate::support::redis::Redis;

#[tokio::test]
async fn upgrade_at_another_socket_is_answered_with_a_sentence_and_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let redis = Redis::start().await;
    let webws =
        Program::start(dir.path(), &["run", "--broker", "memory", "--listen", &listen_in(dir.path())], &[]).await;
    std::fs::write(dir.path().join("file"), "no socket").unwrap();
    let _silent = UnixListener::bind(dir.path().join("silent")).unwrap();
    let _datagrams = UnixDatagram::bind(dir.path().join("datagrams")).unwrap();
    let redis_socket = redis.unix_url().trim_start_matches("unix://").to_owned();
    for (socket, sentence) in [
        ("absent", "is webws running"),
        ("file", "is webws running"),
        ("datagrams", "is not webws' control socket"),
        ("webws.sock", "something else answers there"),
        (redis_socket.as_str(), "something else answers there"),
        ("silent", "is not webws' control socket"),
        (".", "is webws running"),
    ] {
        for command in ["upgrade", "suspend"] {
            let since = Instant::now();
            let (code, stdout, stderr) = told(&run(dir.path(), &[command, "--control", socket], &[]).await);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{socket}: {stderr}");
            assert!(stderr.starts_with("webws: ") && stderr.contains(sentence), "{socket}: {stderr}");
            assert!(since.elapsed() < Duration::from_secs(10), "{socket}: it took {:?}", since.elapsed());
        }
    }
    webws.stop().await;
}

/// In a namespace with a /run of its own, where `control` is what the shipped unit has there.
#[tokio::test]
async fn upgrade_finds_the_control_socket_of_the_shipped_units() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    let control = dir.path().join("control.sock").display().to_string();
    let arguments = ["run", "--broker", "memory", "--listen", &listen, "--workers", "1"];
    let mut webws = Program::start(dir.path(), &arguments, &[("WEBWS_CONTROL", &control)]).await;
    std::fs::write(dir.path().join("webws.toml"), "broker = \"memory\"\n").unwrap();
    let mut last = None;
    for (instance, arguments) in [("", ""), ("", "--config webws.toml"), ("-news", "")] {
        let script = format!(
            "mount -t tmpfs none /run && ln -s \"$1\" /run/webws-control{instance} && exec \"$0\" upgrade {arguments}"
        );
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_webws")]);
        let ended = command.arg(dir.path()).current_dir(dir.path()).kill_on_drop(true).output();
        let ended = tokio::time::timeout(START, ended).await.expect("it still runs").unwrap();
        let (code, stdout, stderr) = told(&ended);
        assert_eq!(code, Some(0), "{instance} {arguments}: {stderr}");
        let heir = stdout.split("process ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<i32>().ok());
        last = Some(heir.unwrap_or_else(|| panic!("no process in {stdout:?}")));
    }
    assert!(webws.wait_exit(START).await.success());
    let last = nix::unistd::Pid::from_raw(last.expect("it was exchanged"));
    nix::sys::signal::kill(last, nix::sys::signal::Signal::SIGTERM).unwrap();
}
