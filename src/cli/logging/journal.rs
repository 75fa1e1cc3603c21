//! Entries for systemd's journal in its native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `MESSAGE`, `PRIORITY`, and each field of an event as `F_NAME`.
//!
//! tracing-journald sends from the thread that logs, on a blocking socket, so a frozen journald freezes that thread as
//! well. Here an entry goes into the queue, and the queue's thread sends the entry. May not enter: the level of a line,
//! the queue.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::queue::{Queue, Sink};

/// Where journald listens (systemd-journald.service(8)).
const SOCKET: &str = "/run/systemd/journal/socket";

/// The name before a line in journalctl, which `journalctl -t` finds.
const IDENTIFIER: &str = "webws";

/// The connection to journald.
pub(super) struct Journald(UnixDatagram);

impl Journald {
    /// # Errors
    /// When nothing listens there.
    pub(super) fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // journald ignores an empty entry; sending one shows whether journald listens. Non-blocking, because a
        // frozen journald counts as listening.
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => socket.set_nonblocking(false)?,
        }
        Ok(Self(socket))
    }
}

impl Sink for Journald {
    fn write(&mut self, entry: &[u8]) -> io::Result<()> {
        // By path each time: journald may have restarted.
        self.0.send_to(entry, SOCKET).map(drop)
    }
}

/// Makes entries of events.
pub(super) struct Entries(pub(super) Arc<Queue>);

impl<S: Subscriber> Layer<S> for Entries {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = Entry(Vec::with_capacity(512));
        entry.put("PRIORITY", priority(*metadata.level()));
        entry.put("SYSLOG_IDENTIFIER", IDENTIFIER);
        entry.put("TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", &line.to_string());
        }
        event.record(&mut entry);
        self.0.push(&entry.0);
    }
}

/// As syslog(3) numbers them, so that `journalctl -p err` shows what a human must act on.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

struct Entry(Vec<u8>);

impl Entry {
    /// Writes the form with a length, in which a value may have several lines.
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    fn put_field(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            // A prefix, so that no name is one of the journal's own.
            name => self.put(&format!("F_{}", name.to_ascii_uppercase()), value),
        }
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.put_field(field, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_its_length_before_it_and_may_have_lines() {
        let mut entry = Entry(Vec::new());
        entry.put("MESSAGE", "a\nb");
        assert_eq!(entry.0, b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n");
    }
}
