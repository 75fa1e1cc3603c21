//! The counts of one load thread: deliveries and latencies over time, faults, ends of connections. May not enter:
//! sockets.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;

use crate::batch::Batch;
use crate::clock::Micros;
use crate::flight::{UNTRACKED, publisher};
use crate::ledger::{Ledger, Verdict};
use crate::payload::Header;
use crate::run::{Run, load};

/// Intervals that the window is cut into, for the plot. Chosen: a point every few pixels.
const INTERVALS: u64 = 150;
/// Shortest interval.
const MIN_INTERVAL: Micros = 100_000;

/// The figures of one load thread, or of all.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) ledger: Ledger,
    pub(crate) intervals: Vec<Interval>,
    /// Time from the start of a connection to its 101, microseconds.
    pub(crate) connects: Histogram<u64>,
    /// Time from the start of a connection to the last publication that it had missed, microseconds.
    pub(crate) recoveries: Histogram<u64>,
    /// The intervals of the window before this one.
    pub(crate) earlier: Vec<Interval>,
    pub(crate) counts: Counts,
    /// Why connections failed, and how others ended before their time.
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) endings: BTreeMap<String, u64>,
    begin: Micros,
    end: Micros,
    interval: Micros,
    /// Landings not yet reported, by number; and which of them there are.
    landings: Vec<(u32, u32)>,
    touched: Vec<usize>,
    unsettled: Unsettled,
    batch: Batch,
}

/// Plain counters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Deliveries and publications inside the window.
    pub(crate) deliveries: u64,
    pub(crate) publications: u64,
    /// Payloads of another run, and payloads that no sender of the channel sent.
    pub(crate) foreign: u64,
    pub(crate) misdelivered: u64,
    pub(crate) pings: u64,
    /// Connections closed and opened again.
    pub(crate) churned: u64,
    /// Of the connections that never read: how many there were, how many the server ended.
    pub(crate) slow: u64,
    pub(crate) slow_ended: u64,
    /// Publications that a closed loop gave up, because they did not reach all receivers in time.
    pub(crate) given_up: u64,
    /// Publications that Redis or the server had no subscriber for.
    pub(crate) unheard: u64,
    /// Publications that Redis or the server has answered.
    pub(crate) answered: u64,
}

/// A piece of the window.
#[derive(Debug)]
pub(crate) struct Interval {
    pub(crate) deliveries: u64,
    /// Microseconds.
    pub(crate) latency: Histogram<u32>,
}

#[derive(Debug, Default)]
struct Unsettled {
    deliveries: u64,
    landed: u64,
    published: u64,
    owed: u64,
}

/// A histogram of microseconds with three significant digits.
pub(crate) fn histogram<C: hdrhistogram::Counter>() -> Histogram<C> {
    // Fails only for more than five digits.
    #[expect(clippy::expect_used, reason = "three digits are allowed")]
    Histogram::new(3).expect("three digits are allowed")
}

/// How long one interval of a window is.
pub(crate) fn interval(begin: Micros, end: Micros) -> Micros {
    (end.saturating_sub(begin) / INTERVALS).max(MIN_INTERVAL)
}

impl Book {
    /// For a thread with `receivers`, each of which gets publications of at most `senders`; `landings` is a power of
    /// two.
    pub(crate) fn new(receivers: usize, senders: usize, landings: usize) -> Self {
        Self {
            ledger: Ledger::new(receivers, senders),
            intervals: Vec::new(),
            connects: histogram(),
            recoveries: histogram(),
            earlier: Vec::new(),
            counts: Counts::default(),
            failures: BTreeMap::new(),
            endings: BTreeMap::new(),
            begin: Micros::MAX,
            end: Micros::MAX,
            interval: MIN_INTERVAL,
            landings: vec![(0, 0); landings],
            touched: Vec::new(),
            unsettled: Unsettled::default(),
            batch: Batch::default(),
        }
    }

    /// Learns which window is counted.
    pub(crate) fn set_window(&mut self, begin: Micros, end: Micros) {
        if self.begin != begin {
            self.earlier = std::mem::take(&mut self.intervals);
        }
        if (self.begin, self.end) != (begin, end) {
            (self.begin, self.end, self.interval) = (begin, end, interval(begin, end));
        }
    }

    /// A publication was sent that is owed to `receivers`.
    pub(crate) fn on_published(&mut self, intended: Micros, receivers: u32) {
        self.counts.publications += u64::from((self.begin..self.end).contains(&intended));
        self.unsettled.published += 1;
        self.unsettled.owed += u64::from(receivers);
    }

    /// `receiver`, of `channel`, got a payload at `now`. Returns its header if it is of this run.
    pub(crate) fn on_payload(
        &mut self,
        run: &Run,
        receiver: usize,
        channel: u32,
        payload: &[u8],
        now: Micros,
    ) -> Option<Header> {
        let Some(header) = Header::find(payload).filter(|header| header.run == run.tag) else {
            self.counts.foreign += 1;
            return None;
        };
        self.on_header(run, receiver, channel, &header, now);
        Some(header)
    }

    /// These bytes were nothing but payloads with these headers; others may read the same.
    pub(crate) fn learn(&mut self, run: &Run, channel: u32, bytes: &[u8], headers: &[Header]) {
        self.settle_batch(run);
        self.batch.learn(channel, bytes, headers);
    }

    /// `receiver` got these bytes. False, and nothing is counted, unless the bytes are known and exactly their payloads
    /// were owed next.
    pub(crate) fn on_known(&mut self, run: &Run, receiver: usize, channel: u32, bytes: &[u8], now: Micros) -> bool {
        if !self.batch.is(channel, bytes) {
            return false;
        }
        let Batch { sender, first, count, .. } = self.batch;
        let sender = (sender / run.plan.channels) as usize;
        if !self.ledger.on_successive(receiver, sender, first, count) {
            return false;
        }
        self.batch.receivers += 1;
        self.unsettled.deliveries += u64::from(count);
        self.unsettled.landed += u64::from(count);
        if now >= self.begin {
            let sent = std::mem::take(&mut self.batch.sent);
            sent.iter().for_each(|(sent, count)| self.measure(*sent, now, *count));
            self.batch.sent = sent;
        }
        true
    }

    fn settle_batch(&mut self, run: &Run) {
        let receivers = std::mem::take(&mut self.batch.receivers);
        if receivers > 0 {
            let numbers = std::mem::take(&mut self.batch.numbers);
            numbers
                .iter()
                .filter(|number| **number != UNTRACKED)
                .for_each(|number| self.on_landed(run, *number, receivers));
            self.batch.numbers = numbers;
        }
    }

    /// As `on_payload`, with a header that is read already.
    pub(crate) fn on_header(&mut self, run: &Run, receiver: usize, channel: u32, header: &Header, now: Micros) {
        let plan = &run.plan;
        if header.sequence >= load(&run.sent, header.sender) || plan.channel_of_sender(header.sender) != channel {
            self.counts.misdelivered += 1;
            return;
        }
        let verdict = self.ledger.on_received(receiver, (header.sender / plan.channels) as usize, header.sequence);
        self.unsettled.deliveries += 1;
        if verdict == Verdict::Awaited {
            self.unsettled.landed += 1;
            if header.number != UNTRACKED {
                self.on_landed(run, header.number, 1);
            }
        }
        if now >= self.begin {
            self.measure(header.sent, now, 1);
        }
    }

    fn measure(&mut self, sent: Micros, now: Micros, count: u32) {
        // A publication due inside the window counts for latency however late it arrives. Otherwise an overloaded
        // server would be measured only by the publications that it delivered in time. The last interval has all
        // arrivals after the window.
        let place = now.min(self.end).saturating_sub(self.begin) / self.interval;
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        while self.intervals.len() <= place {
            self.intervals.push(Interval { deliveries: 0, latency: histogram() });
        }
        let Some(interval) = self.intervals.get_mut(place) else { return };
        if now < self.end {
            self.counts.deliveries += u64::from(count);
            interval.deliveries += u64::from(count);
        }
        if (self.begin..self.end).contains(&sent) {
            interval.latency.record_n(now.saturating_sub(sent), count).ok();
        }
    }

    fn on_landed(&mut self, run: &Run, number: u32, receivers: u32) {
        let place = number as usize & (self.landings.len() - 1);
        let Some(landing) = self.landings.get_mut(place) else { return };
        if landing.1 == 0 {
            self.touched.push(place);
        } else if landing.0 != number {
            let (other, count) = std::mem::take(landing);
            run.flights.get(publisher(other)).map(|flight| flight.on_landed(other, count));
        }
        *landing = (number, landing.1 + receivers);
    }

    /// Reports what happened since the last time; wakes publishers whose window has room again.
    pub(crate) fn settle(&mut self, run: &Run, thread: usize) {
        self.settle_batch(run);
        let unsettled = std::mem::take(&mut self.unsettled);
        if unsettled.published > 0 {
            run.owed.fetch_add(unsettled.owed, Ordering::Relaxed);
            run.published.fetch_add(unsettled.published, Ordering::Relaxed);
        }
        if unsettled.deliveries > 0 {
            run.deliveries.fetch_add(unsettled.deliveries, Ordering::Relaxed);
            run.landed.fetch_add(unsettled.landed, Ordering::Relaxed);
        }
        while let Some(place) = self.touched.pop() {
            let Some((number, count)) = self.landings.get_mut(place).map(std::mem::take) else { continue };
            let publisher = publisher(number);
            let landed = run.flights.get(publisher).is_some_and(|flight| flight.on_landed(number, count));
            if landed && publisher != thread {
                run.wake(publisher);
            }
        }
    }

    /// Adds another thread's figures, once its tracks are closed.
    pub(crate) fn add(&mut self, other: Self) {
        add_intervals(&mut self.intervals, &other.intervals);
        add_intervals(&mut self.earlier, &other.earlier);
        // Both grow as needed, so nothing is out of range.
        self.connects.add(&other.connects).ok();
        self.recoveries.add(&other.recoveries).ok();
        self.ledger.add_faults(other.ledger.faults());
        self.counts.add(&other.counts);
        for (mine, theirs) in [(&mut self.failures, other.failures), (&mut self.endings, other.endings)] {
            for (reason, count) in theirs {
                *mine.entry(reason).or_default() += count;
            }
        }
    }
}

fn add_intervals(mine: &mut Vec<Interval>, theirs: &[Interval]) {
    while mine.len() < theirs.len() {
        mine.push(Interval { deliveries: 0, latency: histogram() });
    }
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        mine.deliveries += theirs.deliveries;
        mine.latency.add(&theirs.latency).ok();
    }
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.deliveries += other.deliveries;
        self.publications += other.publications;
        self.foreign += other.foreign;
        self.misdelivered += other.misdelivered;
        self.pings += other.pings;
        self.churned += other.churned;
        self.slow += other.slow;
        self.slow_ended += other.slow_ended;
        self.given_up += other.given_up;
        self.unheard += other.unheard;
        self.answered += other.answered;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::payload::Composer;
    use crate::plan::Plan;

    /// A run of two channels that a Redis publishes on, each sender having sent five.
    fn run() -> Run {
        let arguments = "webws-bench load --url ws://127.0.0.1:1/{channel} --channels 2 --connections 2 \
                         --publish redis://127.0.0.1:1 --redis-channel c{channel}";
        let cli = Cli::try_parse_from(arguments.split_whitespace()).unwrap();
        let Command::Load(args) = cli.command else { panic!("load") };
        let run = Run::new(Plan::try_new(*args).unwrap()).unwrap();
        run.sent.iter().for_each(|sent| sent.store(5, Ordering::Relaxed));
        run
    }

    fn header(run: &Run, sender: u32, sequence: u32, sent: Micros) -> Header {
        Header { run: run.tag, sender, sequence, sent, number: UNTRACKED }
    }

    #[test]
    fn a_delivery_counts_when_it_arrives_and_its_latency_when_it_was_due() {
        let (run, mut book) = (run(), Book::new(2, 1, 1));
        book.set_window(1_000_000, 2_000_000);
        // Due before the window, inside it, and inside it but hours late.
        for (sequence, sent, now) in [(0, 900_000, 1_000_000), (1, 1_500_000, 1_500_700), (2, 1_900_000, 9_901_900_000)]
        {
            book.on_header(&run, 0, 0, &header(&run, 0, sequence, sent), now);
        }
        assert_eq!(book.counts.deliveries, 2);
        let recorded: u64 = book.intervals.iter().map(|interval| interval.latency.len()).sum();
        assert_eq!(recorded, 2);
        let longest = book.intervals.iter().map(|interval| interval.latency.max()).max().unwrap();
        assert!((9_900_000_000..9_920_000_000).contains(&longest), "not cut off: {longest}");
    }

    #[test]
    fn what_does_not_belong_here_is_told_apart() {
        let (run, mut book) = (run(), Book::new(2, 1, 1));
        let mut composer = Composer::new(100);
        book.on_payload(&run, 0, 0, b"another program's", 0);
        book.on_payload(&run, 0, 0, composer.compose(&Header { run: run.tag ^ 1, ..header(&run, 0, 0, 0) }), 0);
        assert_eq!((book.counts.foreign, book.counts.misdelivered), (2, 0));
        // A payload of another channel, and one that no sender sent.
        book.on_payload(&run, 0, 0, composer.compose(&header(&run, 1, 0, 0)), 0);
        book.on_payload(&run, 0, 0, composer.compose(&header(&run, 0, 5, 0)), 0);
        assert_eq!((book.counts.foreign, book.counts.misdelivered), (2, 2));
    }

    #[test]
    fn landings_of_a_turn_are_reported_together() {
        let (run, mut book) = (run(), Book::new(2, 1, 4));
        let Some(flight) = run.flights.first() else { panic!("a flight") };
        let number = flight.open(&mut 0, 0, 0, 2);
        for receiver in 0..2 {
            book.on_header(&run, receiver, 0, &Header { number, ..header(&run, 0, 0, 0) }, 0);
        }
        assert_eq!(flight.take_landed(), 0);
        book.settle(&run, 0);
        assert_eq!(flight.take_landed(), 1);
        assert_eq!(run.landed.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_others_read_too_is_counted_like_what_is_parsed() {
        let (run, mut book) = (run(), Book::new(4, 1, 4));
        book.set_window(100, 1_000_000);
        let Some(flight) = run.flights.first() else { panic!("a flight") };
        let number = flight.open(&mut 0, 0, 0, 3);
        let headers = [Header { number, ..header(&run, 0, 0, 150) }, header(&run, 0, 1, 150)];
        for header in &headers {
            book.on_header(&run, 0, 0, header, 200);
        }
        book.learn(&run, 0, b"bytes", &headers);
        assert!(book.on_known(&run, 1, 0, b"bytes", 210) && book.on_known(&run, 2, 0, b"bytes", 220));
        assert!(!book.on_known(&run, 2, 0, b"bytes", 230), "a duplicate goes the long way");
        assert!(!book.on_known(&run, 3, 0, b"bytez", 230) && !book.on_known(&run, 3, 1, b"bytes", 230));
        book.settle(&run, 0);
        assert_eq!((book.counts.deliveries, run.landed.load(Ordering::Relaxed), flight.take_landed()), (6, 6, 1));
        assert_eq!(book.intervals.iter().map(|interval| interval.latency.len()).sum::<u64>(), 6);
    }
}
