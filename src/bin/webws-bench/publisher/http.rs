//! Publishing by HTTP: POST requests in a pipeline on connections that are kept alive.
//!
//! Servers close a connection after a number of requests (nginx: `keepalive_requests`, 1000), and announce the close in
//! the last answer. Requests without an answer were not read, and are sent again on the next connection. May not enter:
//! pace.

use std::collections::VecDeque;

use crate::address::Target;
use crate::book::Book;
use crate::link::Link;
use crate::plan::Plan;
use crate::poller::{self, Poller};

use super::{Registered, names};

/// Connections that publish, and the channels' paths.
#[derive(Debug)]
pub(super) struct Outlet {
    links: Vec<Registered>,
    /// Requests without an answer, by link.
    unanswered: Vec<VecDeque<Vec<u8>>>,
    paths: Vec<String>,
    target: Target,
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes of the head and the body.
    total: usize,
    /// Whether the connection ends after this answer.
    last: bool,
}

impl Outlet {
    pub(super) fn connect(plan: &Plan, target: &Target) -> Result<Self, String> {
        let links = (0..plan.publishers as usize).map(|place| Ok(Registered::new(connect(target)?, place)));
        Ok(Self {
            links: links.collect::<Result<_, String>>()?,
            unanswered: vec![VecDeque::new(); plan.publishers as usize],
            paths: names(plan, &target.path),
            target: target.clone(),
        })
    }

    pub(super) fn links(&self) -> &[Registered] {
        &self.links
    }

    pub(super) fn links_mut(&mut self) -> &mut [Registered] {
        &mut self.links
    }

    /// Appends a POST. A channel keeps to one link, so that its order is kept.
    pub(super) fn publish(&mut self, channel: u32, payload: &[u8]) {
        let place = channel as usize % self.links.len().max(1);
        let (Some(link), Some(unanswered), Some(path)) =
            (self.links.get_mut(place), self.unanswered.get_mut(place), self.paths.get(channel as usize))
        else {
            return;
        };
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            self.target.host,
            payload.len()
        )
        .into_bytes();
        request.extend_from_slice(payload);
        link.link.out().extend_from_slice(&request);
        unanswered.push_back(request);
    }

    pub(super) fn on_ready(&mut self, place: usize, poller: &Poller, book: &mut Book) -> Result<(), String> {
        let (Some(registered), Some(unanswered)) = (self.links.get_mut(place), self.unanswered.get_mut(place)) else {
            return Ok(());
        };
        let link = &mut registered.link;
        let mut over = match link.fill() {
            Ok(_) => false,
            // The connection was idle for too long.
            Err(_) if unanswered.is_empty() => true,
            Err(error) => return Err(format!("the HTTP server's link to publish on is gone: {error}")),
        };
        while let Some(head) = head(link.unread())? {
            if link.unread().len() < head.total {
                break;
            }
            if !(200..300).contains(&head.status) {
                let path = self.target.path.fill(0, 0);
                return Err(format!("POST {path} was answered {}: does this location publish?", head.status));
            }
            // nchan: 201 with subscribers, 202 without.
            book.counts.answered += 1;
            book.counts.unheard += u64::from(head.status == 202);
            link.consume(head.total);
            unanswered.pop_front();
            over |= head.last;
        }
        if over {
            let mut link = connect(&self.target)?;
            unanswered.iter().for_each(|request| link.out().extend_from_slice(request));
            *registered = Registered::new(link, place);
            poller.add(&registered.link, registered.token, poller::READ).map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(())
    }
}

fn connect(target: &Target) -> Result<Link, String> {
    Link::connect(&target.address).map_err(|error| format!("--publish: {}: {error}; is it running?", target.address))
}

/// Reads the head of an answer; `None` while it is incomplete.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let strange = || "the HTTP server's answer to POST is no HTTP/1.1 with a Content-Length".to_owned();
    let text = bytes.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or_else(strange)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(strange)?;
    let field = |name: &str| {
        let of_name = |line: &&str| line.split_once(':').is_some_and(|(field, _)| field.eq_ignore_ascii_case(name));
        lines.clone().find(of_name).and_then(|line| Some(line.split_once(':')?.1.trim()))
    };
    let body = match field("content-length") {
        Some(len) => len.parse::<usize>().map_err(|_| strange())?,
        None if status == 204 => 0,
        None => return Err(strange()),
    };
    let last = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok(Some(Head { status, total: end + 4 + body, last }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let bytes = b"HTTP/1.1 201 Created\r\nServer: nginx\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1";
        assert_eq!(head(bytes), Ok(Some(Head { status: 201, total: bytes.len() - 8, last: false })));
        assert_eq!(head(&bytes[..30]), Ok(None));
        let last = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        assert_eq!(head(last), Ok(Some(Head { status: 202, total: last.len(), last: true })));
        assert!(head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
