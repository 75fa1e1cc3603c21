//! The links of a worker that read a node's log. Stands in for the part of `node_links.rs` that polls `log_reading.rs`.
//! May not enter: what a log says.

use tokio::time::Instant;

use super::super::stream::StreamId;
use super::{End, NodeLinks, Which};
use crate::broker::Report;
use crate::broker::redis::catch_up::CatchUp;
use crate::broker::redis::error::LinkError;
use crate::broker::redis::replay::ReadLimits;
use crate::broker::redis::replay::simulated::{LogReader, Read, limits_of_clients};
use crate::position::Milestone;

/// A reading, and its link.
#[derive(Debug)]
pub(crate) struct Reading {
    reader: LogReader,
    stream: End,
    /// Whether its link is being made, and whether that came to nothing.
    is_asked: bool,
    has_failed: bool,
}

/// What a step was.
#[derive(Debug)]
pub(crate) enum LogStep {
    None,
    Made,
    Connect(Which),
    Drop(StreamId),
}

impl Reading {
    fn new(from: Milestone, until: Milestone, limits: ReadLimits, now: Instant) -> Self {
        let reader = LogReader::new(from, until, limits, now);
        Self { reader, stream: End::default(), is_asked: false, has_failed: false }
    }

    pub(super) fn stream(&mut self) -> &mut End {
        &mut self.stream
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.reader.end()
    }

    fn step(&mut self, now: Instant) -> Option<Read> {
        let End { arrived, is_ended, out, .. } = &mut self.stream;
        if self.has_failed {
            return Some(Err(LinkError::Closed.into()));
        }
        if !self.reader.is_connecting()
            && let Some(read) = self.reader.step(arrived, *is_ended, out)
        {
            return Some(read);
        }
        (now >= self.reader.end()).then(|| Err(self.reader.too_slow()))
    }
}

impl NodeLinks {
    /// As in `node_links.rs`: reads the log for a client that has shown a position.
    pub(super) fn read_log(&mut self, from: Milestone, now: Instant) {
        let until = self.node.milestones.last.filter(|_| self.node.terms.may_replay);
        match until.filter(|_| self.back.is_none()) {
            Some(until) => self.back = Some(Reading::new(from, until, limits_of_clients(), now)),
            None => self.node.events.push_back(Report::LogRead { node: self.node.id, from, logged: None }),
        }
    }

    /// Whether a link for the log is still wanted.
    pub(crate) fn awaits_log_link(&self, which: Which) -> bool {
        let reading = if which == Which::Cut { &self.cut } else { &self.back };
        reading.as_ref().is_some_and(|reading| reading.reader.is_connecting() && !reading.has_failed)
    }

    pub(super) fn on_log_connected(&mut self, which: Which, stream: Option<StreamId>) {
        let reading = if which == Which::Cut { &mut self.cut } else { &mut self.back };
        let Some(reading) = reading else { return };
        reading.has_failed = stream.is_none();
        if stream.is_some() {
            reading.stream = End { stream, out: reading.reader.on_connected(), ..End::default() };
        }
    }

    /// As `poll_logs`.
    pub(super) fn step_logs(&mut self, now: Instant) -> LogStep {
        if let Some(CatchUp::Reading { from, until }) = self.node.catch_up {
            let Some(cut) = &mut self.cut else {
                self.cut = Some(Reading::new(from, until, ReadLimits::default(), now));
                return LogStep::Connect(Which::Cut);
            };
            assert_eq!((cut.reader.from, cut.reader.until), (from, until), "the stream stands still meanwhile");
            let Some(read) = cut.step(now) else { return LogStep::None };
            self.node.caught_up(read, until, now);
            self.subscriber.caught_up(&mut self.node, now);
            return self.drop_reading(Which::Cut);
        }
        if self.cut.is_some() {
            return self.drop_reading(Which::Cut);
        }
        let Some(back) = &mut self.back else { return LogStep::None };
        if !back.is_asked {
            back.is_asked = true;
            return LogStep::Connect(Which::Back);
        }
        let Some(read) = back.step(now) else { return LogStep::None };
        let (from, until) = (back.reader.from, back.reader.until);
        let logged = read.ok().map(|logged| (logged, until));
        self.node.events.push_back(Report::LogRead { node: self.node.id, from, logged });
        self.drop_reading(Which::Back)
    }

    fn drop_reading(&mut self, which: Which) -> LogStep {
        let reading = if which == Which::Cut { self.cut.take() } else { self.back.take() };
        reading.and_then(|reading| reading.stream.stream).map_or(LogStep::Made, LogStep::Drop)
    }
}
