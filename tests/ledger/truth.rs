//! What was published and in what order, by Redis' own replication log; read here, so that webws' reader does not judge
//! itself. May not enter: what clients got.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::message::Id;
use crate::support::redis::Redis;

/// The publications of each channel in Redis, as far as the log was read.
#[derive(Debug)]
pub(super) struct Truth {
    replid: String,
    offset: u64,
    pub(super) published: HashMap<String, Vec<(Id, SystemTime)>>,
}

impl Truth {
    /// From now on.
    pub(super) async fn new(redis: &Redis) -> Truth {
        let (replid, offset) = end(redis).await;
        Truth { replid, offset, ..Truth::of(HashMap::new()) }
    }

    /// Of these publications.
    pub(super) fn of(published: HashMap<String, Vec<(Id, SystemTime)>>) -> Truth {
        Truth { replid: String::new(), offset: 0, published }
    }

    /// Reads on to the end of the log of `redis`: the same server, a replica of it, or one that was promoted.
    pub(super) async fn advance(&mut self, redis: &Redis) {
        let (replid, offset) = end(redis).await;
        let log = read(redis.port(), &self.replid, self.offset, offset).await;
        (self.replid, self.offset) = (replid, offset);
        for (channel, message) in publications(&log) {
            self.published.entry(channel).or_default().push(message);
        }
    }

    /// What the log of `redis` has behind `from`, and where it ends now.
    pub(super) async fn behind(&self, redis: &Redis, from: u64) -> (HashSet<Id>, u64) {
        let end = offset(redis).await;
        let log = read(redis.port(), &self.replid, from, end).await;
        (publications(&log).into_iter().map(|(_, (id, _))| id).collect(), end)
    }

    /// All messages that were published.
    pub(super) fn ids(&self) -> HashSet<Id> {
        self.published.values().flatten().map(|(id, _)| *id).collect()
    }
}

/// The messages in a piece of a log, and their channels.
fn publications(mut log: &[u8]) -> Vec<(String, (Id, SystemTime))> {
    let mut found = Vec::new();
    while !log.is_empty() {
        let command = take_command(&mut log);
        if let [name, channel, payload] = &command[..]
            && name.eq_ignore_ascii_case(b"PUBLISH")
            && let Some(message) = std::str::from_utf8(payload).ok().and_then(Id::parse)
        {
            found.push((String::from_utf8(channel.to_vec()).unwrap(), message));
        }
    }
    found
}

/// The name and the end of a log.
async fn end(redis: &Redis) -> (String, u64) {
    (redis.info("master_replid").await, offset(redis).await)
}

/// The end of a log.
pub(super) async fn offset(redis: &Redis) -> u64 {
    redis.info("master_repl_offset").await.parse().unwrap()
}

/// The bytes of a log behind `from`, up to `end`.
async fn read(port: u16, replid: &str, from: u64, end: u64) -> Vec<u8> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    stream.write_all(b"REPLCONF capa psync2\r\n").await.unwrap();
    assert_eq!(line(&mut stream).await, "+OK");
    stream.write_all(format!("PSYNC {replid} {}\r\n", from + 1).as_bytes()).await.unwrap();
    let answer = line(&mut stream).await;
    assert!(answer.starts_with("+CONTINUE"), "the log does not have what the test needs: {answer}");
    let mut log = vec![0; usize::try_from(end - from).unwrap()];
    stream.read_exact(&mut log).await.unwrap();
    log
}

/// A line that is not empty, which a busy server sends before its answer.
async fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    loop {
        match stream.read_u8().await.unwrap() {
            b'\r' => {}
            b'\n' if line.is_empty() => {}
            b'\n' => return line,
            byte => line.push(byte.into()),
        }
    }
}

/// Takes a command off a log.
fn take_command<'a>(log: &mut &'a [u8]) -> Vec<&'a [u8]> {
    let count = take_number(log, b'*');
    let argument = |_| {
        let len = take_number(log, b'$');
        let (argument, rest) = log.split_at(len);
        *log = rest.strip_prefix(b"\r\n").expect("an end of the argument");
        argument
    };
    (0..count).map(argument).collect()
}

fn take_number(log: &mut &[u8], kind: u8) -> usize {
    let end = log.iter().position(|byte| *byte == b'\r').expect("a number");
    let (number, rest) = log.split_at(end);
    assert_eq!(number[0], kind, "{}", String::from_utf8_lossy(number));
    *log = &rest[2..];
    std::str::from_utf8(&number[1..]).unwrap().parse().unwrap()
}
