//! Promise: Sentinels may want a user and a password and speak TLS; whose password it is, a setting says or
//! the Sentinel's question.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::support::certificate::{authority, certificate, for_names};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{Process, SOON, START, free_port, until};

const PATH: &str = "/webws?channel=%22a%22";

/// One Sentinel of a master.
pub(crate) struct Sentinel {
    pub(crate) port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Sentinel {
    /// Of the master at `master`, with further lines in its configuration.
    pub(crate) async fn start(master: u16, further: &str) -> Sentinel {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let port_line = if further.contains("tls-port") { "port 0".to_owned() } else { format!("port {port}") };
        let settings = format!(
            "{port_line}\nbind 127.0.0.1\ndir {}\nlogfile sentinel.log\nsentinel monitor main 127.0.0.1 {master} 1\n{}\n",
            dir.path().display(),
            further.replace("tls-port", &format!("tls-port {port}")),
        );
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::spawn(&mut command, Signal::SIGKILL, "apt-get install redis-server");
        let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        until("the Sentinel listens", START, listens).await;
        Sentinel { port, _process: process, _dir: dir }
    }
}

async fn webws(broker: &str, redis: &str) -> Webws {
    Webws::builder().broker(broker).workers(1).extra_toml(&format!("[redis]\n{redis}")).start().await
}

async fn is_served(webws: &Webws) {
    assert!(upgrades_within(&webws.target(), PATH, START).await, "{}", webws.log());
    let mut witness = Witness::join(&webws.target(), PATH).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
}

async fn is_refused(webws: &Webws, because: &str) {
    until("it is said", START, async || webws.warns_of(because)).await;
    assert!(webws.warns_of("redis.sentinel_password_file"), "{}", webws.log());
}

#[tokio::test]
async fn a_sentinel_that_wants_a_password_gets_that_of_redis_or_its_own() {
    let redis = Redis::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", "pw"]).await;
    // The same for both, as in most charts.
    let same = Sentinel::start(redis.port(), "requirepass pw\nsentinel auth-pass main pw").await;
    let broker = |sentinel: &Sentinel| format!("redis+sentinel://:pw@127.0.0.1:{}/main", sentinel.port);
    is_served(&webws(&broker(&same), "").await).await;
    // Another one, and a user of the Sentinels'.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "other\n").unwrap();
    let own = format!("sentinel_password_file = {file:?}");
    let other = Sentinel::start(redis.port(), "requirepass other\nsentinel auth-pass main pw").await;
    is_served(&webws(&broker(&other), &own).await).await;
    is_refused(&webws(&broker(&other), "").await, "WRONGPASS").await;
    let acl = "user default off\nuser watcher on >other +@all\nsentinel auth-pass main pw";
    let acl = Sentinel::start(redis.port(), acl).await;
    is_served(&webws(&broker(&acl), &format!("sentinel_username = \"watcher\"\n{own}")).await).await;
    let nothing = format!("redis+sentinel://127.0.0.1:{}/main", acl.port);
    is_refused(&webws(&nothing, "").await, "NOAUTH").await;
    // One that wants none is told none, and takes one all the same.
    let open = Sentinel::start(redis.port(), "sentinel auth-pass main pw").await;
    is_served(&webws(&broker(&open), "").await).await;
    is_served(&webws(&broker(&open), &own).await).await;
}

#[tokio::test]
async fn the_sentinels_password_may_be_a_credential_of_systemd() {
    let redis = Redis::start().await;
    let sentinel = Sentinel::start(redis.port(), "requirepass other").await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("redis-sentinel-password"), "other").unwrap();
    let webws = Webws::builder()
        .broker(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port))
        .workers(1)
        .env("CREDENTIALS_DIRECTORY", &dir.path().display().to_string())
        .start()
        .await;
    is_served(&webws).await;
}

#[tokio::test]
async fn sentinels_and_master_are_reached_by_tls() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("DNS:localhost,IP:127.0.0.1"));
    let port = free_port();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (number, pem, key, ca) = (port.to_string(), file("server.pem"), file("server.key"), file("good.pem"));
    let mut arguments = vec!["--tls-port", &number, "--tls-cert-file", &pem, "--tls-key-file", &key];
    arguments.extend(["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"]);
    let _redis = Redis::start_with(&arguments).await;
    let lines = format!(
        "tls-port\ntls-replication yes\ntls-auth-clients no\ntls-cert-file {pem}\ntls-key-file {key}\n\
         tls-ca-cert-file {ca}\nrequirepass other",
    );
    let sentinel = Sentinel::start(port, &lines).await;
    let password = written(dir.path(), "password", "other");
    let settings = format!("ca_file = {ca:?}\nsentinel_password_file = {password:?}");
    let broker = format!("rediss+sentinel://localhost:{}/main", sentinel.port);
    is_served(&webws(&broker, &settings).await).await;
    // Without TLS.
    let plain = webws(&broker.replace("rediss+", "redis+"), &settings).await;
    until("it is said", START, async || !plain.outages().is_empty()).await;
    // An authority that did not sign it.
    authority(dir.path(), "bad");
    let bad = webws(&broker, &settings.replace("good.pem", "bad.pem")).await;
    until("it is said", START, async || bad.warns_of("no authority in redis.ca_file")).await;
}

fn written(dir: &Path, name: &str, text: &str) -> String {
    std::fs::write(dir.join(name), text).unwrap();
    dir.join(name).display().to_string()
}
