//! The first exchange on a link: the login, and the protocol that the server speaks.
//!
//! `HELLO 3` asks for RESP3 and sends user and password at once. A server without HELLO (Redis before 6, and
//! several proxies) gets AUTH on the same link and speaks RESP2 from then on. The redis crate's own greeting
//! cannot do that. May not enter: how the stream is made.

use std::io;

use redis::{Cmd, RedisError, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::credential::Login;
use super::resp::{self, Protocol};
use super::transport::Transport;

/// Maximum bytes of an answer to a greeting. Chosen: HELLO's answer has some 200, and each module adds a line.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The answer of a TLS server to plain text: an alert record (RFC 8446 §5.1, §6).
const TLS_ALERT: &[u8] = &[0x15, 0x03];

/// Greets the server behind `stream`, and leaves no unread bytes.
///
/// # Errors
/// The server refuses the login, or is no Redis.
pub(super) async fn greet(stream: &mut dyn Transport, login: &Login) -> Result<Protocol, GreetingError> {
    let mut hello = redis::cmd("HELLO");
    hello.arg(3);
    if !login.is_empty() {
        hello.arg("AUTH").arg(login.username.as_deref().unwrap_or("default")).arg(login.password());
    }
    let refusal = match ask(stream, &hello).await? {
        // A server that stays with RESP2 answers with an array.
        Value::Map(_) => return Ok(Protocol::Resp3),
        Value::ServerError(error) => RedisError::from(error),
        _ => return Ok(Protocol::Resp2),
    };
    if !lacks_hello(&refusal) {
        return Err(GreetingError::Refused(refusal));
    }
    if !login.is_empty()
        && let Value::ServerError(error) = ask(stream, &login.auth()).await?
    {
        return Err(GreetingError::Refused(error.into()));
    }
    Ok(Protocol::Resp2)
}

/// Why a greeting failed.
#[derive(Debug)]
pub(super) enum GreetingError {
    Stream(io::Error),
    Refused(RedisError),
}

impl From<io::Error> for GreetingError {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

/// Whether a server refuses HELLO itself rather than the login. Redis 5, Envoy and others answer differently. After
/// a wrong guess, the server refuses AUTH and the next command as well.
fn lacks_hello(error: &RedisError) -> bool {
    let words = error.to_string().to_ascii_lowercase();
    let is_about_us = ["WRONGPASS", "NOAUTH", "DENIED", "LOADING", "MASTERDOWN", "BUSY"];
    if error.code().is_some_and(|code| is_about_us.contains(&code)) || words.contains("max number of clients") {
        return false;
    }
    ["NOPROTO", "NOPERM"].iter().any(|code| error.code() == Some(code))
        || ["hello", "unknown command", "unsupported", "not supported"].iter().any(|part| words.contains(part))
}

/// One command and its answer, with nothing behind it. An error that the server answers is a value.
///
/// # Errors
/// The stream ended, or is none of Redis.
pub(super) async fn ask(stream: &mut dyn Transport, command: &Cmd) -> io::Result<Value> {
    stream.write_all(&command.get_packed_command()).await.map_err(closed)?;
    stream.flush().await.map_err(closed)?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await.map_err(closed)? == 0 {
            return Err(closed(io::ErrorKind::UnexpectedEof.into()));
        }
        if answer.starts_with(TLS_ALERT) {
            return Err(io::Error::other("the port speaks TLS: write rediss:// instead of redis://"));
        }
        match resp::reply_len(&answer) {
            Ok(None) if answer.len() < MAX_ANSWER_BYTES => {}
            Ok(Some(len)) if len == answer.len() => break,
            _ => return Err(io::Error::other("the server does not speak Redis' protocol")),
        }
    }
    if answer.starts_with(b"-") {
        answer = format!("{}\r\n", without_arguments(&String::from_utf8_lossy(&answer)).trim_end()).into_bytes();
    }
    redis::parse_redis_value(&answer).map_err(io::Error::other)
}

/// The same error; an end without an answer gets a plain sentence.
fn closed(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        kind @ (BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) => io::Error::new(
            kind,
            "the server closed the connection before it answered: it has its maximum of clients (maxclients), or its \
             port requires TLS (rediss://)",
        ),
        _ => error,
    }
}

/// A refusal without the command's arguments. Redis repeats the arguments of an unknown command, and one of them may
/// be a password.
pub(super) fn without_arguments(refusal: &str) -> &str {
    refusal.split_once(", with args beginning with").map_or(refusal, |(refusal, _)| refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greets a server that gives `answers` one by one; returns what it was asked, too.
    async fn greeted(login: &Login, answers: &[&str]) -> (Result<Protocol, String>, String) {
        let (ours, mut theirs) = tokio::io::duplex(1_000);
        let answering = async {
            let mut asked = String::new();
            for answer in answers {
                let mut part = vec![0; 1_000];
                let read = theirs.read(&mut part).await.unwrap();
                asked += &String::from_utf8_lossy(&part[..read]);
                theirs.write_all(answer.as_bytes()).await.unwrap();
            }
            drop(theirs);
            asked
        };
        let mut stream: Box<dyn Transport> = Box::new(ours);
        let (greeted, asked) = tokio::join!(greet(&mut *stream, login), answering);
        (greeted.map_err(|error| format!("{error:?}")), asked)
    }

    fn login(username: Option<&str>, password: Option<&str>) -> Login {
        Login { username: username.map(str::to_owned), password: password.map(Into::into) }
    }

    #[tokio::test]
    async fn hello_is_the_whole_greeting_where_it_is_known() {
        let (protocol, asked) = greeted(&login(None, Some("pw")), &["%1\r\n+proto\r\n:3\r\n"]).await;
        assert_eq!(protocol, Ok(Protocol::Resp3));
        assert!(asked.contains("HELLO") && asked.contains("default") && asked.contains("pw"), "{asked}");
        let (protocol, asked) = greeted(&Login::default(), &["*2\r\n+proto\r\n:2\r\n"]).await;
        assert_eq!(protocol, Ok(Protocol::Resp2));
        assert!(!asked.contains("AUTH"), "{asked}");
    }

    #[tokio::test]
    async fn a_server_without_hello_is_greeted_by_auth() {
        for refusal in [
            "-ERR unknown command `HELLO`, with args beginning with: `3` `AUTH` `default` `pw`\r\n",
            "-ERR unknown command 'HELLO'\r\n",
            "-NOPROTO unsupported protocol version\r\n",
            "-NOPERM this user has no permissions to run the 'hello' command\r\n",
            "-unsupported command 'hello'\r\n",
        ] {
            let (protocol, _) = greeted(&Login::default(), &[refusal]).await;
            assert_eq!(protocol, Ok(Protocol::Resp2), "{refusal}");
            let (protocol, asked) = greeted(&login(None, Some("pw")), &[refusal, "+OK\r\n"]).await;
            assert_eq!(protocol, Ok(Protocol::Resp2), "{refusal}");
            assert!(asked.ends_with("*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n"), "{asked}");
            let (refused, _) = greeted(&login(Some("web"), Some("pw")), &[refusal, "-WRONGPASS no\r\n"]).await;
            assert!(refused.unwrap_err().contains("WRONGPASS"), "{refusal}");
            let repeats = "-ERR unknown command `AUTH`, with args beginning with: `pw`\r\n";
            let (refused, _) = greeted(&login(None, Some("pw")), &[refusal, repeats]).await;
            assert!(!refused.unwrap_err().contains("pw"), "a password is repeated");
        }
    }

    #[tokio::test]
    async fn a_server_that_refuses_us_is_not_asked_twice() {
        for refusal in [
            "-WRONGPASS invalid username-password pair or user is disabled.\r\n",
            "-NOAUTH HELLO must be called with the client already authenticated\r\n",
            "-ERR max number of clients reached\r\n",
            "-LOADING Redis is loading the dataset in memory\r\n",
        ] {
            let (refused, _) = greeted(&login(None, Some("pw")), &[refusal]).await;
            assert!(refused.unwrap_err().starts_with("Refused"), "{refusal}");
        }
    }

    #[tokio::test]
    async fn what_is_no_redis_is_said_so() {
        for (answer, part) in [
            ("\u{15}\u{3}\u{3}", "rediss://"),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak"),
            ("+OK\r\n+OK\r\n", "does not speak"),
            ("+OK", "closed"),
        ] {
            let (failed, _) = greeted(&Login::default(), &[answer]).await;
            assert!(failed.unwrap_err().contains(part), "{answer:?}");
        }
    }
}
