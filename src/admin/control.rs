//! The control socket: one line is a request, one line is the reply. Only root and webws' own user may use it.
//!
//! `upgrade` hands everything over to a new process. `suspend` leaves the sessions to the process that is started next.
//! `log LEVEL` changes the log's level. `handshake KEY` announces the handshake of `webws check --nginx`. The reply comes
//! when the request is done or has failed. Here are also the functions that send these requests. May not enter: how
//! sessions are handed over or left (`service/giver.rs`).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::front::arrival;
use crate::os::{self, socket_file::FileId};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The reply's first word from a process that has handed over.
const ELSEWHERE: &str = "elsewhere";

/// How long the new process may take to make its control socket.
const NEXT: Duration = Duration::from_secs(5);

/// The socket file's mode: its owner only.
const MODE: u32 = 0o600;

/// The longest request: a log filter may name several targets.
const MAX_LINE: u64 = 1024;

/// How long a reply may take: longer than any hand-over, and than any standstill.
pub(crate) const UPGRADING: Duration = Duration::from_secs(180);
const SUSPENDING: Duration = Duration::from_secs(30);
const SETTING: Duration = Duration::from_secs(5);

/// The first request, which shows that webws listens, and how long its reply may take.
const IDENTIFYING_WORD: &str = "version";
const IDENTIFYING: Duration = Duration::from_secs(3);

/// How long the client may take to read the reply.
const REPLYING: Duration = Duration::from_secs(1);

/// What a request asks the server to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// To hand over to a new process.
    Upgrade,
    /// To leave the sessions to systemd, and end.
    Suspend,
}

impl Operation {
    /// The line of a request.
    fn line(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Suspend => "suspend",
        }
    }

    fn parse(line: &str) -> Option<Self> {
        [Self::Upgrade, Self::Suspend].into_iter().find(|operation| operation.line() == line)
    }
}

/// A request that waits for its reply.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    tell: oneshot::Sender<Reply>,
    told: oneshot::Receiver<()>,
}

impl Request {
    /// Sends the reply; returns when it is written to the socket.
    pub(crate) async fn answer(self, reply: Reply) {
        // The client may have gone.
        drop(self.tell.send(reply));
        drop(tokio::time::timeout(REPLYING, self.told).await);
    }
}

/// The result of a request, as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The first word of the line.
    kind: &'static str,
    text: String,
}

impl Reply {
    pub(crate) const BUSY: &str = "a hand-over is under way already: wait for it";

    pub(crate) fn busy() -> Self {
        Self::failed(Self::BUSY.to_owned())
    }

    pub(crate) fn done(text: String) -> Self {
        Self { kind: "done", text }
    }

    pub(crate) fn failed(text: String) -> Self {
        Self { kind: "failed", text }
    }

    /// The client has to ask the new process.
    pub(crate) fn elsewhere() -> Self {
        Self { kind: ELSEWHERE, text: "another process serves now".to_owned() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn line(&self) -> String {
        format!("{} {}\n", self.kind, self.text.replace('\n', " "))
    }
}

/// Listens until dropped, and then removes its socket file, unless another process has replaced the file.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// None when the file is left to another process.
    file: Option<FileId>,
    accepting: JoinHandle<()>,
}

impl Control {
    /// Stops listening, and leaves the file to another process. Resolves when the listener is closed: the other
    /// process takes a file on which something still listens for a live server's.
    pub(crate) async fn leave(mut self) {
        self.file = None;
        self.accepting.abort();
        // Ends by the abort.
        (&mut self.accepting).await.ok();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(file) = self.file {
            os::socket_file::remove_own(&self.path, file);
        }
    }
}

/// Listens at `path`, and passes on to `requests` what this room cannot carry out.
///
/// # Errors
/// When the socket cannot be made at `path`.
pub(crate) fn listen(path: &Path, requests: mpsc::Sender<Request>) -> io::Result<Control> {
    let (socket, file) = os::socket_file::bind_unix(path, MODE, None)?;
    os::socket::prepare_listener(socket.as_fd())?;
    let listener = UnixListener::from_std(StdListener::from(socket))?;
    let accepting = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream, requests.clone()))),
                Err(error) => {
                    tracing::debug!(%error, "a connection to the control socket cannot be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(Control { path: path.to_owned(), file: Some(file), accepting })
}

async fn answer(stream: UnixStream, requests: mpsc::Sender<Request>) {
    // The file's mode says the same, unless an operator has changed the mode.
    let is_allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == os::limit::own_user());
    let mut stream = tokio::io::BufReader::new(stream);
    let mut line = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), (&mut stream).take(MAX_LINE).read_line(&mut line)).await;
    let (said, told) = oneshot::channel();
    let reply = match read {
        Err(_) | Ok(Err(_)) => return,
        Ok(Ok(_)) if !is_allowed => {
            tracing::warn!(
                "refused a request on the control socket: only root and the user that webws runs as may send requests"
            );
            Reply::failed("only root and the user that webws runs as may send requests".to_owned())
        }
        Ok(Ok(_)) => carry_out(line.trim_end(), &requests, told).await,
    };
    // The client may have gone.
    drop(stream.write_all(reply.line().as_bytes()).await);
    said.send(()).ok();
}

/// Carries out the request `line`, or has the server carry it out. `told` resolves when the reply is written.
async fn carry_out(line: &str, requests: &mpsc::Sender<Request>, told: oneshot::Receiver<()>) -> Reply {
    if let Some(operation) = Operation::parse(line) {
        let (tell, reply) = oneshot::channel();
        let ended = || Reply::failed("the server stops".to_owned());
        return match requests.send(Request { operation, tell, told }).await {
            Ok(()) => reply.await.unwrap_or_else(|_| ended()),
            Err(_) => ended(),
        };
    }
    if line == IDENTIFYING_WORD {
        return Reply::done(format!("webws {VERSION}"));
    }
    if let Some(key) = line.strip_prefix("handshake ") {
        arrival::announce(key);
        return Reply::done("announced".to_owned());
    }
    match line.strip_prefix("log ").map(crate::log::set_level) {
        Some(Ok(done)) => {
            tracing::info!("{done} (webws log)");
            Reply::done(done)
        }
        Some(Err(fault)) => Reply::failed(fault),
        // Perhaps a newer webws asks.
        None => Reply::failed(format!(
            "unknown request {line:?}: webws {VERSION} knows \"upgrade\", \"suspend\", \"log LEVEL\" and \"handshake KEY\""
        )),
    }
}

/// Why a request to a running webws failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The server's reply; for a hand-over, the server's log has the same sentence.
    #[error("{text}")]
    Answered {
        /// A sentence for the operator.
        text: String,
    },
    /// The server ended before it replied.
    #[error("the server ended without a reply; its log says why")]
    Ended,
    /// Another program listens at the path.
    #[error(
        "{} is not webws' control socket, because something else answers there: see the setting control",
        path.display()
    )]
    Foreign {
        /// The setting `control`.
        path: PathBuf,
    },
    /// Nothing listens at the path, or no reply comes in time.
    #[error("{}", explain(path, source, *patience))]
    Unreachable {
        /// The setting `control`.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
        /// How long the reply was waited for.
        patience: Duration,
    },
}

/// Makes the server with the control socket `path` hand over to a new process; returns the reply when done.
///
/// # Errors
/// Why the hand-over failed.
pub fn upgrade(path: &Path) -> Result<String, ControlError> {
    request(path, Operation::Upgrade.line(), UPGRADING)
}

/// Makes the server with the control socket `path` leave its sessions to systemd, for the process that is started
/// next, and end; returns the reply.
///
/// # Errors
/// Why the sessions could not be left. The server continues to serve then.
pub fn suspend(path: &Path) -> Result<String, ControlError> {
    request(path, Operation::Suspend.line(), SUSPENDING)
}

/// Changes the log level of the server with the control socket `path`, until that server ends; returns the reply.
/// `level` is a level, or a filter as in `WEBWS_LOG`.
///
/// # Errors
/// Why the level was not changed.
pub fn log_level(path: &Path, level: &str) -> Result<String, ControlError> {
    request(path, &format!("log {}", level.replace('\n', " ")), SETTING)
}

/// Announces to the server with the control socket `path` a handshake with this `Sec-WebSocket-Key`. The server answers
/// the handshake with 200, and a line that says how it came.
///
/// # Errors
/// Why the handshake is not expected.
pub fn announce(path: &Path, key: &str) -> Result<String, ControlError> {
    request(path, &format!("handshake {}", key.replace('\n', " ")), SETTING)
}

fn request(path: &Path, line: &str, patience: Duration) -> Result<String, ControlError> {
    let since = Instant::now();
    loop {
        // The version is asked first: its reply takes no time, so that a foreign listener is found at once.
        let replied = exchange(path, IDENTIFYING_WORD, IDENTIFYING).and_then(|identity| {
            let is_ours = ["done ", "failed ", ELSEWHERE].iter().any(|start| identity.starts_with(start));
            if is_ours {
                exchange(path, line, patience).map_err(|fault| fault.after(patience))
            } else {
                Err(Fault::Other(identity))
            }
        });
        // Right after a hand-over, the socket may be missing for a moment, or have no listener.
        let is_between = match &replied {
            Ok(line) => line.is_empty() || line.starts_with(ELSEWHERE),
            Err(Fault::Other(line)) => line.is_empty(),
            Err(Fault::Io(error, _)) => {
                matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
                    && os::socket_file::is_socket(path)
            }
        };
        if is_between && since.elapsed() < NEXT {
            pause();
            continue;
        }
        let reply = replied.map_err(|fault| fault.at(path))?;
        return match reply.trim_end().split_once(' ') {
            Some(("done", text)) => Ok(text.to_owned()),
            Some(("failed", text)) => Err(ControlError::Answered { text: text.to_owned() }),
            None if reply.is_empty() => Err(ControlError::Ended),
            _ => Err(ControlError::Foreign { path: path.to_owned() }),
        };
    }
}

/// Why no reply came.
#[derive(Debug)]
enum Fault {
    /// The error, and for a timeout its length.
    Io(io::Error, Duration),
    /// Another program listens, and sent this line.
    Other(String),
}

impl Fault {
    fn after(self, patience: Duration) -> Self {
        match self {
            Self::Io(error, _) => Self::Io(error, patience),
            other @ Self::Other(_) => other,
        }
    }

    fn at(self, path: &Path) -> ControlError {
        let path = path.to_owned();
        match self {
            Self::Io(source, patience) => ControlError::Unreachable { path, source, patience },
            Self::Other(_) => ControlError::Foreign { path },
        }
    }
}

/// Why no reply came from `path`, and what to do.
fn explain(path: &Path, error: &io::Error, patience: Duration) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::WouldBlock => format!(
            "nothing answered at {path} within {patience:?}: it is not webws' control socket (see the setting \
             control), or webws is stopped (SIGSTOP) or hangs"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the control socket {path} cannot be used: {error}; only root and the user that webws runs as may \
             (try sudo)"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("no process listens at {path}: is webws running with control = \"{path}\"?")
        }
        io::ErrorKind::NotFound => format!("there is no {path}: is webws running with control = \"{path}\"?"),
        _ => format!("{path} is not webws' control socket: {error}"),
    }
}

/// Sends a request, and returns the line of the reply.
fn exchange(path: &Path, request: &str, patience: Duration) -> Result<String, Fault> {
    let exchange = || -> io::Result<String> {
        let mut stream = os::socket_file::connect_unix(path)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(IDENTIFYING))?;
        // The empty line ends an HTTP request head: an HTTP server at this path refuses the request at once.
        stream.write_all(format!("{request}\r\n\r\n").as_bytes())?;
        let mut line = Vec::new();
        BufReader::new(stream.take(1 << 16)).read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    };
    exchange().map_err(|error| Fault::Io(error, patience))
}

/// Between two attempts. Polled, because only inotify(7) tells when the new process listens, which takes milliseconds.
#[expect(clippy::disallowed_methods, reason = "this process does nothing else")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unknown_request_is_refused_and_reaches_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (requests, mut requested) = mpsc::channel(1);
        let _control = listen(&path, requests).unwrap();
        for request in ["upgrad", "", "Upgrade", "upgrade now", "log", "handshake"] {
            let path = path.clone();
            let asked = tokio::task::spawn_blocking(move || exchange(&path, request, SETTING));
            let reply = asked.await.unwrap().unwrap();
            let expected = format!("failed unknown request {request:?}: webws ");
            assert!(reply.starts_with(&expected) && reply.contains("\"suspend\""), "{reply}");
        }
        assert!(requested.try_recv().is_err());
    }

    #[test]
    fn each_operation_is_parsed_from_its_own_line() {
        for operation in [Operation::Upgrade, Operation::Suspend] {
            assert_eq!(Operation::parse(operation.line()), Some(operation));
        }
    }
}
