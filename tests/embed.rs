//! Promise: another program can have webws inside, on a listener of its own: `examples/embed.rs`, run for real.

#[expect(dead_code, reason = "its main is for the example alone")]
#[path = "../examples/embed.rs"]
mod example;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use webws::{Config, NotPublished, Server};

use crate::support::client::{Client, Target};
use crate::support::redis::Redis;
use crate::support::{SOON, START, until};

#[tokio::test]
async fn the_example_serves_on_its_listener_publishes_and_shuts_down() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let example = tokio::spawn(example::run(listener, Duration::from_millis(20), async { stopped.await.unwrap() }));
    let mut client = Client::connect(&target, "/plain?channel=clock").await;
    let frame = client.next_but_pings(SOON).await.expect("the clock does not strike");
    let first: u64 = str::from_utf8(&frame.payload).unwrap().strip_prefix("strike ").unwrap().parse().unwrap();
    for n in 1..=3 {
        client.expect_text(&format!("strike {}", first + n)).await;
    }
    stop.send(()).unwrap();
    loop {
        let frame = client.next_but_pings(SOON).await.expect("no close frame");
        match frame.close_code() {
            Some(code) => break assert_eq!(code, 1001),
            None => assert!(frame.payload.starts_with(b"strike "), "{frame:?}"),
        }
    }
    client.send_close(1001).await;
    timeout(START, example).await.expect("the example does not end").unwrap().unwrap();
}

#[tokio::test]
async fn a_server_with_redis_publishes_to_everybody_and_dies_with_its_future() {
    let redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut config = Config::default();
    config.broker = redis.url().parse().unwrap();
    config.workers = 2;
    let server = Server::on(config, vec![listener.into()]).unwrap();
    let (publisher, metrics) = (server.publisher(), server.metrics());
    assert_eq!((server.workers(), metrics.sessions()), (2, 0));
    let spy = redis.spy(b"chat:zhang").await;
    let serving = tokio::spawn(server.run(std::future::pending()));
    // Both workers have a session.
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::connect(&Target::Unix(path.clone()), "/webws?channel=%22zhang%22").await);
    }
    assert_eq!(metrics.sessions(), 4);
    for n in 0..3 {
        publisher.publish("chat:zhang", format!("{n}, ")).await.unwrap();
    }
    for client in &mut clients {
        for n in 0..3 {
            client.expect_text(&format!("{n}, zhang")).await;
        }
    }
    until("Redis has them too", SOON, async || spy.seen() == ["0, ", "1, ", "2, "]).await;

    // Dropped instead of shut down: everything ends at once and without a word.
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    for client in &mut clients {
        assert!(client.ends_within(SOON).await.is_some(), "a session outlives its server");
    }
    let told = timeout(SOON, publisher.publish("chat:zhang", "too late")).await.expect("the publisher hangs");
    assert_eq!(told, Err(NotPublished::Unavailable));
}

#[tokio::test]
async fn a_publisher_works_from_its_first_moment_and_in_any_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.sock");
    let mut config = Config::default();
    config.broker = "memory".parse().unwrap();
    let server = Server::on(config, vec![UnixListener::bind(&path).unwrap().into()]).unwrap();
    let publisher = server.publisher();
    // Before the server runs a message waits.
    let waiting = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish("chat:nobody", "early").await }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async { stopped.await.unwrap() }));
    timeout(SOON, waiting).await.expect("an early message hangs").unwrap().unwrap();
    let mut client = Client::connect(&Target::Unix(path), "/webws?channel=%22zhang%22").await;
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(publisher.publish("chat:zhang", "from a thread, "))
    })
    .join()
    .unwrap()
    .unwrap();
    client.expect_text("from a thread, zhang").await;
    client.close().await;
    stop.send(()).unwrap();
    timeout(SOON, serving).await.expect("the server does not end").unwrap().unwrap();
}

/// What `cargo tree` prints of the library without default features, one crate a line.
fn tree_of_the_library(format: &str) -> String {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["tree", "--locked", "--offline", "--package", "webws", "--no-default-features", "--edges", "normal"]);
    cargo.args(["--prefix", "none", "--format", format]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_embedding_program_compiles_nothing_that_only_the_programs_need() {
    let manifest: toml::Table =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap().parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    let is_optional = |of: &toml::Value| of.get("optional").and_then(toml::Value::as_bool) == Some(true);
    let optional: BTreeSet<_> =
        dependencies.iter().filter(|(_, of)| is_optional(of)).map(|(name, _)| name.as_str()).collect();
    for name in ["clap", "clap_complete", "clap_mangen", "tikv-jemallocator", "tracing-subscriber"] {
        assert!(optional.contains(name), "{name} is for the binary only");
    }
    let tree = tree_of_the_library("{p}");
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("redis"), "{tree}");
    assert_eq!(crates.intersection(&optional).collect::<Vec<_>>(), Vec::<&&str>::new());
}

/// Cargo unifies features over a program: a maximum level here would silence the embedding program
/// (`tests/embedder` shows the same by running).
#[test]
fn the_library_sets_no_maximum_log_level() {
    for line in tree_of_the_library("{p} {f}").lines() {
        assert!(!line.contains("max_level"), "{line}");
    }
}
