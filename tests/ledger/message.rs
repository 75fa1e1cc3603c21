//! What is published, and how a message is known again. May not enter: servers, clients.

use std::time::{Duration, SystemTime};

/// The number of channels.
pub(super) const CHANNELS: usize = 200;

/// The number by which laps are published (`Ledger::lap`), beside the producers'.
pub(super) const LAPS: u8 = 9;

/// A message: its producer, and its number there. A lap has one number on all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) producer: u8,
    pub(super) number: u32,
}

impl Id {
    /// The payload of a message that is sent now.
    pub(super) fn payload(self) -> String {
        let micros = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
        format!("{} {} {micros} ", self.producer, self.number)
    }

    /// The message of a payload, which a client may get with its channel's name behind it, and when it was sent.
    pub(super) fn parse(payload: &str) -> Option<(Id, SystemTime)> {
        let mut fields = payload.split(' ');
        let id = Id { producer: fields.next()?.parse().ok()?, number: fields.next()?.parse().ok()? };
        Some((id, SystemTime::UNIX_EPOCH + Duration::from_micros(fields.next()?.parse().ok()?)))
    }
}

/// The name of a channel for clients.
pub(super) fn name(channel: usize) -> String {
    format!("c{channel}")
}

/// The name of a channel in Redis.
pub(super) fn redis_name(channel: usize) -> String {
    format!("chat:c{channel}")
}
