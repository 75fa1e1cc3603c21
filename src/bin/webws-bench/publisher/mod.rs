//! Publishing: the time, the sender and the way of the next publication.
//!
//! Runs inside a load thread's loop. The first thread publishes everything to Redis or by HTTP; by WebSocket, each
//! thread's own connections send. May not enter: what is received.

mod http;
mod producer;
mod redis;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use crate::book::Book;
use crate::client::FIRST_LINK;
use crate::clock::{Micros, whole};
use crate::flight::UNTRACKED;
use crate::link::{Flushed, Link};
use crate::payload::{Composer, Header};
use crate::plan::{Pace, Plan, Publish};
use crate::poller::{self, Poller};
use crate::run::{Run, load, share};

pub(crate) use producer::Producer;

/// Bytes that may wait for a broker; beyond, due publications wait, and keep their intended time.
const MAX_UNSENT: usize = 1 << 20;

/// How long a closed loop waits for a publication before the loop gives it up. Chosen: far above any latency of
/// interest (64 messages to 9,000 subscribers take the slowest server some 10 s), and a run still ends.
const PATIENCE: Micros = 30_000_000;

/// The publisher of a thread.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// The publisher's index among the flights.
    place: usize,
    pace: Pacer,
    composer: Composer,
    outlet: Outlet,
    /// The sender that is next, and the number of senders.
    turn: u32,
    turns: u32,
    counter: u32,
    /// Publications in the order in which they left, until they have landed.
    waiting: VecDeque<(u32, Micros)>,
}

/// A publication to send on a WebSocket.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    /// The receiver whose session sends the publication; `None` when it has been sent already.
    pub(crate) by: Option<usize>,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug)]
enum Outlet {
    Redis(redis::Outlet),
    Http(http::Outlet),
    /// This thread's connections.
    Sessions,
}

/// A link, and whether it is registered for writability because bytes wait.
#[derive(Debug)]
struct Registered {
    link: Link,
    token: u64,
    blocked: bool,
}

#[derive(Debug)]
enum Pacer {
    InFlight { window: u32, under_way: u32 },
    Rate { per_second: f64, begun: Option<Micros>, sent: u64 },
}

impl Publisher {
    /// The publisher of a thread, if it has one.
    ///
    /// # Errors
    /// A sentence: why the broker cannot be reached.
    pub(crate) fn new(run: &Run, thread: usize) -> Result<Option<Self>, String> {
        let plan = &run.plan;
        let (outlet, threads) = match &plan.publish {
            Publish::Redis(source) if thread == 0 => (Outlet::Redis(redis::Outlet::connect(plan, source)?), 1),
            Publish::Http(target) if thread == 0 => (Outlet::Http(http::Outlet::connect(plan, target)?), 1),
            Publish::WebSocket => (Outlet::Sessions, plan.threads),
            _ => return Ok(None),
        };
        let place = u32::try_from(thread).unwrap_or(u32::MAX);
        let pace = match plan.pace {
            Pace::InFlight(window) => Pacer::InFlight { window: share(window, threads, place), under_way: 0 },
            Pace::Rate(rate) => Pacer::Rate { per_second: rate / f64::from(threads), begun: None, sent: 0 },
        };
        Ok(Some(Self {
            place: thread,
            pace,
            composer: Composer::new(plan.size),
            outlet,
            turn: 0,
            turns: plan.senders(),
            counter: 0,
            waiting: VecDeque::new(),
        }))
    }

    /// Registers the links.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn register(&self, poller: &Poller) -> std::io::Result<()> {
        self.outlet.links().iter().try_for_each(|link| poller.add(&link.link, link.token, poller::READ))
    }

    /// The next publication, if one is due. `is_open` says whether a receiver's session can send.
    pub(crate) fn next(
        &mut self,
        run: &Run,
        now: Micros,
        book: &mut Book,
        is_open: impl Fn(usize) -> bool,
    ) -> Option<Outgoing<'_>> {
        let plan = &run.plan;
        let flight = run.flights.get(self.place)?;
        let intended = self.pace.due(now, || flight.take_landed())?;
        if self.outlet.links().iter().any(|link| link.link.unsent() > MAX_UNSENT) {
            return None;
        }
        let (sender, by) = self.choose(run, is_open)?;
        let channel = plan.channel_of_sender(sender);
        let receivers = load(&run.live, channel);
        let sequence = run.sent.get(sender as usize)?.fetch_add(1, Ordering::AcqRel);
        let number = match self.pace {
            Pacer::InFlight { .. } => {
                let number = flight.open(&mut self.counter, sender, sequence, receivers);
                self.waiting.push_back((number, now));
                number
            }
            Pacer::Rate { .. } => UNTRACKED,
        };
        self.pace.on_sent();
        book.on_published(intended, receivers);
        let payload = self.composer.compose(&Header { run: run.tag, sender, sequence, sent: intended, number });
        self.outlet.publish(channel, payload);
        Some(Outgoing { by, payload })
    }

    /// The sender of the next publication: senders take turns, and one without subscribers is skipped.
    fn choose(&mut self, run: &Run, is_open: impl Fn(usize) -> bool) -> Option<(u32, Option<usize>)> {
        let plan = &run.plan;
        for _ in 0..self.turns {
            let sender = self.turn;
            self.turn = (self.turn + 1) % self.turns;
            if load(&run.live, plan.channel_of_sender(sender)) == 0 {
                continue;
            }
            if !matches!(self.outlet, Outlet::Sessions) {
                return Some((sender, None));
            }
            let connection = plan.first_sender() + sender;
            let receiver = (connection / plan.threads) as usize;
            if (connection % plan.threads) as usize == self.place && is_open(receiver) {
                return Some((sender, Some(receiver)));
            }
        }
        None
    }

    /// Sends the queued publications.
    ///
    /// # Errors
    /// A sentence: the broker is gone.
    pub(crate) fn flush(&mut self, poller: &Poller) -> Result<(), String> {
        self.outlet.flush(poller)
    }

    /// One of the links is ready.
    ///
    /// # Errors
    /// A sentence: the broker is gone, or refuses to publish.
    pub(crate) fn on_ready(&mut self, poller: &Poller, token: u64, book: &mut Book) -> Result<(), String> {
        self.outlet.on_ready(poller, token, book)?;
        self.flush(poller)
    }

    /// When the next publication is due, if that is known.
    pub(crate) fn next_due(&self) -> Option<Micros> {
        match self.pace {
            Pacer::Rate { per_second, begun: Some(begun), sent } => Some(intended(begun, sent, per_second)),
            _ => None,
        }
    }

    /// Gives up publications that have not landed in time.
    pub(crate) fn give_up(&mut self, run: &Run, now: Micros, book: &mut Book) {
        let Some(flight) = run.flights.get(self.place) else { return };
        while let Some((number, sent)) = self.waiting.front().copied() {
            if flight.is_waiting(number) {
                if now.saturating_sub(sent) < PATIENCE {
                    return;
                }
                flight.on_landed(number, u32::MAX);
                book.counts.given_up += 1;
            }
            self.waiting.pop_front();
        }
    }
}

impl Pacer {
    /// When the next publication was to be sent, if that is not later than now.
    fn due(&mut self, now: Micros, take_landed: impl Fn() -> u32) -> Option<Micros> {
        match self {
            Self::InFlight { window, under_way } => {
                *under_way -= take_landed().min(*under_way);
                (under_way < window).then_some(now)
            }
            Self::Rate { per_second, begun, sent } => {
                let begun = *begun.get_or_insert(now);
                Some(intended(begun, *sent, *per_second)).filter(|due| *due <= now)
            }
        }
    }

    fn on_sent(&mut self) {
        match self {
            Self::InFlight { under_way, .. } => *under_way += 1,
            Self::Rate { sent, .. } => *sent += 1,
        }
    }
}

fn intended(begun: Micros, sent: u64, per_second: f64) -> Micros {
    begun + whole(sent as f64 * 1e6 / per_second)
}

impl Outlet {
    fn name(&self) -> &'static str {
        match self {
            Self::Redis(_) => "Redis",
            Self::Http(_) => "the HTTP server",
            Self::Sessions => "the server",
        }
    }

    /// Appends a publication; by WebSocket, the session that sends it does.
    fn publish(&mut self, channel: u32, payload: &[u8]) {
        match self {
            Self::Redis(outlet) => outlet.publish(channel, payload),
            Self::Http(outlet) => outlet.publish(channel, payload),
            Self::Sessions => {}
        }
    }

    fn flush(&mut self, poller: &Poller) -> Result<(), String> {
        let name = self.name();
        for link in self.links_mut() {
            link.flush(poller).map_err(|error| format!("publishing to {name}: {error}"))?;
        }
        Ok(())
    }

    fn on_ready(&mut self, poller: &Poller, token: u64, book: &mut Book) -> Result<(), String> {
        let place = usize::try_from(token - FIRST_LINK).unwrap_or(usize::MAX);
        match self {
            Self::Redis(outlet) => outlet.on_ready(place, book),
            Self::Http(outlet) => outlet.on_ready(place, poller, book),
            Self::Sessions => Ok(()),
        }
    }

    fn links(&self) -> &[Registered] {
        match self {
            Self::Redis(outlet) => &outlet.links,
            Self::Http(outlet) => outlet.links(),
            Self::Sessions => &[],
        }
    }

    fn links_mut(&mut self) -> &mut [Registered] {
        match self {
            Self::Redis(outlet) => &mut outlet.links,
            Self::Http(outlet) => outlet.links_mut(),
            Self::Sessions => &mut [],
        }
    }
}

impl Registered {
    fn new(link: Link, place: usize) -> Self {
        Self { link, token: FIRST_LINK + place as u64, blocked: false }
    }

    fn flush(&mut self, poller: &Poller) -> std::io::Result<()> {
        let blocked = self.link.unsent() > 0 && self.link.flush()? == Flushed::Rest;
        if blocked != self.blocked {
            self.blocked = blocked;
            poller.change(&self.link, self.token, if blocked { poller::READ_WRITE } else { poller::READ })?;
        }
        Ok(())
    }
}

/// Names by channel.
fn names(plan: &Plan, template: &crate::template::Template) -> Vec<String> {
    (0..plan.channels).map(|channel| template.fill(channel, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_keeps_its_window_full() {
        let mut pace = Pacer::InFlight { window: 2, under_way: 0 };
        for _ in 0..2 {
            assert_eq!(pace.due(7, || 0), Some(7));
            pace.on_sent();
        }
        assert_eq!(pace.due(8, || 0), None);
        assert_eq!(pace.due(9, || 1), Some(9));
    }

    #[test]
    fn an_open_loop_counts_from_the_intended_time_however_late_it_is() {
        let mut pace = Pacer::Rate { per_second: 1000.0, begun: None, sent: 0 };
        assert_eq!(pace.due(500, || 0), Some(500));
        pace.on_sent();
        assert_eq!(pace.due(1499, || 0), None);
        for expected in [1500, 2500, 3500] {
            assert_eq!(pace.due(4000, || 0), Some(expected));
            pace.on_sent();
        }
        assert_eq!(pace.due(4000, || 0), None);
    }
}
