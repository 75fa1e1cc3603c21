//! A run from its start to its report: phases, the progress line, the usage at the window's ends. May not enter:
//! sockets.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::book::Book;
use crate::client::Client;
use crate::clock::{Micros, seconds, to_micros};
use crate::ledger::Ledger;
use crate::plan::Plan;
use crate::report::{Moments, Report};
use crate::run::{Phase, Run};
use crate::usage::{Usage, Watch};

/// Descriptors besides those of connections.
pub(crate) const SPARE_DESCRIPTORS: u64 = 64;
/// Memory that the ledger may take. Chosen: a quarter of a small machine.
const MAX_LEDGER_BYTES: usize = 1 << 30;
/// How long to wait for late deliveries: without any delivery, and at most.
const QUIET: Micros = 2_000_000;
const MAX_DRAIN: Micros = 60_000_000;
/// The time between two checks of the conductor.
pub(crate) const GLANCE: Duration = Duration::from_millis(2);

/// Carries out a plan.
///
/// # Errors
/// Why the run failed, as a sentence.
pub(crate) fn conduct(plan: Plan) -> Result<(Report, Arc<Run>), String> {
    raise_descriptors(u64::from(plan.sockets()) + u64::from(plan.publishers) + SPARE_DESCRIPTORS)?;
    let (receivers, senders) = (plan.sockets() as usize, plan.senders_per_channel() as usize);
    if Ledger::bytes(receivers, senders) > MAX_LEDGER_BYTES {
        return Err(format!(
            "{receivers} connections that each hear {senders} senders are too many to keep account of: \
             let fewer send (--publishers N) or use more --channels"
        ));
    }
    let run = Arc::new(Run::new(plan).map_err(|error| format!("eventfd: {error}"))?);
    let clients = (0..run.plan.threads as usize).map(|thread| Client::new(Arc::clone(&run), thread));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let conductor = Conductor { progress: Progress::new(run.plan.quiet), run: Arc::clone(&run) };
    let report = conductor.conduct(clients)?;
    Ok((report, run))
}

#[derive(Debug)]
struct Conductor {
    run: Arc<Run>,
    progress: Progress,
}

impl Conductor {
    fn conduct(mut self, clients: Vec<Client>) -> Result<Report, String> {
        let run = Arc::clone(&self.run);
        let plan = &run.plan;
        let watches: Vec<Watch> = plan.watch.iter().cloned().chain([Watch::itself()]).collect();
        let usage = || watches.iter().map(Watch::usage).collect::<Vec<Usage>>();
        let before = usage();
        let started = run.clock.micros();
        let threads = spawn(clients)?;
        let all = || run.opened.load(Ordering::Acquire) + run.failed.load(Ordering::Acquire) >= plan.sockets();
        self.wait("connecting", Micros::MAX, all)?;
        let connected = usage();
        let connecting = run.last_opened.load(Ordering::Acquire).saturating_sub(started);
        // Later ones are reopened by the churn.
        let opened = run.opened.load(Ordering::Acquire);
        if opened == 0 {
            run.enter(Phase::Stop);
            let reasons: Vec<String> = collect(threads)?.failures.into_keys().collect();
            return Err(format!("no connection could be opened: {}", reasons.join("; ")));
        }
        let now = run.clock.micros();
        let begin = now + to_micros(plan.warmup);
        let end = begin + to_micros(plan.duration);
        run.end.store(end, Ordering::Release);
        run.begin.store(begin, Ordering::Release);
        run.enter(Phase::Publish);
        self.wait("warming up", begin, || false)?;
        let begun = usage();
        self.wait("counting", end, || false)?;
        let ended = usage();
        run.enter(Phase::Drain);
        self.drain()?;
        let drained = usage();
        run.enter(Phase::Stop);
        self.progress.clear();
        let book = collect(threads)?;
        let moments = Moments { watches, before, connected, begun, ended, drained, opened, connecting, begin, end };
        Ok(Report::new(&run, &book, &moments))
    }

    /// Waits until a condition holds, or until a time.
    fn wait(&mut self, phase: &str, until: Micros, is_so: impl Fn() -> bool) -> Result<(), String> {
        loop {
            if let Some(reason) = self.run.fatal() {
                self.run.enter(Phase::Stop);
                self.progress.clear();
                return Err(reason);
            }
            let now = self.run.clock.micros();
            if is_so() || now >= until {
                return Ok(());
            }
            self.progress.show(&self.run, phase, now);
            thread::park_timeout(GLANCE.min(Duration::from_micros(until - now)));
        }
    }

    /// Waits for publications under way.
    fn drain(&mut self) -> Result<(), String> {
        let run = Arc::clone(&self.run);
        // The load threads learn of the phase within a turn; then nothing more is published.
        let mut published = u64::MAX;
        let mut deliveries = 0;
        let mut quiet_since = run.clock.micros();
        let until = quiet_since + MAX_DRAIN;
        loop {
            self.wait("draining", run.clock.micros() + 20_000, || false)?;
            let now = run.clock.micros();
            let (before, then) = (published, deliveries);
            published = run.published.load(Ordering::Acquire);
            deliveries = run.deliveries.load(Ordering::Acquire);
            if (before, then) != (published, deliveries) {
                quiet_since = now;
            }
            let complete = run.landed.load(Ordering::Acquire) >= run.owed.load(Ordering::Acquire);
            // Complete and still for a moment: duplicates would come late.
            let patience = if complete { 50_000 } else { QUIET };
            if now - quiet_since >= patience || now > until {
                return Ok(());
            }
        }
    }
}

pub(crate) fn spawn(clients: Vec<Client>) -> Result<Vec<JoinHandle<Book>>, String> {
    let spawn = |client: Client| thread::Builder::new().name("load".to_owned()).spawn(|| client.run());
    clients.into_iter().map(spawn).collect::<Result<_, _>>().map_err(|error| format!("a thread: {error}"))
}

/// Waits for the threads and adds up what they counted.
pub(crate) fn collect(threads: Vec<JoinHandle<Book>>) -> Result<Book, String> {
    let mut sum = Book::new(0, 0, 1);
    for thread in threads {
        sum.add(thread.join().map_err(|_| "a load thread panicked: its message is above".to_owned())?);
    }
    Ok(sum)
}

/// Raises the descriptor limit to the hard one, and says so if that is not enough.
pub(crate) fn raise_descriptors(needed: u64) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|error| format!("raising the descriptor limit: {error}"))?;
    match limit.maximum {
        Some(maximum) if maximum < needed => Err(format!(
            "{needed} descriptors are needed and {maximum} allowed: open fewer --connections, raise the hard limit \
             (ulimit -Hn), or run several processes"
        )),
        _ => Ok(()),
    }
}

/// The line that says how far a run is.
#[derive(Debug)]
struct Progress {
    quiet: bool,
    terminal: bool,
    next: Micros,
    deliveries: u64,
    shown_at: Micros,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), next: 0, deliveries: 0, shown_at: 0 }
    }

    fn show(&mut self, run: &Run, phase: &str, now: Micros) {
        if self.quiet || now < self.next {
            return;
        }
        self.next = now + if self.terminal { 250_000 } else { 1_000_000 };
        let deliveries = run.deliveries.load(Ordering::Relaxed);
        let rate = (deliveries - self.deliveries) as f64 / seconds(now - self.shown_at).max(1e-6);
        (self.deliveries, self.shown_at) = (deliveries, now);
        let (opened, failed) = (run.opened.load(Ordering::Relaxed), run.failed.load(Ordering::Relaxed));
        let line = format!(
            "{:6.1} s  {phase:<11} {opened} connections, {failed} failed, {} published, {rate:.0} deliveries/s",
            seconds(now),
            run.published.load(Ordering::Relaxed),
        );
        let mut stderr = std::io::stderr().lock();
        // A progress line without a reader is no reason to stop.
        drop(if self.terminal { write!(stderr, "\r\x1b[K{line}") } else { writeln!(stderr, "{line}") });
    }

    fn clear(&self) {
        if !self.quiet && self.terminal {
            drop(write!(std::io::stderr(), "\r\x1b[K"));
        }
    }
}
