//! A real redis-server of its own for each test, and a spy on its channels.
//!
//! It may be killed, started again on the same addresses, frozen and thawed.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, PushInfo, PushKind, RedisResult, Value};
use bytes::Bytes;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;

use super::{Process, START, free_port, read_log, until};

#[derive(Debug)]
pub(crate) struct Redis {
    process: Process,
    port: u16,
    arguments: Vec<String>,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
    dir: TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Redis {
        Redis::start_with(&[]).await
    }

    /// Starts with further arguments, such as `["--maxclients", "20"]`.
    pub(crate) async fn start_with(arguments: &[&str]) -> Redis {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let process = spawn(&dir, port, &arguments);
        let connection = tokio::sync::Mutex::new(None);
        let mut redis = Redis { process, port, arguments, connection, dir };
        redis.ready().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn unix_url(&self) -> String {
        format!("unix://{}", self.dir.path().join("redis.sock").display())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Waits until Redis has written its answers to all commands so far. A client's own message may come back to
    /// the client before Redis has answered the PUBLISH; a Redis that is killed between the two leaves a message
    /// whose fate is unknown, and its WebSocket is closed with 1013.
    pub(crate) async fn has_answered(&self) {
        // Redis writes its answers before it reads the next command.
        self.command(&["PING"]).await;
    }

    /// SIGKILL; all connections are reset.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after `kill`, on the same port and socket.
    pub(crate) async fn start_again(&mut self) {
        self.process = spawn(&self.dir, self.port, &self.arguments);
        self.ready().await;
    }

    /// Stops it from running while its connections stay; `thaw` lets it go on.
    pub(crate) fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
        // A process on another core runs on for a moment (proc(5), the state follows the name).
        let stat = format!("/proc/{}/stat", self.process.pid());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            std::thread::yield_now();
        }
    }

    pub(crate) fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Runs one command and panics on an error reply.
    pub(crate) async fn command(&self, words: &[&str]) -> Value {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.try_command(&words).await.unwrap_or_else(|e| panic!("redis: {e}"))
    }

    /// Publishes on the exact `channel` and returns the receivers; a `Spy` is one of them.
    pub(crate) async fn publish(&self, channel: &[u8], payload: &[u8]) -> i64 {
        match self.try_command(&[b"PUBLISH", channel, payload]).await {
            Ok(Value::Int(receivers)) => receivers,
            other => panic!("PUBLISH: {other:?}"),
        }
    }

    /// How many connections have SUBSCRIBEd to `channel`; spies do not count.
    pub(crate) async fn numsub(&self, channel: &[u8]) -> usize {
        match self.try_command(&[b"PUBSUB", b"NUMSUB", channel]).await {
            Ok(Value::Array(reply)) => match reply.last() {
                Some(Value::Int(n)) => usize::try_from(*n).unwrap(),
                other => panic!("NUMSUB: {other:?}"),
            },
            other => panic!("NUMSUB: {other:?}"),
        }
    }

    /// The lines of CLIENT LIST, the harness' own connection included.
    pub(crate) async fn clients(&self) -> Vec<String> {
        match self.command(&["CLIENT", "LIST"]).await {
            Value::VerbatimString { text, .. } => text.lines().map(str::to_owned).collect(),
            Value::BulkString(text) => String::from_utf8_lossy(&text).lines().map(str::to_owned).collect(),
            other => panic!("CLIENT LIST: {other:?}"),
        }
    }

    /// What tells the links of webws from those that it would make in their place: their ids.
    pub(crate) async fn links(&self) -> Vec<String> {
        let links = self.clients().await.into_iter().filter(|line| line.contains("name=webws"));
        links.map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    /// Kills the links of webws, and nobody else's; returns their number.
    pub(crate) async fn kill_links(&self) -> usize {
        let links = self.links().await;
        for link in &links {
            let id = link.strip_prefix("id=").expect("CLIENT LIST begins with an id");
            // It may have gone by itself.
            self.try_command(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await.unwrap();
        }
        links.len()
    }

    /// A field of INFO.
    pub(crate) async fn info(&self, name: &str) -> String {
        let info: String = ::redis::from_redis_value(self.command(&["INFO", "everything"]).await).unwrap();
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {name}: {info}")).to_owned()
    }

    /// How often a command was called (MONITOR does not show those of administrators and replicas).
    pub(crate) async fn calls(&self, command: &str) -> usize {
        let info: String = ::redis::from_redis_value(self.command(&["INFO", "commandstats"]).await).unwrap();
        let calls = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }

    /// Records all payloads on the exact `channel` from now on.
    pub(crate) async fn spy(&self, channel: &[u8]) -> Spy {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let config = config().set_push_sender(move |push: PushInfo| {
            if let (PushKind::PMessage, [.., Value::BulkString(payload)]) = (push.kind, &push.data[..]) {
                record.lock().unwrap().push(Bytes::copy_from_slice(payload));
            }
            Ok::<(), ()>(())
        });
        let client = Client::open(format!("{}/?protocol=resp3", self.url())).unwrap();
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        // A pattern, so that NUMSUB goes on counting webws alone.
        connection.psubscribe(literal_pattern(channel)).await.unwrap();
        Spy { seen, _connection: connection }
    }

    /// Records all commands from now on (<https://redis.io/commands/monitor>).
    pub(crate) async fn spy_commands(&self) -> Monitor {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_all(b"MONITOR\r\n").await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("+OK"));
        Monitor { lines }
    }

    async fn try_command(&self, words: &[&[u8]]) -> RedisResult<Value> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        let mut connection = self.connect().await?;
        match connection.send_packed_command(&command).await {
            // The connection died with an earlier redis-server, or of CLIENT KILL.
            Err(e) if e.is_io_error() && !e.is_timeout() => {
                *self.connection.lock().await = None;
                self.connect().await?.send_packed_command(&command).await
            }
            reply => reply,
        }
        .and_then(Value::extract_error)
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = &*kept {
            return Ok(connection.clone());
        }
        let client = Client::open(self.url())?;
        let connection = client.get_multiplexed_async_connection_with_config(&config()).await?;
        Ok(kept.insert(connection).clone())
    }

    async fn ready(&mut self) {
        *self.connection.lock().await = None;
        if let Some(status) = self.process.exit_status() {
            panic!("redis-server: {status}\n{}", read_log(&self.dir.path().join("redis.log")));
        }
        let this = &*self;
        until("redis-server answers PING", START, || async { this.try_command(&[b"PING"]).await.is_ok() }).await;
    }
}

/// All commands that Redis executes, one a line.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: Lines<BufReader<TcpStream>>,
}

impl Monitor {
    /// What has come until nothing does for that long.
    pub(crate) async fn until_quiet(&mut self, quiet: Duration) -> Vec<String> {
        let mut seen = Vec::new();
        while let Ok(Ok(Some(line))) = tokio::time::timeout(quiet, self.lines.next_line()).await {
            seen.push(line);
        }
        seen
    }
}

/// All payloads seen on one channel, in order.
#[derive(Debug)]
pub(crate) struct Spy {
    seen: Arc<Mutex<Vec<Bytes>>>,
    _connection: MultiplexedConnection,
}

impl Spy {
    pub(crate) fn seen(&self) -> Vec<Bytes> {
        self.seen.lock().unwrap().clone()
    }
}

fn spawn(dir: &TempDir, port: u16, arguments: &[String]) -> Process {
    // The same suite runs against what speaks Redis' protocol: TEST_REDIS=valkey-server.
    let server = std::env::var("TEST_REDIS").unwrap_or_else(|_| "redis-server".to_owned());
    let mut command = Command::new(server);
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--unixsocket", "redis.sock", "--logfile", "redis.log"])
        .args(["--save", "", "--appendonly", "no"])
        .args(arguments)
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Process::spawn(&mut command, Signal::SIGKILL, "apt-get install redis-server")
}

/// Waits longer than any stall that a test makes (the crate's default is 500 ms).
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(10)))
        .set_response_timeout(Some(Duration::from_secs(10)))
}

/// The glob that matches exactly `channel` (<https://redis.io/commands/psubscribe>).
fn literal_pattern(channel: &[u8]) -> Vec<u8> {
    let escape = |&byte: &u8| {
        let special = b"*?[]^\\".contains(&byte);
        special.then_some(b'\\').into_iter().chain([byte])
    };
    channel.iter().flat_map(escape).collect()
}

mod tests {
    use super::*;

    #[tokio::test]
    async fn spies_see_all_and_do_not_count_as_subscribers() {
        let redis = Redis::start().await;
        let channel = b"chat:a*[\\?\xff\0";
        let spy = redis.spy(channel).await;
        assert_eq!(redis.numsub(channel).await, 0);
        assert_eq!(redis.publish(b"chat:abc", b"elsewhere").await, 0);
        for payload in ["one", "", "two"] {
            assert_eq!(redis.publish(channel, payload.as_bytes()).await, 1);
        }
        until("the spy has seen three", START, async || spy.seen().len() == 3).await;
        assert_eq!(spy.seen(), ["one", "", "two"]);
    }

    #[tokio::test]
    async fn redis_freezes_and_thaws_and_comes_back_from_the_dead_on_its_port() {
        let mut redis = Redis::start_with(&["--maxclients", "20"]).await;
        redis.freeze();
        let asked = tokio::time::timeout(Duration::from_millis(100), redis.numsub(b"x")).await;
        assert!(asked.is_err(), "a frozen redis-server answers");
        redis.thaw();
        assert_eq!(redis.numsub(b"x").await, 0);
        let port = redis.port();
        redis.kill();
        redis.start_again().await;
        assert_eq!((redis.port(), redis.clients().await.len()), (port, 1));
        let limit = redis.command(&["CONFIG", "GET", "maxclients"]).await;
        assert!(format!("{limit:?}").contains("20"), "the arguments are gone: {limit:?}");
    }
}
