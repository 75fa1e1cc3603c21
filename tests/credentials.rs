//! Promise: a rotated password is found where it can be, what stands in the way is said, and no password is
//! ever shown, with or without its colon.

use std::path::Path;

use crate::support::program::{listen_in, run, told};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, START, until};

const PATH: &str = "/webws?channel=%22a%22";

#[tokio::test]
async fn a_rotated_password_is_found_by_links_and_by_the_process_that_takes_over() {
    let redis = Redis::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "first"]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("redis-password");
    std::fs::write(&file, "first\n").unwrap();
    let setting = format!("[redis]\npassword_file = {file:?}");
    let webws = Webws::builder().broker(&redis.url()).workers(1).exchangeable().extra_toml(&setting).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    // As an operator does it: Redis first (open links stay), then the file.
    redis.command(&["CONFIG", "SET", "requirepass", "second"]).await;
    std::fs::write(&file, "second\n").unwrap();
    webws.signal(nix::sys::signal::Signal::SIGUSR2);
    until("it is handed over", START, async || webws.heirs().len() == 1).await;
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until("it is subscribed again", START, async || redis.numsub(b"chat:a").await == 1).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert!(!webws.log().contains("second"), "{}", webws.log());
}

#[tokio::test]
async fn a_copy_that_systemd_made_before_a_rotation_is_said_to_be_old() {
    let redis = Redis::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "second"]).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("redis-password"), "first").unwrap();
    let directory = dir.path().display().to_string();
    let webws = Webws::builder().broker(&redis.url()).workers(1).env("CREDENTIALS_DIRECTORY", &directory).start().await;
    until("it is said", START, async || webws.warns_of("systemctl restart webws")).await;
    assert!(webws.warns_of("redis.password_file"), "{}", webws.log());
}

#[tokio::test]
async fn a_password_without_its_colon_is_refused_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    for (shown, broker) in [
        ("redis://<hidden>@127.0.0.1:1", "redis://hunter2@127.0.0.1:1"),
        ("rediss://<hidden>@127.0.0.1:1", "rediss://hunter2@127.0.0.1:1"),
        ("redis+sentinel://<hidden>@127.0.0.1:1/main", "redis+sentinel://hunter2@127.0.0.1:1/main"),
        ("redis+cluster://<hidden>@127.0.0.1:1", "redis+cluster://hunter2@127.0.0.1:1"),
        ("unix://<hidden>@/run/x.sock", "unix:///run/x.sock?user=hunter2"),
    ] {
        std::fs::write(dir.path().join("webws.toml"), format!("broker = {broker:?}\n")).unwrap();
        let arguments = ["run", "--listen", &listen, "--broker", broker];
        for arguments in [&["check", "--config", "webws.toml"][..], &arguments] {
            let (code, stdout, stderr) = told(&run(dir.path(), arguments, &[]).await);
            assert_eq!(code, Some(78), "{broker}: {stderr}");
            assert!(stderr.contains(shown) && stderr.contains("redis://:PASSWORD@HOST"), "{broker}: {stderr}");
            assert!(!stdout.contains("hunter2") && !stderr.contains("hunter2"), "{broker}: {stdout} {stderr}");
        }
    }
}

#[tokio::test]
async fn user_and_password_are_masked_in_settings_and_log() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("webws.toml"), "broker = \"redis://web:hunter2@127.0.0.1:1\"\n").unwrap();
    let (code, stdout, stderr) = told(&run(dir.path(), &["check", "--config", "webws.toml"], &[]).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("redis://<hidden>@127.0.0.1:1") && !stdout.contains("hunter2"), "{stdout}");
    let webws = Webws::builder().broker("redis://web:hunter2@127.0.0.1:1").workers(1).env("WEBWS_LOG", "debug").start();
    let webws = webws.await;
    until("it is said", START, async || !webws.outages().is_empty()).await;
    let log = webws.log();
    assert!(log.contains("redis://<hidden>@127.0.0.1:1") && !log.contains("hunter2") && !log.contains("web:"), "{log}");
}

#[tokio::test]
async fn an_empty_password_file_is_a_fault_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    std::fs::write(dir.path().join("empty"), "\n").unwrap();
    for (setting, variable, broker) in [
        ("redis.password_file", "WEBWS_REDIS__PASSWORD_FILE", "redis://127.0.0.1:1"),
        ("redis.sentinel_password_file", "WEBWS_REDIS__SENTINEL_PASSWORD_FILE", "redis+sentinel://127.0.0.1:1/main"),
    ] {
        for (file, fault) in [("empty", "is empty"), ("absent", "cannot be read")] {
            let arguments = ["run", "--listen", &listen, "--broker", broker];
            let (code, _, stderr) = told(&run(dir.path(), &arguments, &[(variable, file)]).await);
            assert!(code == Some(78) && stderr.contains(fault) && stderr.contains(setting), "{code:?} {stderr}");
        }
    }
}

#[test]
fn the_shipped_drop_in_names_a_file_that_is_read_again() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/redis-password.conf");
    let text = std::fs::read_to_string(path).unwrap();
    let settings: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    // systemd copies a credential once, when the unit starts: a reload would go on with the old password.
    assert_eq!(
        settings,
        [
            "[Service]",
            "SupplementaryGroups=webws-redis",
            "Environment=WEBWS_REDIS__PASSWORD_FILE=/etc/webws/redis-password"
        ]
    );
}

/// The recipe is in two places: neither may send an administrator another way.
#[tokio::test]
async fn the_man_page_has_the_steps_of_the_shipped_drop_in() {
    let dir = tempfile::tempdir().unwrap();
    let (code, man, _) = told(&run(dir.path(), &["man"], &[]).await);
    assert_eq!(code, Some(0));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/redis-password.conf");
    let text = std::fs::read_to_string(path).unwrap();
    let commands = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let commands: Vec<_> = commands.map(|line| line.split("  #").next().unwrap().trim_end()).collect();
    assert!(commands.len() >= 4, "{text}");
    let (_, example) = man.split_once("Set the password of Redis:\n").unwrap();
    let (example, _) = example.split_once(".SH").unwrap();
    let steps = example.lines().filter(|line| *line != ".br").map(|line| line.replace("\\-", "-"));
    assert_eq!(steps.collect::<Vec<_>>(), commands);
    let file = "Password of Redis for the drop\\-in redis\\-password.conf. Owner root, group webws\\-redis, mode 0640.";
    assert!(man.contains(file) && man.contains("redis\\-sentinel\\-password"), "{man}");
}
