//! `webws check` says in one line, as a comment, how far back the replication log of each Redis reaches, or why it
//! cannot be read.

use std::time::{Duration, Instant};

use crate::support::program::{run, told};
use crate::support::redis::Redis;
use crate::support::{START, lasting, until};

use super::write;

/// A log is read for clients that come back as well.
const HISTORY: &str = "[[endpoint]]\nhistory = { messages = 100 }\n";

/// The lines behind the settings.
async fn outlook(settings: &str, further: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "webws.toml", settings);
    let (code, stdout, stderr) =
        told(&run(dir.path(), &[&["check", "--config", "webws.toml"], further].concat(), &[]).await);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    stdout.lines().skip(1).filter(|line| line.starts_with("# ")).map(str::to_owned).collect()
}

fn broker(redis: &Redis, replay: &str) -> String {
    format!("broker = \"{}\"\n[redis]\nreplay = \"{replay}\"\n{HISTORY}", redis.url())
}

/// As a replica does that comes and goes.
async fn make_log(redis: &Redis) {
    let replica = Redis::start().await;
    replica.command(&["REPLICAOF", "127.0.0.1", &redis.port().to_string()]).await;
    let has_log =
        async || format!("{:?}", redis.command(&["INFO", "replication"]).await).contains("repl_backlog_active:1");
    until("there is a log", START, has_log).await;
}

#[tokio::test]
async fn check_says_how_far_back_the_log_reaches_and_what_to_set() {
    let redis = Redis::start_with(&["--repl-backlog-size", "16kb"]).await;
    let none = outlook(&broker(&redis, "auto"), &[]).await;
    assert!(none.len() == 1 && none[0].contains(&redis.url()) && none[0].contains("redis.replay = \"on\""), "{none:?}");
    let none = outlook(&broker(&redis, "on"), &[]).await;
    assert!(none.len() == 1 && none[0].contains("makes one") && !none[0].contains("redis.replay"), "{none:?}");
    make_log(&redis).await;
    let idle = outlook(&broker(&redis, "auto"), &[]).await;
    assert!(idle.len() == 1 && idle[0].contains("reaches back"), "{idle:?}");
    // Some 100 kB a second.
    let payload = vec![b'p'; 1_000];
    let writing = async {
        loop {
            redis.publish(b"a", &payload).await;
            lasting(Duration::from_millis(10)).await;
        }
    };
    let settings = broker(&redis, "auto");
    tokio::select! {
        () = writing => {}
        busy = outlook(&settings, &[]) => {
            let line = &busy[0];
            assert!(line.contains("at the present") && line.contains("set repl-backlog-size"), "{line}");
        }
    }
    let state = format!("{:?}", redis.command(&["INFO", "stats"]).await);
    assert!(state.contains("sync_full:1"), "only the replica's: {state}");
}

#[tokio::test]
async fn check_says_which_rights_are_missing() {
    let redis = Redis::start().await;
    make_log(&redis).await;
    let settings = format!("broker = \"redis://webws:pw@127.0.0.1:{}\"\n{HISTORY}", redis.port());
    for rights in ["", "+info", "+info +replconf"] {
        let mut command = vec!["ACL", "SETUSER", "webws", "reset", "on", ">pw", "+hello", "+auth"];
        command.extend(rights.split_whitespace());
        redis.command(&command).await;
        let lines = outlook(&settings, &[]).await;
        assert!(lines.len() == 1 && lines[0].contains("+info +replconf +psync"), "{rights}: {lines:?}");
        assert!(!lines[0].contains("pw"), "{lines:?}");
    }
}

#[tokio::test]
async fn check_is_valid_without_redis_and_asks_only_where_a_log_would_be_read() {
    let began = Instant::now();
    let of = |broker: &str, further: &str| format!("broker = \"{broker}\"\n{further}");
    let away = outlook(&of("redis://127.0.0.1:1", HISTORY), &[]).await;
    assert!(away.len() == 1 && away[0].contains("127.0.0.1:1") && away[0].contains("reached"), "{away:?}");
    assert!(outlook(&of("redis://127.0.0.1:1", HISTORY), &["--quiet"]).await.is_empty());
    let default = outlook(&of("redis://127.0.0.1:1", ""), &[]).await;
    assert_eq!(default, away, "gaps are filled without a history, too");
    let off = format!("[redis]\nreplay = \"off\"\n{HISTORY}");
    assert!(outlook(&of("redis://127.0.0.1:1", &off), &[]).await.is_empty());
    assert!(outlook(&of("memory", HISTORY), &[]).await.is_empty());
    let cluster = outlook(&of("redis+cluster://127.0.0.1:1", HISTORY), &[]).await;
    assert!(cluster.len() == 1 && cluster[0].contains("cluster"), "{cluster:?}");
    assert!(began.elapsed() < START);
}
