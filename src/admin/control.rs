//! The control socket: a line is asked, a line is answered. Only root and our own user may.
//!
//! `upgrade` hands everything over to a new process, `suspend` leaves it to the next process, `log LEVEL`
//! changes the log's level; the answer comes when that is done or has failed.
//! May not enter: how that is done.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::os::{self, socket_file::FileId};

/// What is answered by a process that has handed over.
const ELSEWHERE: &str = "elsewhere";

/// How long the next process may take to have a control socket.
const NEXT: Duration = Duration::from_secs(5);

/// Who may open it: its owner.
const MODE: u32 = 0o600;

/// The longest line that is asked: a log filter may name several targets.
const MAX_LINE: u64 = 1024;

/// How long an answer may take: longer than any hand-over, and than any standstill.
pub(crate) const UPGRADING: Duration = Duration::from_secs(180);
const SUSPENDING: Duration = Duration::from_secs(30);
const SETTING: Duration = Duration::from_secs(5);

/// What is asked first, and how long who listens may take to answer that.
const IDENTIFYING_WORD: &str = "version";
const IDENTIFYING: Duration = Duration::from_secs(3);

/// How long somebody may take to read his answer.
const SAYING: Duration = Duration::from_secs(1);

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To hand over to a new process.
    Upgrade,
    /// To leave the sessions to systemd, and end.
    Suspend,
}

/// Somebody wishes something, and to hear what came of it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) wish: Wish,
    tell: oneshot::Sender<Outcome>,
    told: oneshot::Receiver<()>,
}

impl Request {
    /// Tells what came of it; returns when that has been said.
    pub(crate) async fn answer(self, outcome: Outcome) {
        // Who asked may have gone.
        drop(self.tell.send(outcome));
        drop(tokio::time::timeout(SAYING, self.told).await);
    }
}

/// What came of a request, in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The first word of the line.
    kind: &'static str,
    text: String,
}

impl Outcome {
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

    /// Another process is asked from now on.
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

/// Listens until it is dropped; its file goes with it, unless another process has put its own there.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// None when it is left to another process.
    file: Option<FileId>,
    accepting: JoinHandle<()>,
}

impl Control {
    /// Listens no more, and leaves the file to another process.
    pub(crate) fn leave(mut self) {
        self.file = None;
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

/// Passes what is asked at `path` on to `requests`.
///
/// # Errors
/// When the socket cannot be made there.
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
    // Its file's mode says the same, unless somebody has changed it.
    let is_allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == os::limit::own_user());
    let mut stream = tokio::io::BufReader::new(stream);
    let mut line = String::new();
    let read = tokio::time::timeout(Duration::from_secs(5), (&mut stream).take(MAX_LINE).read_line(&mut line)).await;
    let (said, told) = oneshot::channel();
    let outcome = match (read, line.trim_end()) {
        (Err(_) | Ok(Err(_)), _) => return,
        _ if !is_allowed => {
            tracing::warn!("a request on the control socket is refused: only root and webws' own user may ask");
            Outcome::failed("only root and the user that webws runs as may ask".to_owned())
        }
        (_, word @ ("upgrade" | "suspend")) => {
            let wish = if word == "upgrade" { Wish::Upgrade } else { Wish::Suspend };
            let (tell, outcome) = oneshot::channel();
            let ended = || Outcome::failed("the server stops".to_owned());
            match requests.send(Request { wish, tell, told }).await {
                Ok(()) => outcome.await.unwrap_or_else(|_| ended()),
                Err(_) => ended(),
            }
        }
        (_, IDENTIFYING_WORD) => Outcome::done(format!("webws {}", env!("CARGO_PKG_VERSION"))),
        (_, line) => match line.strip_prefix("log ").map(crate::log::set_level) {
            Some(Ok(done)) => {
                tracing::info!("{done} (webws log)");
                Outcome::done(done)
            }
            Some(Err(fault)) => Outcome::failed(fault),
            None => Outcome::failed("unknown command: \"upgrade\", \"suspend\" and \"log LEVEL\" are known".to_owned()),
        },
    };
    // Who asked may have gone.
    drop(stream.write_all(outcome.line().as_bytes()).await);
    said.send(()).ok();
}

/// Why a running webws did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Its answer; for a hand-over, its log has the same sentence.
    #[error("{text}")]
    Answered {
        /// A sentence for the operator.
        text: String,
    },
    /// It ended before it answered.
    #[error("the server ended without an answer; its log says why")]
    Ended,
    /// Another program listens at the path.
    #[error(
        "{} is not webws' control socket, because something else answers there: see the setting control",
        path.display()
    )]
    Foreign {
        /// Where the control socket was looked for.
        path: PathBuf,
    },
    /// Nothing listens at the path, or nothing answers in time.
    #[error("{}", explain(path, source, *patience))]
    Unreachable {
        /// Where the control socket was looked for.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
        /// How long the answer was waited for.
        patience: Duration,
    },
}

/// Asks the server whose control socket is at `path` to hand over to a new process; returns what it says
/// when that is done.
///
/// # Errors
/// Why it was not done.
pub fn upgrade(path: &Path) -> Result<String, AskError> {
    ask(path, "upgrade", UPGRADING)
}

/// Asks the server whose control socket is at `path` to leave its sessions to systemd, for the process that
/// is started next, and to end; returns what it says.
///
/// # Errors
/// Why it was not done. It serves on then.
pub fn suspend(path: &Path) -> Result<String, AskError> {
    ask(path, "suspend", SUSPENDING)
}

/// Changes what the server whose control socket is at `path` logs, until it ends: a level, or a filter as
/// `WEBWS_LOG`; returns what it says.
///
/// # Errors
/// Why it was not done.
pub fn log_level(path: &Path, level: &str) -> Result<String, AskError> {
    ask(path, &format!("log {}", level.replace('\n', " ")), SETTING)
}

fn ask(path: &Path, word: &str, patience: Duration) -> Result<String, AskError> {
    let since = Instant::now();
    loop {
        // Who listens there is asked first: an answer to that takes no time, and one to the rest may.
        let asked = say(path, IDENTIFYING_WORD, IDENTIFYING).and_then(|line| {
            let is_ours = ["done ", "failed ", ELSEWHERE].iter().any(|start| line.starts_with(start));
            if is_ours {
                say(path, word, patience).map_err(|fault| fault.after(patience))
            } else {
                Err(Fault::Other(line))
            }
        });
        // Right behind a hand-over there is none for a moment, or nobody who answers.
        let is_between = match &asked {
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
        let line = asked.map_err(|fault| fault.at(path))?;
        return match line.trim_end().split_once(' ') {
            Some(("done", text)) => Ok(text.to_owned()),
            Some(("failed", text)) => Err(AskError::Answered { text: text.to_owned() }),
            None if line.is_empty() => Err(AskError::Ended),
            _ => Err(AskError::Foreign { path: path.to_owned() }),
        };
    }
}

/// Why a control socket gives no answer.
#[derive(Debug)]
enum Fault {
    /// After how long, where it is silent.
    Io(io::Error, Duration),
    /// Something else listens there, and said this.
    Other(String),
}

impl Fault {
    fn after(self, patience: Duration) -> Self {
        match self {
            Self::Io(error, _) => Self::Io(error, patience),
            other @ Self::Other(_) => other,
        }
    }

    fn at(self, path: &Path) -> AskError {
        let path = path.to_owned();
        match self {
            Self::Io(source, patience) => AskError::Unreachable { path, source, patience },
            Self::Other(_) => AskError::Foreign { path },
        }
    }
}

/// Why no answer came from `path`, and what to do.
fn explain(path: &Path, error: &io::Error, patience: Duration) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::WouldBlock => format!(
            "nothing answers at {path} within {patience:?}: it is not webws' control socket (see the setting \
             control), or webws is stopped or hangs"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the control socket {path} cannot be used: {error}; only root and the user that webws runs as may \
             (try sudo)"
        ),
        io::ErrorKind::ConnectionRefused => {
            format!("no process listens at {path}: does webws run, with control = \"{path}\"?")
        }
        io::ErrorKind::NotFound => format!("there is no {path}: does webws run, with control = \"{path}\"?"),
        _ => format!("{path} is not webws' control socket: {error}"),
    }
}

/// Says a word at the socket, and returns the line that is answered.
fn say(path: &Path, word: &str, patience: Duration) -> Result<String, Fault> {
    let say = || -> io::Result<String> {
        let mut stream = os::socket_file::connect_unix(path)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(IDENTIFYING))?;
        // Behind an empty line, a server of HTTP answers at once that this is none.
        stream.write_all(format!("{word}\r\n\r\n").as_bytes())?;
        let mut line = Vec::new();
        BufReader::new(stream.take(1 << 16)).read_until(b'\n', &mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    };
    say().map_err(|error| Fault::Io(error, patience))
}

#[expect(clippy::disallowed_methods, reason = "this process does nothing else")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
