//! Promise: what was published while nobody listened is read back from Redis' replication log, or the reason why it
//! cannot be is known before Redis did anything; data is never resynchronised.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use webws::internals::replay::{Log, Point, Published};

use crate::sentinel_access::Sentinel;
use crate::support::redis::Redis;
use crate::support::{START, lasting, until};

const MAX_BYTES: u64 = 64 << 20;

/// A replication id that no server gives itself.
const OTHER: [u8; 40] = *b"0101010101010101010101010101010101010101";

async fn read(log: &Log, point: Point, last: &str) -> Result<Vec<Published>, String> {
    log.read(point, last.as_bytes(), MAX_BYTES, START).await
}

/// Why nothing was read.
async fn why_not(log: &Log, point: Point) -> String {
    log.read(point, b"never", MAX_BYTES, Duration::from_millis(500)).await.unwrap_err()
}

/// Channels and payloads, as text.
fn texts(published: &[Published]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    published.iter().map(|one| (text(&one.channel), text(&one.payload))).collect()
}

/// A number in INFO.
async fn info(redis: &Redis, name: &str) -> i64 {
    let info = match redis.command(&["INFO", "everything"]).await {
        redis::Value::BulkString(info) => String::from_utf8(info).unwrap(),
        other => panic!("INFO: {other:?}"),
    };
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{name}: {info}")).parse().unwrap()
}

/// No reader is connected any more.
async fn is_left_alone(redis: &Redis) {
    until("no reader is connected", START, async || info(redis, "connected_slaves").await == 0).await;
}

async fn replica_of(master: &Redis) -> Redis {
    let replica = Redis::start().await;
    replica.command(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).await;
    let is_synced = async || {
        let synced = format!("{:?}", replica.command(&["INFO", "replication"]).await);
        synced.contains("master_link_status:up")
    };
    until("the replica is synchronised", START, is_synced).await;
    replica
}

#[tokio::test]
async fn what_was_published_while_nobody_listened_comes_back_in_order() {
    let redis = Redis::start_with(&["--repl-backlog-size", "64mb"]).await;
    let log = Log::at(&redis.url());
    assert_eq!(log.visit().await.map(|(is_new, _)| is_new), Ok(true));
    is_left_alone(&redis).await;
    assert_eq!(info(&redis, "sync_full").await, 1);
    assert_eq!(info(&redis, "total_forks").await, 0, "no snapshot was made");

    redis.publish(b"before", b"before").await;
    let start = log.end().await.unwrap();
    redis.publish(b"chat:a", b"\x00\xff\r\n*3\r\n$7\r\nPUBLISH").await;
    redis.command(&["EVAL", "redis.call('publish','chat:b','2') return redis.call('publish','chat:c','3')", "0"]).await;
    redis.command(&["SET", "large", &"*".repeat(20 << 20)]).await;
    let transaction = redis::pipe().atomic().publish("chat:a", "4").set("x", "y").publish("chat:a", "5").to_owned();
    let mut producer = redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let _: redis::Value = transaction.query_async(&mut producer).await.unwrap();
    redis.command(&["SELECT", "3"]).await;
    redis.command(&["SPUBLISH", "chat:s", "6"]).await;
    let large = "p".repeat(1 << 20);
    redis.publish(b"chat:a", large.as_bytes()).await;
    redis.publish(b"chat:a", b"").await;
    redis.publish(b"\xff\r\n", b"last").await;

    let found = read(&log, start, "last").await.unwrap();
    let expected: [(&[u8], &[u8]); 9] = [
        (b"chat:a", b"\x00\xff\r\n*3\r\n$7\r\nPUBLISH"),
        (b"chat:b", b"2"),
        (b"chat:c", b"3"),
        (b"chat:a", b"4"),
        (b"chat:a", b"5"),
        (b"chat:s", b"6"),
        (b"chat:a", large.as_bytes()),
        (b"chat:a", b""),
        (b"\xff\r\n", b"last"),
    ];
    let pairs: Vec<_> = found.iter().map(|one| (&one.channel[..], &one.payload[..])).collect();
    assert_eq!(pairs, expected);
    is_left_alone(&redis).await;
    assert_eq!((info(&redis, "sync_full").await, info(&redis, "sync_partial_ok").await), (1, 1));
    assert_eq!(info(&redis, "total_forks").await, 0);
    // Each publication's offset is a point to go on from.
    for (place, one) in found.iter().enumerate().take(8) {
        let point = Point { offset: one.offset, ..start };
        assert_eq!(read(&log, point, "last").await.unwrap(), found[place + 1..], "from {place} on");
    }
}

#[tokio::test]
async fn a_log_is_made_however_redis_makes_snapshots() {
    for setting in [["--repl-diskless-sync", "no"], ["--repl-diskless-sync-delay", "0"]] {
        let redis = Redis::start_with(&setting).await;
        redis.command(&["SET", "large", &"*".repeat(1 << 20)]).await;
        let log = Log::at(&redis.url());
        assert_eq!(log.visit().await.map(|(is_new, _)| is_new), Ok(true), "{setting:?}");
        let start = log.end().await.unwrap();
        redis.publish(b"a", b"last").await;
        assert_eq!(texts(&read(&log, start, "last").await.unwrap()), [("a".to_owned(), "last".to_owned())]);
        is_left_alone(&redis).await;
        let sent = info(&redis, "total_net_repl_output_bytes").await;
        assert!(sent < 1_000, "{setting:?}: an empty snapshot at most: {sent}");
    }
}

#[tokio::test]
async fn a_reading_goes_on_with_what_is_published_meanwhile() {
    let redis = Redis::start().await;
    let log = Log::at(&redis.url());
    log.visit().await.unwrap();
    let start = log.end().await.unwrap();
    redis.publish(b"a", b"1").await;
    let publishing = async {
        until("the log is read", START, async || info(&redis, "connected_slaves").await == 1).await;
        redis.publish(b"a", b"2").await;
        redis.publish(b"a", b"last").await;
    };
    let (found, ()) = tokio::join!(read(&log, start, "last"), publishing);
    let found = found.unwrap();
    assert_eq!(texts(&found).into_iter().map(|(_, text)| text).collect::<Vec<_>>(), ["1", "2", "last"]);
    assert_eq!(read(&Log::at(&redis.unix_url()), start, "last").await.unwrap(), found);
    is_left_alone(&redis).await;
}

#[tokio::test]
async fn limits_of_bytes_and_time_end_a_reading() {
    let redis = Redis::start_with(&["--repl-backlog-size", "64mb"]).await;
    let log = Log::at(&redis.url());
    log.visit().await.unwrap();
    let start = log.end().await.unwrap();
    redis.command(&["SET", "large", &"*".repeat(2 << 20)]).await;
    redis.publish(b"a", b"last").await;
    let now = log.read(start, b"last", 1 << 20, START).await;
    assert_eq!(now, Err("TooMuch(1048576)".to_owned()));
    assert_eq!(info(&redis, "sync_partial_ok").await, 0, "INFO says so before PSYNC");
    // More is written while the log is read.
    let end = log.end().await.unwrap();
    let writing = async {
        until("the log is read", START, async || info(&redis, "connected_slaves").await == 1).await;
        redis.publish(b"a", &vec![b'p'; 2 << 20]).await;
    };
    let (now, ()) = tokio::join!(log.read(end, b"never", 1 << 20, START), writing);
    assert_eq!(now, Err("TooMuch(1048576)".to_owned()));
    let late = log.read(start, b"never", MAX_BYTES, Duration::from_millis(300)).await;
    assert_eq!(late, Err("TooSlow(300ms)".to_owned()));
    redis.freeze();
    let late = log.read(start, b"last", MAX_BYTES, Duration::from_millis(300)).await;
    assert_eq!(late, Err("TooSlow(300ms)".to_owned()));
    redis.thaw();
    is_left_alone(&redis).await;
    assert_eq!(info(&redis, "sync_full").await, 1);
}

#[tokio::test]
async fn what_cannot_be_read_back_has_a_reason_and_costs_redis_nothing() {
    let mut redis = Redis::start_with(&["--repl-backlog-size", "16kb"]).await;
    let log = Log::at(&redis.url());
    assert_eq!(log.end().await, Err("NoLog".to_owned()));
    assert_eq!(why_not(&log, Point { replid: OTHER, offset: 0 }).await, "NoLog");
    log.visit().await.unwrap();
    let start = log.end().await.unwrap();
    let ahead = Point { offset: start.offset + 1, ..start };
    assert!(why_not(&log, ahead).await.starts_with("NeverArrived"));
    assert_eq!(why_not(&log, Point { replid: OTHER, ..start }).await, "OtherHistory");
    redis.command(&["SET", "large", &"*".repeat(64 << 10)]).await;
    let short = why_not(&log, start).await;
    assert!(short.starts_with("TooShort { missing: ") && short.contains("size: 16384"), "{short}");
    assert_eq!((info(&redis, "sync_full").await, info(&redis, "sync_partial_err").await), (1, 0));
    // A restart forgets the log, and the id with it.
    redis.kill();
    redis.start_again().await;
    assert_eq!(why_not(&log, start).await, "NoLog");
    log.visit().await.unwrap();
    assert_eq!(why_not(&log, start).await, "OtherHistory");
    redis.kill();
    assert!(why_not(&log, start).await.starts_with("Link(Unreachable"));

    let cluster = Redis::start_with(&["--cluster-enabled", "yes"]).await;
    let log = Log::at(&cluster.url());
    assert_eq!(log.visit().await, Err("Cluster".to_owned()));
    assert_eq!(why_not(&log, start).await, "Cluster");
    assert_eq!(info(&cluster, "sync_full").await, 0);
}

#[tokio::test]
async fn each_right_is_needed_and_together_they_suffice() {
    let redis = Redis::start().await;
    let admin = Log::at(&redis.url());
    admin.visit().await.unwrap();
    let start = admin.end().await.unwrap();
    redis.publish(b"a", b"last").await;
    let url = format!("redis://webws:pw@127.0.0.1:{}", redis.port());
    let log = Log::at(&url);
    let least = ["+info", "+replconf", "+psync"];
    for missing in least {
        let mut command = vec!["ACL", "SETUSER", "webws", "reset", "on", ">pw", "+hello", "+auth"];
        command.extend(least.into_iter().filter(|right| *right != missing));
        redis.command(&command).await;
        let refused = read(&log, start, "last").await.unwrap_err();
        assert!(refused.starts_with("NotPermitted") && refused.contains(&missing[1..]), "{missing}: {refused}");
        // Also where nothing else is to be made.
        assert!(log.visit().await.unwrap_err().starts_with("NotPermitted"), "{missing}");
    }
    let mut command = vec!["ACL", "SETUSER", "webws", "reset", "on", ">pw", "+hello", "+auth"];
    command.extend(least);
    redis.command(&command).await;
    assert_eq!(texts(&read(&log, start, "last").await.unwrap()), [("a".to_owned(), "last".to_owned())]);
    assert_eq!(log.visit().await, Ok((false, Duration::from_secs(600))), "repl-backlog-ttl is not told");
}

#[tokio::test]
async fn a_promoted_replica_continues_the_log_of_its_master() {
    let mut master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let replica = replica_of(&master).await;
    let start = Log::at(&master.url()).end().await.unwrap();
    master.publish(b"a", b"1").await;
    master.publish(b"a", b"2").await;
    let log = Log::at(&replica.url());
    let is_relayed = async || log.end().await.is_ok_and(|end| end.replid == start.replid && end.offset > start.offset);
    until("the replica has it", START, is_relayed).await;
    // A replica relays the log of its master, also to us.
    let relayed = read(&log, start, "2").await.unwrap();
    assert_eq!(relayed, read(&Log::at(&master.url()), start, "2").await.unwrap());
    let mut unheard = log.end().await.unwrap();
    master.kill();
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    replica.publish(b"a", b"3").await;
    let end = log.end().await.unwrap();
    assert_ne!(end.replid, start.replid, "it has a history of its own now");
    let found = read(&log, start, "3").await.unwrap();
    let expected = ["1", "2", "3"].map(|text| ("a".to_owned(), text.to_owned()));
    assert_eq!(texts(&found), expected);
    assert_eq!(found.last().map(|last| last.offset), Some(end.offset));
    // Where the former master's publications end.
    let former_end = log.former_end(start).await.unwrap().unwrap();
    assert!(found[1].offset <= former_end && former_end < found[2].offset, "{former_end}: {found:?}");
    assert_eq!(log.former_end(end).await, Ok(None));
    // What the former master had and this one never got.
    unheard.offset = end.offset;
    assert!(why_not(&log, unheard).await.starts_with("NeverArrived"));
    assert_eq!(info(&replica, "sync_full").await, 0);
}

#[tokio::test]
async fn visits_keep_a_log_that_redis_would_drop() {
    let redis = Redis::start_with(&["--repl-backlog-ttl", "2"]).await;
    let log = Log::at(&redis.url());
    let (is_new, pause) = log.visit().await.unwrap();
    assert!(is_new && pause < Duration::from_secs(1), "{pause:?}");
    let start = log.end().await.unwrap();
    redis.publish(b"a", b"last").await;
    for _ in 0..8 {
        lasting(pause).await;
        assert_eq!(log.visit().await, Ok((false, pause)));
    }
    assert_eq!(texts(&read(&log, start, "last").await.unwrap()), [("a".to_owned(), "last".to_owned())]);
    assert_eq!((info(&redis, "sync_full").await, info(&redis, "total_forks").await), (1, 0));
    until("the log is dropped", START, async || log.end().await == Err("NoLog".to_owned())).await;
}

#[tokio::test]
async fn under_sentinel_a_replica_is_read_and_the_master_where_there_is_none() {
    let master = Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let replica = replica_of(&master).await;
    let start = Log::at(&master.url()).end().await.unwrap();
    master.publish(b"a", b"last").await;
    let sentinel = Sentinel::start(master.port(), "sentinel down-after-milliseconds main 1000").await;
    let log = Log::at(&format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port));
    // Until the Sentinel has asked the master for its replicas, the master is read.
    let is_read_at_replica = async || {
        assert_eq!(texts(&read(&log, start, "last").await.unwrap()), [("a".to_owned(), "last".to_owned())]);
        info(&replica, "sync_partial_ok").await > 0
    };
    until("the replica is read", START, is_read_at_replica).await;
    let at_master = info(&master, "sync_partial_ok").await;
    read(&log, start, "last").await.unwrap();
    assert_eq!(info(&master, "sync_partial_ok").await, at_master);
    // A replica keeps the log; a visitor at the master might become one in the Sentinel's list.
    assert_eq!(log.visit().await.map(|(is_new, _)| is_new), Ok(false));
    assert_eq!(info(&master, "sync_partial_ok").await, at_master);
    // A replica without its master's link refuses; nothing of the data was copied.
    replica.freeze();
    assert_eq!(texts(&read(&log, start, "last").await.unwrap()), [("a".to_owned(), "last".to_owned())]);
    assert_eq!(info(&master, "sync_partial_ok").await, at_master + 1);
    assert_eq!(info(&master, "sync_full").await, 1, "the replica's");
    replica.thaw();
}

/// `INFO replication` of a master whose log of 400 bytes is full.
const FULL_LOG: &str = "role:master\r\nconnected_slaves:0\r\nmaster_replid:0101010101010101010101010101010101010101\r\n\
    master_replid2:0000000000000000000000000000000000000000\r\nmaster_repl_offset:1000\r\nsecond_repl_offset:-1\r\n\
    repl_backlog_active:1\r\nrepl_backlog_size:400\r\nrepl_backlog_first_byte_offset:601\r\nrepl_backlog_histlen:400\r\n";

/// A server that speaks RESP2 and answers each command with the first answer for a part of it. Resolves to all that it
/// was sent, when its only link is closed.
async fn server(answers: &[(&str, &str)]) -> (Log, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let log = Log::at(&format!("redis://{}", listener.local_addr().unwrap()));
    let info = format!("${}\r\n{FULL_LOG}\r\n", FULL_LOG.len());
    let further = [
        ("HELLO", "-ERR unknown command\r\n"),
        ("ROLE", "*3\r\n$6\r\nmaster\r\n:1000\r\n*0\r\n"),
        ("replication", &info),
        ("cluster", "$0\r\n\r\n"),
        ("", "+OK\r\n"),
    ];
    let answers: Vec<_> =
        answers.iter().chain(&further).map(|(part, text)| (part.to_string(), text.to_string())).collect();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut sent, mut part) = (String::new(), vec![0; 4_096]);
        while let len @ 1.. = stream.read(&mut part).await.unwrap_or(0) {
            let command = String::from_utf8_lossy(&part[..len]).into_owned();
            let (_, answer) = answers.iter().find(|(part, _)| command.contains(part.as_str())).unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            sent += &command;
        }
        sent
    });
    (log, serving)
}

#[tokio::test]
async fn a_node_that_does_not_continue_is_left_at_once() {
    let point = |offset| Point { replid: OTHER, offset };
    let snapshot = format!("+FULLRESYNC {} 1000\r\n$100\r\nREDIS", "02".repeat(20));
    let old = ("rdb-filter-only", "-ERR Unrecognized REPLCONF option: rdb-filter-only\r\n");
    for (answers, offset, reason, asks_for_log) in [
        (vec![("PSYNC", snapshot.as_str())], 900, "FullResync", true),
        (vec![("PSYNC", "\n\n-NOMASTERLINK Can't SYNC\r\n")], 900, "Refused(\"NOMASTERLINK Can't SYNC\")", true),
        (vec![("PSYNC", "-NOPERM no\r\n")], 900, "NotPermitted { refusal: \"NOPERM no\" }", true),
        (vec![("PSYNC", "+CONTINUE\r\n*1\r\n$4\r\nPING\r\nPING\r\n")], 900, "Malformed(914)", true),
        (vec![("PSYNC", "+WHAT\r\n")], 900, "Malformed(900)", true),
        // Redis before 7.0 would send all of its data, so some room is wanted.
        (vec![old], 610, "Uncertain", false),
        (vec![old, ("PSYNC", &snapshot)], 900, "FullResync", true),
        (vec![("replication", "$5\r\nrole:\r\n")], 900, "Unsupported", false),
        (vec![("replication", "-LOADING Redis is loading\r\n")], 900, "Refused(\"LOADING Redis is loading\")", false),
    ] {
        let (log, serving) = server(&answers).await;
        assert_eq!(why_not(&log, point(offset)).await, reason);
        let sent = tokio::time::timeout(START, serving).await.expect("the link is closed").unwrap();
        assert_eq!(sent.contains("PSYNC"), asks_for_log, "{sent}");
        assert!(!sent.contains("ACK"), "{sent}");
    }
    let (log, serving) = server(&[
        ("replication", &format!("${}\r\n{}\r\n", FULL_LOG.len(), FULL_LOG.replace("active:1", "active:0"))),
        old,
    ])
    .await;
    assert_eq!(log.visit().await, Err("NeedsReplica".to_owned()));
    assert!(!serving.await.unwrap().contains("PSYNC"));
}
