//! The floor's two links to Redis: one subscribes, the other publishes. May not enter: clients.

use std::time::Duration;

use crate::link::Link;
use crate::plan::Source;
use crate::resp::{Reply, put_command, reply};

/// The prefix of channels, as in webws' default endpoint.
pub(super) const PREFIX: &[u8] = b"chat:";

/// Connects and logs in.
pub(super) fn connect(source: &Source) -> Result<Link, String> {
    let fault = |error: std::io::Error| format!("--redis: {}: {error}; is it running?", source.address);
    let mut link = Link::connect(&source.address).map_err(fault)?;
    let Some((user, password)) = &source.login else { return Ok(link) };
    let user = if user.is_empty() { "default" } else { user };
    put_command(&[b"AUTH", user.as_bytes(), password.as_bytes()], link.out());
    link.converse(Duration::from_secs(5)).map_err(fault)?;
    match reply(link.unread()) {
        Ok(Some((Reply::Status(_), step))) => link.consume(step),
        other => return Err(format!("--redis: the login was answered with {other:?}")),
    }
    Ok(link)
}

/// Appends a command about a channel.
pub(super) fn put(command: &[u8], channel: &[u8], payload: Option<&[u8]>, link: &mut Link) {
    let name = [PREFIX, channel].concat();
    match payload {
        Some(payload) => put_command(&[command, &name, payload], link.out()),
        None => put_command(&[command, &name], link.out()),
    }
}
