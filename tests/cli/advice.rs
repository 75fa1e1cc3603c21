//! What stands in the way of a start is said with the way out of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::write;
use crate::support::START;
use crate::support::program::{Program, listen_in, of_level, run, told};

/// Runs webws as root without capabilities, or as the user that runs the tests.
async fn run_without_capabilities(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--inh-caps=-all", "--bounding-set=-all", env!("CARGO_BIN_EXE_webws")]);
    if !nix::unistd::geteuid().is_root() {
        command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webws"));
    }
    let ended = command.args(arguments).current_dir(dir).kill_on_drop(true).output();
    told(&tokio::time::timeout(START, ended).await.expect("it still runs").unwrap())
}

#[tokio::test]
async fn a_privileged_port_names_the_capability_and_the_way_without() {
    if std::env::var_os("WEBWS_TEST_WITHOUT_PRIVILEGED_PORTS").is_some() {
        eprintln!("no privileged port is tried: WEBWS_TEST_WITHOUT_PRIVILEGED_PORTS is set");
        return;
    }
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert!(
        first.trim().parse::<u16>().unwrap() > 81,
        "no port is privileged here. Change it with: sysctl net.ipv4.ip_unprivileged_port_start=1024; or leave this test \
         out by WEBWS_TEST_WITHOUT_PRIVILEGED_PORTS=1, as tests/run.sh does"
    );
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", "tcp:127.0.0.1:81"];
    let (code, _, stderr) = run_without_capabilities(dir.path(), &arguments).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("tcp:127.0.0.1:81") && stderr.contains("CAP_NET_BIND_SERVICE"), "{stderr}");
    assert!(!stderr.contains("directory"), "{stderr}");
}

#[tokio::test]
async fn a_port_that_is_taken_says_how_to_listen_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("tcp:{}", taken.local_addr().unwrap());
    let (code, _, stderr) = told(&run(dir.path(), &["dev", "--listen", &listen], &[]).await);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("another process has this port"), "{stderr}");
    assert!(stderr.contains("webws dev --listen tcp:"), "{stderr}");
    let arguments = ["run", "--broker", "memory", "--listen", &listen];
    let (code, _, stderr) = told(&run(dir.path(), &arguments, &[]).await);
    assert!(code == Some(1) && stderr.contains("another process has this port"), "{stderr}");
    assert!(!stderr.contains("webws dev"), "{stderr}");
}

#[tokio::test]
async fn a_configuration_file_that_is_none_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("directory")).unwrap();
    let utf16: Vec<u8> = "\u{feff}workers = 2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(dir.path().join("utf16"), utf16).unwrap();
    std::fs::write(dir.path().join("latin1"), b"# fine\nworkers = 2 # f\xfcnf\n").unwrap();
    std::fs::write(dir.path().join("huge"), vec![b'#'; 2 << 20]).unwrap();
    for (file, sentence) in [
        ("absent", "check the path after --config"),
        ("directory", "name the file in it"),
        ("utf16", "is UTF-16: save it as UTF-8"),
        ("latin1", "is not UTF-8 (line 2)"),
        ("huge", "is larger than 1 MiB"),
        ("/dev/zero", "is larger than 1 MiB"),
    ] {
        for command in ["check", "run"] {
            let (code, stdout, stderr) = told(&run(dir.path(), &[command, "--config", file], &[]).await);
            assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(78), "", 1), "{file}: {stderr}");
            assert!(stderr.contains(file) && stderr.contains(sentence), "{file}: {stderr}");
        }
    }
    write(dir.path(), "closed", "workers = 2\n");
    std::fs::set_permissions(dir.path().join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (code, _, stderr) = run_without_capabilities(dir.path(), &["check", "--config", "closed"]).await;
    assert!(code == Some(78) && stderr.contains("must be able to read it"), "{code:?} {stderr}");
}

#[tokio::test]
async fn a_password_on_the_command_line_is_complained_of_and_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    for (broker, complaints) in [("redis://web:hunter2@127.0.0.1:1", 1), ("redis://127.0.0.1:1", 0)] {
        let program = Program::start(dir.path(), &["run", "--listen", &listen, "--broker", broker], &[]).await;
        program.start_line().await;
        let warnings = of_level(&program.lines(), "WARN");
        let is_about = |line: &&serde_json::Value| line["message"].as_str().unwrap().contains("--broker");
        let said: Vec<_> = warnings.iter().filter(is_about).collect();
        assert_eq!(said.len(), complaints, "{broker}: {warnings:#?}");
        for line in said {
            let message = line["message"].as_str().unwrap();
            assert!(message.contains("redis.password_file") && message.contains("WEBWS_BROKER"), "{message}");
        }
        assert!(!program.log().contains("hunter2"), "{}", program.log());
        program.stop().await;
        std::fs::remove_file(dir.path().join("webws.log")).unwrap();
    }
}

#[tokio::test]
async fn a_prefix_that_begins_anothers_is_said_at_the_start_for_every_broker() {
    for broker in ["memory", "redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"] {
        let dir = tempfile::tempdir().unwrap();
        let endpoints = "[[endpoint]]\n[[endpoint]]\npath = \"/admin\"\nprefix = \"chat:admin:\"\n";
        let file = format!("listen = [{:?}]\nbroker = {broker:?}\n{endpoints}", listen_in(dir.path()));
        write(dir.path(), "webws.toml", &file);
        let program = Program::start(dir.path(), &["run", "--config", "webws.toml"], &[]).await;
        program.start_line().await;
        let warnings = of_level(&program.lines(), "WARN");
        let is_about = |line: &&serde_json::Value| line["message"].as_str().unwrap().contains("chat:admin:");
        assert_eq!(warnings.iter().filter(is_about).count(), 1, "{broker}: {warnings:#?}");
        program.stop().await;
    }
}
