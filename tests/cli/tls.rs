//! `rediss://`: the certificate must come from an authority that the settings, or the system, trust.

use std::path::Path;

use super::write;
use crate::support::certificate::{authority, certificate, for_names};
use crate::support::client::Client;
use crate::support::http::handshake;
use crate::support::program::{Program, Variables, listen_in, of_level, run, target_in, told};
use crate::support::redis::Redis;
use crate::support::{START, free_port, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// A Redis with that certificate, and its TLS port; `clients` says whether they have to show one.
async fn tls_redis(dir: &Path, clients: &str) -> (Redis, u16) {
    let port = free_port();
    let file = |name: &str| dir.join(name).display().to_string();
    let redis = Redis::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &file("good.pem"),
        "--tls-auth-clients",
        clients,
    ])
    .await;
    (redis, port)
}

async fn start(dir: &Path, broker: &str, ca_file: &str) -> Program {
    start_with(dir, broker, ca_file, &[]).await
}

async fn start_with(dir: &Path, broker: &str, ca_file: &str, further: Variables<'_>) -> Program {
    let listen = listen_in(dir);
    // Several attempts within a second.
    let impatient = ("WEBWS_REDIS__MAX_RECONNECT_DELAY", "100ms");
    let environment = [("WEBWS_REDIS__CA_FILE", ca_file), ("WEBWS_LOG", "debug"), impatient];
    let arguments = ["run", "--listen", &listen, "--broker", broker, "--workers", "1"];
    let environment = [&environment[usize::from(ca_file.is_empty())..], further].concat();
    Program::start(dir, &arguments, &environment).await
}

#[tokio::test]
async fn redis_is_reached_by_tls_when_its_authority_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("DNS:localhost,IP:127.0.0.1"));
    let (mut redis, port) = tls_redis(dir.path(), "no").await;
    for host in ["localhost", "127.0.0.1"] {
        let program = start(dir.path(), &format!("rediss://{host}:{port}"), "good.pem").await;
        let mut client = Client::connect(&target_in(dir.path()), PATH).await;
        client.send_text("unread, ").await;
        client.expect_text("unread, zhang").await;
        // More than one TLS record, both ways.
        let long = "x".repeat(60_000);
        client.send_text(&long).await;
        client.expect_text(&format!("{long}zhang")).await;

        redis.has_answered().await;
        redis.kill();
        redis.start_again().await;
        until("subscribed again", START, async || redis.numsub(b"chat:zhang").await == 1).await;
        client.send_text("after a restart, ").await;
        client.expect_text("after a restart, zhang").await;
        program.stop().await;
    }
}

#[tokio::test]
async fn a_redis_that_wants_a_certificate_gets_ours_and_may_have_another_name() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("DNS:redis.example"));
    let (_redis, port) = tls_redis(dir.path(), "yes").await;
    let listen = listen_in(dir.path());
    let broker = format!("rediss://127.0.0.1:{port}");
    let arguments = ["run", "--listen", &listen, "--broker", &broker, "--workers", "1"];
    let environment = [
        ("WEBWS_REDIS__CA_FILE", "good.pem"),
        ("WEBWS_REDIS__SERVER_NAME", "redis.example"),
        ("WEBWS_REDIS__CERTIFICATE_FILE", "server.pem"),
        ("WEBWS_REDIS__KEY_FILE", "server.key"),
    ];
    let program = Program::start(dir.path(), &arguments, &environment).await;
    until("a handshake succeeds", START, async || handshake(&target_in(dir.path()), PATH).await.head.status == 101)
        .await;
    let mut client = Client::connect(&target_in(dir.path()), PATH).await;
    client.send_text("known, ").await;
    client.expect_text("known, zhang").await;
    program.stop().await;
    // Half of it is a fault in the settings, and a key that is none a fault in a file.
    for (key_file, fault) in [("", "set both or neither"), ("server.pem", "redis.key_file")] {
        let environment = [environment[2], ("WEBWS_REDIS__KEY_FILE", key_file)];
        let environment = if key_file.is_empty() { &environment[..1] } else { &environment[..] };
        let (code, _, stderr) = told(&run(dir.path(), &arguments, environment).await);
        assert!(code == Some(78) && stderr.contains(fault), "{code:?} {stderr}");
    }
}

#[tokio::test]
async fn a_redis_that_tls_cannot_trust_is_refused_and_the_reason_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    authority(dir.path(), "bad");
    certificate(dir.path(), "good", "redis", &for_names("DNS:redis.example"));
    let (_redis, port) = tls_redis(dir.path(), "no").await;
    let broker = format!("rediss://localhost:{port}");
    // Another authority; the system's authorities; the right authority and another name.
    for (ca_file, reason) in [("bad.pem", "UnknownIssuer"), ("", "UnknownIssuer"), ("good.pem", "not for localhost")] {
        let program = start_with(dir.path(), &broker, ca_file, &[("WEBWS_REDIS__SUBSCRIBE_TIMEOUT", "500ms")]).await;
        let again = || of_level(&program.lines(), "DEBUG").iter().filter(|line| line["server"] == *broker).count();
        until("webws retries", START, async || again() >= 4).await;
        let said = of_level(&program.lines(), "WARN");
        assert_eq!(said.len(), 1, "{said:#?}");
        let error = said[0]["error"].as_str().unwrap();
        assert!(error.contains(reason), "{ca_file}: {error}");
        assert_eq!(said[0]["server"], broker, "{said:#?}");
        handshake(&target_in(dir.path()), PATH).await.assert_unavailable("2");
        program.stop().await;
        std::fs::remove_file(dir.path().join("webws.log")).unwrap();
    }
}

#[tokio::test]
async fn a_ca_file_without_certificates_exits_78() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "empty.pem", "");
    write(dir.path(), "broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let listen = listen_in(dir.path());
    for file in ["absent.pem", "empty.pem", "broken.pem"] {
        let arguments = ["run", "--listen", &listen, "--broker", "rediss://localhost"];
        let (code, _, stderr) = told(&run(dir.path(), &arguments, &[("WEBWS_REDIS__CA_FILE", file)]).await);
        assert_eq!(code, Some(78), "{file}: {stderr}");
        assert!(stderr.contains(file) && stderr.contains("redis.ca_file"), "{file}: {stderr}");
    }
}

#[tokio::test]
async fn a_scheme_that_the_port_does_not_speak_has_the_other_one_in_its_sentence() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("IP:127.0.0.1"));
    let (redis, port) = tls_redis(dir.path(), "no").await;
    for (broker, advice) in [
        (format!("redis://127.0.0.1:{port}"), "write rediss:// instead of redis://"),
        (format!("rediss://127.0.0.1:{}", redis.port()), "write redis:// instead of rediss://"),
    ] {
        let program = start(dir.path(), &broker, "good.pem").await;
        let warnings = || of_level(&program.lines(), "WARN");
        let is_said = || warnings().iter().any(|line| line["error"].to_string().contains(advice));
        until("it is said", START, async || is_said()).await;
        program.stop().await;
        std::fs::remove_file(dir.path().join("webws.log")).unwrap();
    }
}
