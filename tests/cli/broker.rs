//! Reaching Redis: it may be down at the start, want a password, or refuse us.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::write;
use crate::support::client::Client;
use crate::support::http::handshake;
use crate::support::program::{Program, Variables, listen_in, of_level, run, target_in, told};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, START, until};

const PATH: &str = "/webws?channel=%22zhang%22";

/// The least ACL that the documentation names, word for word.
const LEAST: &str = "resetkeys resetchannels &chat:* &webws:probe:* &webws:milestone -@all \
    +subscribe +unsubscribe +publish +ping +hello +auth +client|setname +client|info";

/// What `operators` see: the warnings and errors of a log.
fn complaints(lines: &[Value]) -> Vec<Value> {
    [of_level(lines, "WARN"), of_level(lines, "ERROR")].concat()
}

/// A handshake waits no longer for a Redis that is away.
const SOON_REFUSED: (&str, &str) = ("WEBWS_REDIS__SUBSCRIBE_TIMEOUT", "500ms");

/// Starts webws in `dir` on `broker` with one worker.
async fn start(dir: &Path, broker: &str, environment: Variables<'_>) -> Program {
    let listen = listen_in(dir);
    // Not as an option: a password there is complained of.
    // Several attempts within a second.
    let impatient = ("WEBWS_REDIS__MAX_RECONNECT_DELAY", "100ms");
    let environment = [environment, &[("WEBWS_BROKER", broker), impatient]].concat();
    Program::start(dir, &["run", "--listen", &listen, "--workers", "1"], &environment).await
}

/// A text must come back through Redis; the first handshakes may come before the links are up.
async fn round_trip(dir: &Path) {
    let target = target_in(dir);
    until("a handshake succeeds", START, async || handshake(&target, PATH).await.head.status == 101).await;
    let mut client = Client::connect(&target, PATH).await;
    client.send_text("there and back, ").await;
    client.expect_text("there and back, zhang").await;
    client.close().await;
}

/// Waits for that many attempts to connect after the first.
async fn attempts(program: &Program, n: usize) {
    // All but the first are at debug.
    let again = || of_level(&program.lines(), "DEBUG").iter().filter(|line| line["server"].is_string()).count();
    until("webws retries", START, async || again() >= n).await;
}

#[tokio::test]
async fn redis_may_be_down_at_the_start_which_is_said_once_and_answered_with_503() {
    let mut redis = Redis::start().await;
    redis.kill();
    let dir = tempfile::tempdir().unwrap();
    let program = start(dir.path(), &redis.url(), &[("WEBWS_LOG", "debug"), SOON_REFUSED]).await;
    attempts(&program, 6).await;
    let lines = program.lines();
    let said = complaints(&lines);
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0]["error"].as_str().unwrap().contains(redis.url().trim_start_matches("redis://")), "{said:?}");
    for _ in 0..2 {
        handshake(&target_in(dir.path()), PATH).await.assert_unavailable("2");
    }

    redis.start_again().await;
    round_trip(dir.path()).await;
    // At info, a line about a server says that its links are up.
    let up = || of_level(&program.lines(), "INFO").iter().filter(|line| line["server"].is_string()).count();
    until("it is said that all links are up", SOON, async || up() > 0).await;
    let lines = program.lines();
    assert_eq!((complaints(&lines).len(), up()), (1, 1), "{lines:#?}");
    program.stop().await;
}

#[tokio::test]
async fn a_wrong_address_in_file_or_environment_exits_78() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in ["localhost:6379", "http://w:hunter2@localhost", "redis://", "unix:run/w:hunter2@redis.sock", " "] {
        write(dir.path(), "webws.toml", &format!("broker = {wrong:?}\n"));
        let file = run(dir.path(), &["run", "--config", "webws.toml"], &[]).await;
        let environment = run(dir.path(), &["run"], &[("WEBWS_BROKER", wrong)]).await;
        for (ended, place) in [(file, "webws.toml, line 1, column 10: broker:"), (environment, "WEBWS_BROKER:")] {
            let (code, _, stderr) = told(&ended);
            assert!(code == Some(78) && stderr.lines().count() == 1, "{wrong}: {code:?} {stderr}");
            assert!(stderr.contains(place) && stderr.contains("unix:///PATH"), "{wrong}: {stderr}");
            assert!(!stderr.contains("hunter2"), "{stderr}");
        }
    }
}

#[tokio::test]
async fn the_password_may_stand_in_the_address_in_a_file_or_in_a_credential_of_systemd() {
    let redis = Redis::start().await;
    // Its own connection stays what it is.
    redis.command(&["CONFIG", "SET", "requirepass", "hun/ter: \"ü\""]).await;
    let dir = tempfile::tempdir().unwrap();
    // What editors leave behind the first line does not belong to the password.
    write(dir.path(), "password", "hun/ter: \"ü\"\nanother line\n");
    let credentials = dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    write(&credentials, "redis-password", "hun/ter: \"ü\"");
    let file = dir.path().join("password").display().to_string();
    let in_address = format!("redis://:hun%2Fter%3A%20%22%C3%BC%22@127.0.0.1:{}", redis.port());
    let unix = redis.unix_url();
    let tcp = redis.url();
    let credentials = credentials.display().to_string();
    let ways = [
        (&in_address, [("WEBWS_REDIS__PASSWORD_FILE", "")]),
        (&tcp, [("WEBWS_REDIS__PASSWORD_FILE", file.as_str())]),
        (&tcp, [("CREDENTIALS_DIRECTORY", credentials.as_str())]),
        (&unix, [("CREDENTIALS_DIRECTORY", credentials.as_str())]),
    ];
    for (broker, environment) in ways {
        let environment = if environment[0].1.is_empty() { &[] } else { &environment[..] };
        let program = start(dir.path(), broker, environment).await;
        round_trip(dir.path()).await;
        assert!(complaints(&program.lines()).is_empty(), "{broker} {environment:?}");
        assert!(
            !program.log().contains("hun/ter") && !program.log().contains("hun%2Fter"),
            "the password is in the log"
        );
        program.stop().await;
        std::fs::remove_file(dir.path().join("webws.log")).unwrap();
    }
}

#[tokio::test]
async fn a_password_file_that_cannot_be_read_is_named_and_exits_78() {
    let dir = tempfile::tempdir().unwrap();
    let listen = listen_in(dir.path());
    let arguments = ["run", "--listen", &listen, "--broker", "redis://127.0.0.1:1"];
    let absent = dir.path().join("absent").display().to_string();
    let (code, _, stderr) = told(&run(dir.path(), &arguments, &[("WEBWS_REDIS__PASSWORD_FILE", &absent)]).await);
    assert!(code == Some(78) && stderr.contains(&absent), "{code:?} {stderr}");
    assert!(stderr.contains("redis.password_file"), "{stderr}");
    if !nix::unistd::geteuid().is_root() {
        write(dir.path(), "closed", "x");
        let closed = dir.path().join("closed");
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        let closed = closed.display().to_string();
        let (code, _, stderr) = told(&run(dir.path(), &arguments, &[("WEBWS_REDIS__PASSWORD_FILE", &closed)]).await);
        assert!(code == Some(78) && stderr.contains(&closed), "{code:?} {stderr}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_answered_with_503_until_it_is_right() {
    let redis = Redis::start().await;
    redis.command(&["ACL", "SETUSER", "web", "on", ">hunter2", "~*", "&*", "+@all"]).await;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "password", "hunter3\n");
    let file = dir.path().join("password").display().to_string();
    let user = [("WEBWS_REDIS__USERNAME", "web"), ("WEBWS_REDIS__PASSWORD_FILE", file.as_str())];
    let environment = [&user[..], &[("WEBWS_LOG", "debug"), SOON_REFUSED]].concat();
    let program = start(dir.path(), &redis.url(), &environment).await;
    attempts(&program, 6).await;
    let said = complaints(&program.lines());
    assert_eq!(said.len(), 1, "{said:#?}");
    let error = said[0]["error"].as_str().unwrap();
    assert!(error.contains("WRONGPASS") || error.contains("AuthenticationFailed"), "{error}");
    assert!(error.contains("[redis]"), "the line does not say where to look: {error}");
    handshake(&target_in(dir.path()), PATH).await.assert_unavailable("2");
    // A rotated password is found without a restart.
    write(dir.path(), "password", "hunter2\n");
    round_trip(dir.path()).await;
    assert!(!program.log().contains("hunter"), "{}", program.log());
    program.stop().await;
}

#[tokio::test]
async fn everything_works_with_the_least_acl() {
    let redis = Redis::start().await;
    let rules: Vec<&str> =
        ["ACL", "SETUSER", "webws", "on", ">hunter2"].into_iter().chain(LEAST.split_whitespace()).collect();
    redis.command(&rules).await;
    // Nobody gets anything without that user.
    let spy = redis.spy(b"chat:zhang").await;
    let webws = Webws::builder()
        .broker(&format!("redis://webws:hunter2@127.0.0.1:{}", redis.port()))
        .workers(1)
        .extra_toml("[redis]\nsubscription_linger = \"10ms\"")
        .endpoint_toml("")
        .endpoint_toml("path = \"/other\"\nprefix = \"other:\"")
        .start()
        .await;
    let mut client = Client::connect(&webws.target(), PATH).await;
    client.send_text("with little, ").await;
    client.expect_text("with little, zhang").await;
    until("the spy has seen it too", SOON, async || spy.seen() == ["with little, "]).await;
    redis.publish(b"chat:zhang", b"from elsewhere, ").await;
    client.expect_text("from elsewhere, zhang").await;
    assert_eq!(links(&redis, "name=webws-publisher").await.len(), 1);
    assert_eq!(links(&redis, "name=webws-subscriber").await.len(), 1);

    // Both links are made anew, and prove that they live when there is nothing else to say.
    redis.command(&["CLIENT", "KILL", "USER", "webws"]).await;
    until("the channel is subscribed again", START, async || redis.numsub(b"chat:zhang").await == 1).await;
    client.send_text("once more, ").await;
    client.expect_text("once more, zhang").await;
    until("one link was probed and the other audited", START, async || {
        let links = links(&redis, "user=webws").await;
        let last = |command: &str| links.iter().any(|link| link.contains(&format!("cmd={command} ")));
        links.len() == 2 && last("publish") && last("client|info")
    })
    .await;
    client.expect_pong(b"", SOON).await;
    client.close().await;
    until("nobody is subscribed", START, async || redis.numsub(b"chat:zhang").await == 0).await;
    let denied = denied(&redis).await;
    assert!(denied.iter().all(|denied| denied == "info"), "the log is asked for, as it may be read: {denied:?}");

    // What the ACL does not cover is refused, and nobody else feels it.
    let answer = handshake(&webws.target(), "/other?channel=%22zhang%22").await;
    answer.assert_unavailable("2");
    assert!(answer.body.contains("does not allow"), "{answer:?}");
    let denied = self::denied(&redis).await;
    assert!(denied.iter().any(|denied| denied == "other:zhang"), "Redis tells of no denial: {denied:?}");
    let mut client = Client::connect(&webws.target(), PATH).await;
    client.send_text("still, ").await;
    client.expect_text("still, zhang").await;
}

/// What Redis has denied.
async fn denied(redis: &Redis) -> Vec<String> {
    let log = redis.command(&["ACL", "LOG"]).await;
    let entries: Vec<std::collections::BTreeMap<String, ::redis::Value>> = ::redis::from_redis_value(log).unwrap();
    let object = |entry: &std::collections::BTreeMap<String, ::redis::Value>| {
        ::redis::from_redis_value::<String>(entry["object"].clone()).unwrap()
    };
    entries.iter().map(object).collect()
}

async fn links(redis: &Redis, having: &str) -> Vec<String> {
    redis.clients().await.into_iter().filter(|client| client.contains(having)).collect()
}

#[tokio::test]
async fn the_number_of_a_database_is_ignored_with_a_warning() {
    let redis = Redis::start().await;
    for (broker, warnings) in [
        (format!("{}/7", redis.url()), 1),
        (format!("{}?db=7", redis.unix_url()), 1),
        (format!("{}/0", redis.url()), 0),
        (format!("{}/", redis.url()), 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let program = start(dir.path(), &broker, &[]).await;
        round_trip(dir.path()).await;
        let said = complaints(&program.lines());
        assert_eq!(said.len(), warnings, "{broker}: {said:#?}");
        for line in said {
            assert!(line["message"].as_str().unwrap().contains("database") && line["database"] == "7", "{line}");
        }
        program.stop().await;
    }
    let selected = redis.command(&["INFO", "keyspace"]).await;
    assert!(!format!("{selected:?}").contains("db7"), "{selected:?}");
}

#[tokio::test]
async fn a_redis_that_is_silent_at_the_start_is_given_up_after_connect_timeout() {
    let redis = Redis::start().await;
    redis.freeze();
    let dir = tempfile::tempdir().unwrap();
    let environment = [("WEBWS_REDIS__CONNECT_TIMEOUT", "200ms"), ("WEBWS_REDIS__SUBSCRIBE_TIMEOUT", "300ms")];
    let program = start(dir.path(), &redis.url(), &environment).await;
    let answer = tokio::time::timeout(Duration::from_secs(2), handshake(&target_in(dir.path()), PATH)).await;
    answer.expect("no answer while Redis is silent").assert_unavailable("2");
    until("it is said", START, async || complaints(&program.lines()).len() == 1).await;
    let said = complaints(&program.lines());
    assert!(said[0]["error"].as_str().unwrap().contains("did not answer the greeting within 200ms"), "{said:?}");
    redis.thaw();
    round_trip(dir.path()).await;
    program.stop().await;
}
