//! Promise: the command line does what its help says, and every wrong setting, argument or socket is met
//! with a sentence and the exit code of its kind: 64 (arguments), 78 (settings), 1 (anything else).
//!
//! `check` is about wrong settings, `environment` about variables, `advice` about what stands in the way of a
//! start, `control` about asking a running process; `broker` about reaching Redis, `tls` about `rediss://`,
//! `readme` about the table of settings.

mod advice;
mod broker;
mod check;
mod control;
mod environment;
mod outlook;
mod readme;
mod tls;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group};

use crate::support::client::{Client, Target};
use crate::support::program::{Program, json_lines, listen_in, of_level, run, socket_in, target_in, told};
use crate::support::redis::Redis;
use crate::support::{SOON, free_port, until};

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[tokio::test]
async fn check_prints_the_settings_in_force_with_secrets_masked() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "webws.toml",
        "workers = 3\nbroker = \"rediss://web:hunter2@r.example/3\"\ndrain_time = \"7s\"\n",
    );
    let environment = [("WEBWS_DRAIN_TIME", "9s")];
    let (code, stdout, stderr) = told(&run(dir.path(), &["check", "--config", "webws.toml"], &environment).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(!stdout.contains("hunter2"), "{stdout}");
    let settings: toml::Table = toml::from_str(&stdout).unwrap();
    assert_eq!(settings["workers"].as_integer(), Some(3));
    assert_eq!(settings["drain_time"].as_str(), Some("9s"), "the environment wins over the file");
    assert_eq!(settings["broker"].as_str(), Some("rediss://<hidden>@r.example:6379"));
    assert_eq!(settings["limits"]["max_handshakes"].as_integer(), Some(16_384), "defaults are shown too");
}

#[tokio::test]
async fn wrong_arguments_exit_64_and_repeat_no_password() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &["run", "--nonsense"][..],
        &["walk"],
        &["check"],
        &["run", "--workers", "many"],
        &["run", "--listen", "udp:1"],
        &["run", "--broker", "http://web:hunter2@localhost"],
        &["dev", "--broker=redis:/web:hunter2@localhost"],
    ] {
        let (code, stdout, stderr) = told(&run(dir.path(), arguments, &[]).await);
        assert_eq!((code, stdout.as_str()), (Some(64), ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("--help"), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{arguments:?}: {stderr}");
    }
    let (_, _, stderr) = told(&run(dir.path(), &["run", "--broker", "http://localhost"], &[]).await);
    assert!(stderr.contains("--broker") && stderr.contains("redis://HOST:PORT"), "{stderr}");
}

#[tokio::test]
async fn a_missing_file_and_a_wrong_variable_are_named_and_exit_78() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["check", "run"] {
        let (code, _, stderr) = told(&run(dir.path(), &[command, "--config", "absent.toml"], &[]).await);
        assert_eq!(code, Some(78), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("absent.toml"), "{stderr}");
    }
    let environment = [("WEBWS_WORKERS", "many"), ("WEBWS_BROKER", "redis:/w:hunter2@")];
    let (code, _, stderr) = told(&run(dir.path(), &["run"], &environment).await);
    assert_eq!((code, stderr.lines().count()), (Some(78), 2), "{stderr}");
    for (name, _) in environment {
        assert!(stderr.contains(name), "{stderr}");
    }
    assert!(!stderr.contains("hunter2"), "{stderr}");
    let (code, _, stderr) = told(&run(dir.path(), &["run", "--workers", "5000"], &[]).await);
    assert!(code == Some(78) && stderr.contains("workers = 5000"), "{stderr}");
}

#[tokio::test]
async fn options_win_over_the_environment_and_the_environment_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = format!("listen = [\"tcp:127.0.0.1:{}\"]\nbroker = \"redis://file\"\nworkers = 1\n", free_port());
    write(dir.path(), "webws.toml", &file);
    let listen = format!("tcp:127.0.0.1:{}", free_port());
    let environment =
        [("WEBWS_LISTEN", listen.as_str()), ("WEBWS_BROKER", "redis://127.0.0.1:1"), ("WEBWS_WORKERS", "2")];
    let config = ["run", "--config", "webws.toml"];

    let program = Program::spawn(dir.path(), &config, &environment);
    let line = program.start_line().await;
    assert_eq!((&line["listen"], &line["workers"]), (&listen.as_str().into(), &2.into()), "{line}");
    assert_eq!(line["broker"], "redis://127.0.0.1:1");
    program.stop().await;
    std::fs::remove_file(dir.path().join("webws.log")).unwrap();

    let own = listen_in(dir.path());
    let tcp = format!("tcp:127.0.0.1:{}", free_port());
    let options = ["--listen", &own, "--listen", &tcp, "--broker", "memory", "--workers", "3"];
    let program = Program::start(dir.path(), &[&config[..], &options[..]].concat(), &environment).await;
    let line = program.start_line().await;
    assert_eq!(line["listen"], format!("{own}, {tcp}"));
    assert_eq!((&line["broker"], &line["workers"]), (&"memory".into(), &3.into()), "{line}");
    let addr = tcp.strip_prefix("tcp:").unwrap().parse().unwrap();
    let mut client = Client::connect(&Target::Tcp(addr), "/webws?channel=1").await;
    client.send_text("to ").await;
    client.expect_text("to 1").await;
    program.stop().await;
}

#[tokio::test]
async fn help_version_completions_and_man_page_come_from_one_definition() {
    let dir = tempfile::tempdir().unwrap();
    let (code, version, _) = told(&run(dir.path(), &["--version"], &[]).await);
    assert_eq!((code, version), (Some(0), format!("webws {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, help, _) = told(&run(dir.path(), &["--help"], &[]).await);
    assert!(code == Some(0) && help.contains("SIGTERM") && help.contains("WEBWS_"), "{help}");
    let (code, man, _) = told(&run(dir.path(), &["man"], &[]).await);
    assert_eq!(code, Some(0));
    for section in [
        ".TH webws 8",
        ".SH NAME",
        ".SH SYNOPSIS",
        ".SH DESCRIPTION",
        ".SH \"WEBWS RUN\"",
        ".SH \"WEBWS CHECK\"",
        ".SH FILES",
        ".SH ENVIRONMENT",
        ".SH \"EXIT STATUS\"",
        ".SH EXAMPLES",
        ".SH \"SEE ALSO\"",
        ".SH NOTES",
    ] {
        assert_eq!(man.matches(section).count(), 1, "the man page has {section} once");
    }
    assert!(!man.contains(".SH EXTRA"), "clap_mangen calls the notes otherwise");
    for (command, options) in [
        ("run", &["config", "listen", "broker", "workers"][..]),
        ("dev", &["broker", "listen"]),
        ("check", &["config", "nginx", "control"]),
    ] {
        let (code, help, _) = told(&run(dir.path(), &[command, "--help"], &[]).await);
        assert_eq!(code, Some(0));
        for option in options {
            assert!(help.contains(&format!("--{option}")), "{help}");
            assert!(man.contains(&format!("\\-\\-{option}")), "the man page has no --{option}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = told(&run(dir.path(), &["completions", shell], &[]).await);
        assert_eq!(code, Some(0));
        assert!(script.contains("workers") && script.contains("check"), "{shell}: {script}");
        write(dir.path(), shell, &script);
        // bash is always there; the others' scripts are parsed where they are.
        let parsed = Command::new(shell).arg("-n").arg(dir.path().join(shell)).stderr(Stdio::piped()).output();
        match parsed {
            Ok(parsed) => assert!(parsed.status.success(), "{shell} -n: {}", told(&parsed).2),
            Err(error) => assert!(shell != "bash", "bash: {error}"),
        }
    }
}

#[tokio::test]
async fn the_socket_of_a_dead_process_is_taken_over_and_that_of_a_live_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    let arguments = ["run", "--broker", "memory", "--listen", &listen];
    let mut first = Program::start(dir.path(), &arguments, &[]).await;
    first.kill();
    assert!(socket_in(dir.path()).exists(), "nothing is left to take over");
    let second = Program::start(dir.path(), &arguments, &[]).await;

    let (code, _, stderr) = told(&run(dir.path(), &arguments, &[]).await);
    assert_eq!(code, Some(1), "{stderr}");
    let sentence = stderr.lines().find(|line| line.starts_with("webws: ")).unwrap_or_default();
    assert!(sentence.contains(&listen) && sentence.contains("another process"), "{stderr}");
    Client::connect(&target_in(dir.path()), "/webws?channel=1").await.close().await;

    second.stop().await;
    assert!(!socket_in(dir.path()).exists(), "the socket file stays behind");
    write(dir.path(), "webws.sock", "no socket");
    let (code, _, stderr) = told(&run(dir.path(), &arguments, &[]).await);
    assert!(code == Some(1) && stderr.contains("not a socket"), "{stderr}");
    assert_eq!(std::fs::read(socket_in(dir.path())).unwrap(), b"no socket", "somebody's file is gone");
}

#[tokio::test]
async fn the_socket_has_the_mode_and_group_of_the_settings_and_goes_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    // Only root may give a file to a group it is not in.
    let gid = if Gid::effective().as_raw() == 0 { 1 } else { Gid::effective().as_raw() };
    let group = Group::from_gid(gid.into()).unwrap().expect("the group has a name").name;
    for (mode, group) in [("0600", None), ("0666", Some(&group)), ("0620", Some(&group))] {
        let listen = listen_in(dir.path());
        let mut settings = format!("listen = [{listen:?}]\nbroker = \"memory\"\nsocket_mode = \"{mode}\"\n");
        if let Some(group) = group {
            settings += &format!("socket_group = {group:?}\n");
        }
        write(dir.path(), "webws.toml", &settings);
        let program = Program::start(dir.path(), &["run", "--config", "webws.toml"], &[]).await;
        let file = std::fs::metadata(socket_in(dir.path())).unwrap();
        assert_eq!(format!("{:04o}", file.permissions().mode() & 0o7777), mode);
        assert_eq!(file.gid(), group.map_or(Gid::effective().as_raw(), |_| gid));
        program.stop().await;
        assert!(!socket_in(dir.path()).exists(), "the socket file stays behind");
    }
    let listen = listen_in(dir.path());
    let (code, _, stderr) =
        told(&run(dir.path(), &["run", "--listen", &listen], &[("WEBWS_SOCKET_GROUP", "no-such-group")]).await);
    assert!(code == Some(78) && stderr.contains("'no-such-group'"), "{code:?} {stderr}");
}

#[tokio::test]
async fn a_directory_that_is_missing_or_closed_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/absent/webws.sock", dir.path().display());
    let (code, _, stderr) = told(&run(dir.path(), &["run", "--broker", "memory", "--listen", &listen], &[]).await);
    assert!(code == Some(1) && stderr.contains(&listen) && stderr.contains("create the directory"), "{stderr}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("tcp:{}", taken.local_addr().unwrap());
    let (code, _, stderr) = told(&run(dir.path(), &["run", "--broker", "memory", "--listen", &listen], &[]).await);
    assert!(code == Some(1) && stderr.contains(&listen), "{stderr}");
}

#[tokio::test]
async fn one_line_says_what_it_listens_on_which_broker_and_how_many_workers() {
    let redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    let broker = format!("redis://u:hunter2@127.0.0.1:{}", redis.port());
    redis.command(&["ACL", "SETUSER", "u", "on", ">hunter2", "~*", "&*", "+@all"]).await;
    let arguments = ["run", "--listen", &listen, "--workers", "2"];
    let mut program = Program::start(dir.path(), &arguments, &[("WEBWS_BROKER", &broker)]).await;
    let line = program.start_line().await;
    assert_eq!((&line["level"], &line["workers"]), (&"INFO".into(), &2.into()), "{line}");
    assert_eq!((&line["listen"], &line["broker"]), (&listen.into(), &broker.replace("u:hunter2", "<hidden>").into()));
    Client::connect(&target_in(dir.path()), "/webws?channel=1").await.close().await;
    // Of both workers: the second may still be connecting.
    until("its links are up", SOON, async || json_lines(&program.log()).len() == 2).await;
    program.signal(Signal::SIGINT);
    assert!(program.wait_exit(SOON).await.success());
    let lines = json_lines(&program.log());
    assert_eq!(of_level(&lines, "INFO").len(), lines.len(), "{lines:#?}");
    // Serves; Redis is there; stopping; stopped.
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(!program.log().contains("hunter2"), "{}", program.log());
}
