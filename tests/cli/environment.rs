//! Variables: those of others stop nothing, empty ones are unset, and ours that make no sense are said.

use crate::support::program::{Program, Variables, listen_in, of_level, run, socket_in, told};

/// What Kubernetes and links between containers set for a service called webws.
const KUBERNETES: Variables<'_> = &[
    ("WEBWS_SERVICE_HOST", "10.96.3.4"),
    ("WEBWS_SERVICE_PORT", "80"),
    ("WEBWS_SERVICE_PORT_HTTP", "80"),
    ("WEBWS_PORT", "tcp://10.96.3.4:80"),
    ("WEBWS_PORT_80_TCP", "tcp://10.96.3.4:80"),
    ("WEBWS_PORT_80_TCP_ADDR", "10.96.3.4"),
    ("WEBWS_PORT_80_TCP_PORT", "80"),
    ("WEBWS_PORT_80_TCP_PROTO", "tcp"),
];

#[tokio::test]
async fn variables_that_are_no_settings_stop_nothing_and_one_close_to_a_setting_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path()), "--workers", "1"];
    let environment = [KUBERNETES, &[("WEBWS_MAX_SESSIONS", "5"), ("WEBWS_LOG", "debug")]].concat();
    let program = Program::start(dir.path(), &arguments, &environment).await;
    program.start_line().await;
    let lines = program.lines();
    let warnings = of_level(&lines, "WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let message = warnings[0]["message"].as_str().unwrap();
    assert!(message.contains("WEBWS_MAX_SESSIONS") && message.contains("WEBWS_LIMITS__MAX_SESSIONS"), "{message}");
    let debug = of_level(&lines, "DEBUG");
    for (name, _) in KUBERNETES {
        let is_about = |line: &&serde_json::Value| line["message"].as_str().unwrap().contains(&format!("{name} "));
        assert_eq!(debug.iter().filter(is_about).count(), 1, "{name}: {debug:#?}");
    }
    program.stop().await;
}

#[tokio::test]
async fn an_empty_variable_is_an_unset_one() {
    let settings = [
        "LISTEN",
        "SOCKET_MODE",
        "SOCKET_GROUP",
        "HANDOFF_USER",
        "WORKERS",
        "BROKER",
        "DRAIN_TIME",
        "PACE",
        "CONTROL",
        "ENDPOINT",
        "REDIS__USERNAME",
        "REDIS__PASSWORD_FILE",
        "REDIS__CA_FILE",
        "REDIS__CONNECT_TIMEOUT",
        "LIMITS__MAX_SESSIONS",
        "LIMITS__MAX_UNPUBLISHED_BYTES",
        "HANDOVER",
        "LOG",
    ];
    let of_others = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
    let names: Vec<_> = settings.iter().map(|name| format!("WEBWS_{name}")).collect();
    let all = names.iter().map(String::as_str).chain(of_others).chain(["CREDENTIALS_DIRECTORY"]);
    let empty: Vec<_> = all.map(|name| (name, "")).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = format!("listen = [{:?}]\nbroker = \"memory\"\n", listen_in(dir.path()));
    super::write(dir.path(), "webws.toml", &file);
    let program = Program::start(dir.path(), &["run", "--config", "webws.toml"], &empty).await;
    let line = program.start_line().await;
    assert_eq!(line["broker"], "memory", "{line}");
    assert!(of_level(&program.lines(), "WARN").is_empty(), "{}", program.log());
    program.stop().await;
}

#[tokio::test]
async fn variables_by_which_descriptors_are_handed_over_are_a_sentence_when_they_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path())];
    for (name, value) in [
        ("WEBWS_HANDOVER", "-1"),
        ("WEBWS_HANDOVER", "0"),
        ("WEBWS_HANDOVER", "3"),
        ("WEBWS_HANDOVER", "5"),
        ("WEBWS_HANDOVER", "9"),
        ("WEBWS_HANDOVER", "999999"),
        ("WEBWS_HANDOVER", "99999999999"),
        ("WEBWS_HANDOVER", "x"),
        ("LISTEN_PID", "x"),
    ] {
        let environment = [(name, value), ("LISTEN_FDS", "1")];
        let (code, _, stderr) = told(&run(dir.path(), &arguments, &environment).await);
        assert_eq!(code, Some(1), "{name}={value}: {stderr}");
        let sentences = stderr.lines().filter(|line| line.starts_with("webws: ") && line.contains(name));
        assert_eq!(sentences.count(), 1, "{name}={value}: {stderr}");
        assert!(!stderr.contains("panicked"), "{name}={value}: {stderr}");
        assert!(!socket_in(dir.path()).exists());
    }
}

/// `LISTEN_PID` is only meant for us when it is our own number, which a shell gives to the program that it
/// becomes.
#[tokio::test]
async fn sockets_that_were_not_handed_over_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    for (count, names) in [("-1", ""), ("x", ""), ("4294967295", ""), ("1", ""), ("20", ""), ("1", "a:b")] {
        let script = "LISTEN_PID=$$ exec \"$0\" run --broker memory --listen \"$1\"";
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_webws"), &listen]);
        command.envs([("LISTEN_FDS", count), ("LISTEN_FDNAMES", names)]).current_dir(dir.path()).kill_on_drop(true);
        let ended = tokio::time::timeout(crate::support::START, command.output()).await.expect("it serves").unwrap();
        let (code, _, stderr) = told(&ended);
        assert_eq!(code, Some(1), "{count} {names}: {stderr}");
        // Where the test itself has inherited a descriptor 3, that one is no socket.
        let is_said =
            stderr.contains("webws: socket activation: LISTEN_") || stderr.contains("webws: cannot listen on");
        assert!(is_said, "{count} {names}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("IO Safety"), "{stderr}");
    }
}

#[tokio::test]
async fn variables_of_systemd_that_make_no_sense_are_said_and_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["run", "--broker", "memory", "--listen", &listen_in(dir.path())];
    let environment = [
        ("NOTIFY_SOCKET", "/absent/notify"),
        ("WATCHDOG_USEC", "20s"),
        ("WATCHDOG_PID", "-5"),
        ("CREDENTIALS_DIRECTORY", "/absent/credentials"),
    ];
    let program = Program::start(dir.path(), &arguments, &environment).await;
    program.start_line().await;
    let all_said = || {
        let warnings = of_level(&program.lines(), "WARN");
        environment.iter().all(|(name, value)| {
            let what = format!("{name}={value}");
            warnings.iter().filter(|line| line["message"].as_str().unwrap().contains(&what)).count() == 1
        })
    };
    crate::support::until("each is said once", crate::support::SOON, async || all_said()).await;
    program.stop().await;
}
