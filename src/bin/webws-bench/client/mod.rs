//! The client side: threads with one epoll loop each, over raw non-blocking sockets.
//!
//! A thread has every T-th connection: it opens them (`dial`), reads their bytes (`receive`) and may publish
//! (`publisher`). The code has to be cheaper than any server: one recv(2) per event, no allocation per frame.
//! May not enter: the meaning of the figures.

mod dial;
mod receive;
pub(crate) mod session;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::book::Book;
use crate::clock::Micros;
use crate::frame;
use crate::payload::Header;
use crate::plan::Ramp;
use crate::poller::{self, Events, Flags, Poller};
use crate::publisher::Publisher;
use crate::run::{Phase, Run, load};

use session::{Session, State};

/// The token of the thread's waker, and of the first of its publisher's links. Sessions' tokens are
/// smaller: their generation has 31 bits.
const WAKER: u64 = u64::MAX;
pub(crate) const FIRST_LINK: u64 = 1 << 63;

/// Bytes of the buffer that all sessions of a thread read into. Chosen: what a socket can hold.
const BUFFER_BYTES: usize = 256 << 10;

/// Publications sent before events are handled again.
const PUBLICATIONS_A_TURN: u32 = 1024;

/// The time between two checks of deadlines.
const SWEEP: Micros = 100_000;

/// How long a server may take to answer a Close.
const CLOSE_DEADLINE: Micros = 2_000_000;

/// A load thread.
#[derive(Debug)]
pub(crate) struct Client {
    run: Arc<Run>,
    thread: usize,
    poller: Poller,
    /// By index; the generation reveals an event of an earlier session with the same index.
    sessions: Vec<(u32, Option<Session>)>,
    free: Vec<u32>,
    /// The index of each receiver's open session.
    places: Vec<Option<u32>>,
    book: Book,
    publisher: Option<Publisher>,
    buffer: Vec<u8>,
    /// The headers in the buffer that is being read.
    headers: Vec<Header>,
    /// Connections still to be opened.
    to_dial: VecDeque<u32>,
    dialed: u64,
    under_way: u32,
    /// When connecting is tried again after a full backlog.
    dial_after: Micros,
    closed_for_churn: u64,
    next_to_churn: usize,
    churn_begun: Option<Micros>,
    next_sweep: Micros,
}

impl Client {
    /// A thread's state, its publisher's links made.
    ///
    /// # Errors
    /// A sentence: what the kernel or the broker refused.
    pub(crate) fn new(run: Arc<Run>, thread: usize) -> Result<Self, String> {
        let plan = &run.plan;
        let kernel = |error: io::Error| format!("epoll: {error}");
        let poller = Poller::new().map_err(kernel)?;
        if let Some(waker) = run.waker(thread) {
            poller.add(waker, WAKER, poller::READ).map_err(kernel)?;
        }
        let publisher = Publisher::new(&run, thread)?;
        if let Some(publisher) = &publisher {
            publisher.register(&poller).map_err(kernel)?;
        }
        let connections = (0..plan.sockets()).skip(thread).step_by(plan.threads as usize);
        let to_dial: VecDeque<u32> = connections.collect();
        let landings = match plan.pace {
            crate::plan::Pace::InFlight(window) => window.next_power_of_two() as usize * 4,
            crate::plan::Pace::Rate(_) => 1,
        };
        Ok(Self {
            book: Book::new(to_dial.len(), plan.senders_per_channel() as usize, landings),
            places: vec![None; to_dial.len()],
            thread,
            poller,
            sessions: Vec::new(),
            free: Vec::new(),
            publisher,
            buffer: vec![0; BUFFER_BYTES],
            headers: Vec::new(),
            to_dial,
            dialed: 0,
            under_way: 0,
            dial_after: 0,
            closed_for_churn: 0,
            next_to_churn: 0,
            churn_begun: None,
            next_sweep: 0,
            run,
        })
    }

    /// Runs until the conductor says stop, and closes the ledger.
    pub(crate) fn run(mut self) -> Book {
        if let Err(error) = self.turns() {
            self.run.fail(format!("a load thread: {error}"));
        }
        let plan = &self.run.plan;
        for (receiver, place) in self.places.iter().enumerate() {
            let Some(session) = place.and_then(|place| self.sessions.get(place as usize)?.1.as_ref()) else { continue };
            for sender in plan.senders_of(session.channel) {
                self.book.ledger.close(receiver, (sender / plan.channels) as usize, load(&self.run.sent, sender));
            }
        }
        self.book
    }

    fn turns(&mut self) -> io::Result<()> {
        let mut events = Events::new();
        loop {
            let now = self.run.clock.micros();
            self.book.set_window(self.run.begin.load(Ordering::Acquire), self.run.end.load(Ordering::Acquire));
            match self.run.phase() {
                Phase::Connect => self.dial(now),
                Phase::Publish => {
                    self.churn(now);
                    self.dial(now);
                    self.publish(now);
                }
                Phase::Drain => {}
                Phase::Stop => return Ok(()),
            }
            if now >= self.next_sweep {
                self.next_sweep = now + SWEEP;
                self.sweep(now);
            }
            self.book.settle(&self.run, self.thread);
            let pause = self.pause();
            for index in 0..self.poller.wait(&mut events, Some(pause))? {
                if let Some((token, flags)) = events.get(index) {
                    self.on_event(token, flags);
                }
            }
            self.book.settle(&self.run, self.thread);
        }
    }

    /// The time until the next deadline.
    fn pause(&self) -> Duration {
        let now = self.run.clock.micros();
        let mut next = self.next_sweep;
        if !self.to_dial.is_empty() && self.under_way < self.run.plan.handshakes {
            next = next.min(match self.run.plan.ramp {
                _ if self.dial_after > now => self.dial_after,
                Ramp::PerSecond(_) => now + 1000,
                Ramp::Max => now,
            });
        }
        if self.run.phase() == Phase::Publish {
            if self.churn_begun.is_some() {
                next = next.min(now + 1000);
            }
            if let Some(due) = self.publisher.as_ref().and_then(Publisher::next_due) {
                next = next.min(due);
            }
        }
        Duration::from_micros(next.saturating_sub(now))
    }

    fn on_event(&mut self, token: u64, flags: Flags) {
        if token == WAKER {
            // The waker's count does not matter, only the wake-up.
            self.run.waker(self.thread).and_then(|waker| rustix::io::read(waker, &mut [0_u8; 8][..]).ok());
        } else if token >= FIRST_LINK {
            if let Some(publisher) = &mut self.publisher
                && let Err(reason) = publisher.on_ready(&self.poller, token, &mut self.book)
            {
                self.run.fail(reason);
            }
        } else if let Some(place) = self.place_of(token) {
            self.on_session(place, flags);
        }
    }

    fn on_session(&mut self, place: u32, flags: Flags) {
        if flags.contains(Flags::OUT) {
            self.on_writable(place);
        }
        if flags.intersects(Flags::IN | Flags::RDHUP | Flags::HUP | Flags::ERR) {
            self.on_readable(place);
        }
    }

    fn publish(&mut self, now: Micros) {
        let Some(mut publisher) = self.publisher.take() else { return };
        let run = Arc::clone(&self.run);
        for _ in 0..PUBLICATIONS_A_TURN {
            let is_open = |receiver: usize| {
                let place = self.places.get(receiver).copied().flatten();
                place.is_some_and(|place| matches!(self.sessions.get(place as usize), Some((_, Some(_)))))
            };
            let Some(outgoing) = publisher.next(&run, now, &mut self.book, is_open) else { break };
            if let Some(receiver) = outgoing.by {
                self.send_text(receiver, outgoing.payload);
            }
        }
        if let Err(reason) = publisher.flush(&self.poller) {
            run.fail(reason);
        }
        self.publisher = Some(publisher);
    }

    /// Deadlines: handshakes, closes, publications that do not land.
    fn sweep(&mut self, now: Micros) {
        let patience = crate::clock::to_micros(self.run.plan.connect_timeout);
        for place in 0..u32::try_from(self.sessions.len()).unwrap_or(u32::MAX) {
            let Some(session) = self.session(place) else { continue };
            let age = now.saturating_sub(session.since);
            match session.state {
                State::Connecting | State::Asked if age > patience => {
                    self.fail(place, format!("no answer to the handshake within {:?}", self.run.plan.connect_timeout));
                }
                State::Closing if age > CLOSE_DEADLINE => {
                    *self.book.endings.entry("a Close was not answered within 2 s".to_owned()).or_default() += 1;
                    self.remove(place);
                }
                _ => {}
            }
        }
        if let Some(publisher) = &mut self.publisher {
            publisher.give_up(&self.run, now, &mut self.book);
        }
    }

    /// Sends a text on a receiver's session.
    fn send_text(&mut self, receiver: usize, payload: &[u8]) {
        let Some(place) = self.places.get(receiver).copied().flatten() else { return };
        let Some(session) = self.session(place) else { return };
        match session.send_frame(frame::TEXT, payload) {
            Ok(rest) => self.want_writable(place, rest),
            Err(error) => self.end(place, format!("a send failed: {error}")),
        }
    }

    fn session(&mut self, place: u32) -> Option<&mut Session> {
        self.sessions.get_mut(place as usize)?.1.as_mut()
    }

    fn insert(&mut self, session: Session) -> u32 {
        if let Some(place) = self.free.pop()
            && let Some(entry) = self.sessions.get_mut(place as usize)
        {
            *entry = (entry.0.wrapping_add(1) & 0x7fff_ffff, Some(session));
            return place;
        }
        self.sessions.push((0, Some(session)));
        u32::try_from(self.sessions.len() - 1).unwrap_or(u32::MAX)
    }

    /// Closes the socket and forgets the session.
    fn remove(&mut self, place: u32) {
        if let Some(entry) = self.sessions.get_mut(place as usize)
            && entry.1.take().is_some()
        {
            self.free.push(place);
        }
    }

    fn token(&self, place: u32) -> u64 {
        let generation = self.sessions.get(place as usize).map_or(0, |entry| entry.0);
        u64::from(generation) << 32 | u64::from(place)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart as they were put together")]
    fn place_of(&self, token: u64) -> Option<u32> {
        let place = token as u32;
        let entry = self.sessions.get(place as usize)?;
        (u64::from(entry.0) == token >> 32).then_some(place)
    }
}
