//! Publishing to Redis: PUBLISH commands in a pipeline, replies counted. May not enter: pace.

use std::time::Duration;

use crate::book::Book;
use crate::link::Link;
use crate::plan::{Plan, Source};
use crate::resp::{Reply, put_command, reply};

use super::{Registered, names};

/// Connections that publish, and the channels' names.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) links: Vec<Registered>,
    names: Vec<String>,
}

impl Outlet {
    pub(super) fn connect(plan: &Plan, source: &Source) -> Result<Self, String> {
        let links = (0..plan.publishers as usize).map(|place| Ok(Registered::new(connect(source)?, place)));
        let names = plan.redis_channel.as_ref().map(|template| names(plan, template)).unwrap_or_default();
        Ok(Self { links: links.collect::<Result<_, String>>()?, names })
    }

    /// Appends a PUBLISH. A channel keeps to one link, so that its order is kept.
    pub(super) fn publish(&mut self, channel: u32, payload: &[u8]) {
        let links = self.links.len().max(1);
        if let (Some(link), Some(name)) =
            (self.links.get_mut(channel as usize % links), self.names.get(channel as usize))
        {
            put_command(&[b"PUBLISH", name.as_bytes(), payload], link.link.out());
        }
    }

    pub(super) fn on_ready(&mut self, place: usize, book: &mut Book) -> Result<(), String> {
        let Some(Registered { link, .. }) = self.links.get_mut(place) else { return Ok(()) };
        link.fill().map_err(|error| format!("Redis' link to publish on is gone: {error}"))?;
        loop {
            let (step, unheard) = match reply(link.unread()) {
                Ok(Some((Reply::Integer(receivers), step))) => (step, receivers == 0),
                Ok(Some((Reply::Error(text), _))) => {
                    return Err(format!("Redis refused PUBLISH: {}", String::from_utf8_lossy(text)));
                }
                Ok(None) => return Ok(()),
                other => return Err(format!("Redis answered PUBLISH with {other:?}")),
            };
            link.consume(step);
            book.counts.answered += 1;
            book.counts.unheard += u64::from(unheard);
        }
    }
}

/// Connects and logs in.
fn connect(source: &Source) -> Result<Link, String> {
    let fault = |error: std::io::Error| format!("--publish: Redis at {}: {error}; is it running?", source.address);
    let mut link = Link::connect(&source.address).map_err(fault)?;
    let Some((user, password)) = &source.login else { return Ok(link) };
    match user.as_str() {
        "" => put_command(&[b"AUTH", password.as_bytes()], link.out()),
        user => put_command(&[b"AUTH", user.as_bytes(), password.as_bytes()], link.out()),
    }
    link.converse(Duration::from_secs(5)).map_err(fault)?;
    match reply(link.unread()) {
        Ok(Some((Reply::Status(_), step))) => link.consume(step),
        Ok(Some((Reply::Error(text), _))) => {
            return Err(format!("--publish: Redis refused the login: {}", String::from_utf8_lossy(text)));
        }
        other => return Err(format!("--publish: Redis answered the login with {other:?}")),
    }
    Ok(link)
}
