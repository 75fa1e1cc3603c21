//! Promise: every certificate that redis-cli accepts for a Redis is accepted as well, where the settings name
//! it or its authority; what is refused is refused with a sentence that says what to do.

use std::path::Path;

use crate::support::certificate::{NEW_KEY, authority, certificate, for_names, openssl, sign};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, START, free_port, until};

const PATH: &str = "/webws?channel=%22a%22";

/// A Redis with server.pem, and its TLS port.
async fn tls_redis(dir: &Path, further: &[&str]) -> (Redis, u16) {
    let port = free_port();
    let file = |name: &str| dir.join(name).display().to_string();
    let (number, certificate, key) = (port.to_string(), file("server.pem"), file("server.key"));
    let mut arguments = vec!["--tls-port", &number, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    arguments.extend(["--tls-ca-cert-file", &certificate, "--tls-auth-clients", "no"]);
    arguments.extend(further);
    (Redis::start_with(&arguments).await, port)
}

async fn webws(dir: &Path, port: u16, setting: &str, file: &str) -> Webws {
    let settings = format!("[redis]\n{setting} = {:?}", dir.join(file));
    Webws::builder().broker(&format!("rediss://localhost:{port}")).workers(1).extra_toml(&settings).start().await
}

async fn is_accepted(webws: &Webws) {
    assert!(upgrades_within(&webws.target(), PATH, START).await, "{}", webws.log());
    let mut witness = Witness::join(&webws.target(), PATH).await;
    witness.client.send_text("by TLS ").await;
    witness.await_text("by TLS a", SOON).await;
}

async fn is_refused(webws: &Webws, because: &str) {
    until("it is said", START, async || !webws.outages().is_empty()).await;
    let error = webws.outages()[0]["error"].to_string();
    assert!(error.contains(because), "{because}: {error}");
    assert!(!upgrades_within(&webws.target(), PATH, std::time::Duration::from_millis(300)).await);
}

/// What `openssl req -x509` makes, which is an authority (CA:TRUE) without asking.
fn self_signed(dir: &Path, subject: &str, further: &str) {
    openssl(
        dir,
        &format!("req -x509 {NEW_KEY} -keyout server.key -out server.pem -days 2 -subj /CN={subject} {further}"),
    );
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_when_the_settings_name_it() {
    let dir = tempfile::tempdir().unwrap();
    self_signed(dir.path(), "localhost", "-addext subjectAltName=DNS:localhost");
    authority(dir.path(), "other");
    let (_redis, port) = tls_redis(dir.path(), &[]).await;
    for setting in ["ca_file", "pinned_certificate_file"] {
        is_accepted(&webws(dir.path(), port, setting, "server.pem").await).await;
    }
    is_refused(&webws(dir.path(), port, "ca_file", "other.pem").await, "(CA:TRUE)").await;
    is_refused(&webws(dir.path(), port, "pinned_certificate_file", "other.pem").await, "add the new one").await;
}

#[tokio::test]
async fn a_common_name_counts_where_nothing_else_names_a_host() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    let usage = "keyUsage = digitalSignature, keyEncipherment";
    certificate(dir.path(), "good", "localhost", usage);
    let (redis, port) = tls_redis(dir.path(), &[]).await;
    is_accepted(&webws(dir.path(), port, "ca_file", "good.pem").await).await;
    drop(redis);
    // Of another host, and where it does not count.
    certificate(dir.path(), "good", "redis.example", usage);
    let (redis, port) = tls_redis(dir.path(), &[]).await;
    is_refused(&webws(dir.path(), port, "ca_file", "good.pem").await, "no subjectAltName").await;
    is_accepted(&webws(dir.path(), port, "pinned_certificate_file", "server.pem").await).await;
    drop(redis);
    certificate(dir.path(), "good", "localhost", &for_names("DNS:redis.example"));
    let (_redis, port) = tls_redis(dir.path(), &[]).await;
    is_refused(&webws(dir.path(), port, "ca_file", "good.pem").await, "not for localhost").await;
}

#[tokio::test]
async fn a_certificate_of_version_1_is_read_where_its_authority_is_named() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    // The same name, another key.
    std::fs::create_dir(dir.path().join("forged")).unwrap();
    authority(&dir.path().join("forged"), "good");
    certificate(dir.path(), "good", "localhost", "");
    for versions in ["TLSv1.2", "TLSv1.3"] {
        let (_redis, port) = tls_redis(dir.path(), &["--tls-protocols", versions]).await;
        is_accepted(&webws(dir.path(), port, "ca_file", "good.pem").await).await;
        is_accepted(&webws(dir.path(), port, "pinned_certificate_file", "server.pem").await).await;
        is_refused(&webws(dir.path(), port, "ca_file", "forged/good.pem").await, "not signed by the key").await;
    }
    certificate(dir.path(), "good", "redis.example", "");
    let (_redis, port) = tls_redis(dir.path(), &[]).await;
    is_refused(&webws(dir.path(), port, "ca_file", "good.pem").await, "not for localhost").await;
}

#[tokio::test]
async fn a_pinned_certificate_needs_its_key_and_the_handshake_proves_it() {
    // A server that shows the pinned certificate and has another key cannot be made with Redis: it checks that
    // the two belong together. So it is a certificate with another key of the same name that is pinned.
    let dir = tempfile::tempdir().unwrap();
    self_signed(dir.path(), "localhost", "-addext subjectAltName=DNS:localhost");
    std::fs::rename(dir.path().join("server.pem"), dir.path().join("old.pem")).unwrap();
    self_signed(dir.path(), "localhost", "-addext subjectAltName=DNS:localhost");
    let (_redis, port) = tls_redis(dir.path(), &[]).await;
    is_refused(&webws(dir.path(), port, "pinned_certificate_file", "old.pem").await, "add the new one").await;
    let both = ["old.pem", "server.pem"].map(|name| std::fs::read_to_string(dir.path().join(name)).unwrap()).concat();
    std::fs::write(dir.path().join("both.pem"), both).unwrap();
    is_accepted(&webws(dir.path(), port, "pinned_certificate_file", "both.pem").await).await;
}

#[tokio::test]
async fn other_faults_of_a_certificate_are_reported_in_plain_english_and_pinning_overrides_them() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    let names = for_names("DNS:localhost");
    openssl(dir.path(), &format!("req -new {NEW_KEY} -keyout server.key -out server.csr -subj /CN=redis"));
    for (dates, extensions, because) in [
        ("-days -1", names.clone(), "expired"),
        ("-days 2", format!("{names}\nextendedKeyUsage=clientAuth"), "serverAuth"),
        ("-days 2", format!("{names}\n1.2.3.4=critical,DER:0500"), "critical extension"),
    ] {
        sign(dir.path(), "good", dates, &extensions);
        let (_redis, port) = tls_redis(dir.path(), &[]).await;
        is_refused(&webws(dir.path(), port, "ca_file", "good.pem").await, because).await;
        is_accepted(&webws(dir.path(), port, "pinned_certificate_file", "server.pem").await).await;
    }
}

#[tokio::test]
async fn a_port_without_tls_and_a_missing_client_certificate_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("DNS:localhost"));
    let (_redis, port) = tls_redis(dir.path(), &["--tls-auth-clients", "yes"]).await;
    is_refused(&webws(dir.path(), port, "ca_file", "good.pem").await, "redis.certificate_file and redis.key_file")
        .await;
    let plain = Webws::builder().broker(&format!("redis://localhost:{port}")).workers(1).start().await;
    is_refused(&plain, "rediss://").await;
}
