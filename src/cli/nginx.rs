//! `webws check --nginx`: one handshake through nginx, which the running webws answers with the way that it came.
//!
//! May not enter: sessions, settings.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use url::Url;
use webws::binary::{self, ControlError};

/// The path of the shipped location, at the port of a site.
pub(super) const SHIPPED: &str = "http://127.0.0.1/webws";

/// How long nginx may take, for the connection and for each part of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 16;

/// The URL of an endpoint, as a client of nginx has it.
#[derive(Debug, Clone)]
pub(super) struct EndpointUrl(Url);

impl FromStr for EndpointUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        match url.scheme() {
            "http" | "ws" if url.has_host() => Ok(Self(url)),
            "https" | "wss" => Err("nginx hands no client off that speaks TLS to it: write http://".to_owned()),
            _ => Err(format!("an endpoint's URL is needed, such as {SHIPPED}")),
        }
    }
}

/// Makes the handshake at `url`, and returns how the server with the control socket `control` got it: straight.
///
/// # Errors
/// Why it did not come straight, or not at all.
pub(super) fn check(EndpointUrl(url): &EndpointUrl, control: &Path) -> Result<String, String> {
    let key = STANDARD.encode(std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
    binary::announce(control, &key).map_err(|error| match error {
        ControlError::Answered { text } if text.starts_with("unknown request") => {
            format!("the webws that runs is older than this command: {text}")
        }
        error => error.to_string(),
    })?;
    let (status, line) = ask(url, &key).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("{url} gives no answer within {PATIENCE:?}: is webws stopped, or does it hang?")
        }
        _ => format!("{url} cannot be asked: {error}"),
    })?;
    match line.split_once(':') {
        Some(("straight", _)) if status.starts_with("200 ") => Ok(line),
        Some(("proxied", _)) if status.starts_with("200 ") => Err(line),
        _ => Err(format!(
            "the handshake at {url} did not reach the webws at {}: it was answered with {status}; its guards in nginx \
             may refuse a client of this machine, or the path is no endpoint's, or nginx leads to another webws",
            control.display()
        )),
    }
}

/// Sends the handshake; the status of the answer, and the first line of its body.
fn ask(url: &Url, key: &str) -> io::Result<(String, String)> {
    let addresses = url.socket_addrs(|| Some(80))?;
    let mut stream = Err(io::ErrorKind::NotFound.into());
    for address in addresses {
        stream = TcpStream::connect_timeout(&address, PATIENCE);
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let query = url.query().map_or_else(String::new, |query| format!("?{query}"));
    let head = format!(
        "GET {}{query} HTTP/1.1\r\nHost: {host}{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nUser-Agent: webws/{}\r\n\r\n",
        url.path(),
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = BufReader::new(stream.take(MAX_ANSWER));
    let mut next = || {
        let mut line = Vec::new();
        answer.read_until(b'\n', &mut line)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&line).trim_end().to_owned())
    };
    let status = next()?;
    let Some((_, status)) = status.split_once(' ') else {
        return Err(io::Error::other("the connection was closed without an answer"));
    };
    if status.starts_with("200 ") {
        while !next()?.is_empty() {}
        return Ok((status.to_owned(), next()?));
    }
    Ok((status.to_owned(), String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_url_of_a_plain_endpoint_can_be_asked() {
        for url in [SHIPPED, "ws://[::1]:8089/a?b", "http://example.com"] {
            assert!(url.parse::<EndpointUrl>().is_ok(), "{url}");
        }
        for (url, why) in [
            ("https://example.com/webws", "TLS"),
            ("wss://example.com/webws", "TLS"),
            ("localhost:8089/webws", "such as http"),
            ("/webws", "relative"),
            ("unix:/run/webws/webws.sock", "such as http"),
        ] {
            let said = url.parse::<EndpointUrl>().unwrap_err();
            assert!(said.contains(why), "{url}: {said}");
        }
    }
}
