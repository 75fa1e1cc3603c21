//! Promise: a program that embeds webws keeps its own log levels and its own allocator, in a release build.
//!
//! Cargo unifies the features of a crate over the whole program, so a library that sets `release_max_level_info` of
//! `tracing` or `log` silences its user. Neither a unit test nor a debug build would notice; so this is a program of
//! its own, which tests/run.sh builds with the release profile and runs. It exits with 101 when a promise is broken.

use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use webws::{ChannelRule, Config, EndpointConfig, Publisher, Server, WireName};

type Failure = Box<dyn Error + Send + Sync>;

/// How long the server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// This program's allocator. With another one in the library, the program would not link.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait; this one only counts")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the trait's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn assert_has(&self, line: &str) {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = String::from_utf8_lossy(&lines);
        assert!(lines.contains(line), "the line {line:?} is missing in a release build: {lines}");
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `log` has levels of its own.
impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}\n", record.level(), record.args());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line.as_bytes());
    }

    fn flush(&self) {}
}

fn main() -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        return Err("build this program with --release: other builds keep every level anyway".into());
    }
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    log::set_boxed_logger(Box::new(lines.clone()))?;
    log::set_max_level(log::LevelFilter::Trace);

    let path = std::env::temp_dir().join(format!("webws-embedder-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path)?;
    let served = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(listener, &path));
    std::fs::remove_file(&path)?;
    served?;

    tracing::debug!("own debug line");
    tracing::trace!("own trace line");
    log::debug!("own debug record");
    log::trace!("own trace record");
    for line in ["own debug line", "own trace line", "DEBUG own debug record", "TRACE own trace record"] {
        lines.assert_has(line);
    }
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0);
    writeln!(io::stdout(), "webws-embedder: own log levels and own allocator, in a release build")?;
    Ok(())
}

/// Serves until one client has heard one publication.
async fn serve(listener: UnixListener, path: &Path) -> Result<(), Failure> {
    let endpoint =
        EndpointConfig::new("/news").with_wire(WireName::Plain).with_channel(ChannelRule::Plain).subscribe_only();
    let mut config = Config::default();
    config.broker = "memory".parse()?;
    config.workers = 1;
    config.drain_time = Duration::ZERO;
    config.endpoints = vec![endpoint];
    let server = Server::on(config, vec![listener.into()])?;
    let publisher = server.publisher();
    let (heard, path) = (Arc::new(Mutex::new(None)), path.to_owned());
    let told = heard.clone();
    let until_heard = async move {
        let client = client(&publisher, path).await.map_err(|error| error.to_string());
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
    };
    server.run(until_heard).await?;
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner).take();
    heard.unwrap_or_else(|| Err("the server ended early".to_owned())).map_err(Failure::from)
}

/// Connects, hears "hello" and leaves.
async fn client(publisher: &Publisher, path: std::path::PathBuf) -> Result<(), Failure> {
    let connected = tokio::task::spawn_blocking(move || connect(&path)).await??;
    publisher.publish("chat:all", "hello").await?;
    tokio::task::spawn_blocking(move || hear(connected)).await?
}

fn connect(path: &Path) -> Result<UnixStream, Failure> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        b"GET /news?channel=all HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return Err(format!("no 101: {}", String::from_utf8_lossy(&head)).into());
    }
    Ok(stream)
}

fn hear(mut stream: UnixStream) -> Result<(), Failure> {
    // FIN and text, five bytes, unmasked.
    let mut frame = [0; 7];
    stream.read_exact(&mut frame)?;
    if &frame != b"\x81\x05hello" {
        return Err(format!("another frame: {frame:?}").into());
    }
    Ok(())
}
