//! The clients that stay: an open loop in a thread of its own, its latency measured before and during the recovery. May
//! not enter: the clients that come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use serde::Serialize;

use crate::book::Book;
use crate::client::Client;
use crate::clock::Micros;
use crate::conductor::{collect, spawn};
use crate::plan::Plan;
use crate::report::{Latency, together};
use crate::run::{Phase, Run};

use super::wait;

/// How long late publications are waited for.
const PATIENCE: Micros = 10_000_000;

/// Bystanders that receive.
#[derive(Debug)]
pub(super) struct Bystanders {
    run: Arc<Run>,
    threads: Vec<JoinHandle<Book>>,
}

/// What bystanders noticed. Times are microseconds, from the intended time of sending to the arrival.
#[derive(Debug, Serialize)]
pub(crate) struct Noticed {
    pub(crate) connections: u32,
    pub(crate) quiet_us: Latency,
    pub(crate) meanwhile_us: Latency,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Connections that failed or ended.
    pub(crate) failed: u64,
}

impl Bystanders {
    /// Connects them, and begins to publish to them.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn start(plan: Plan) -> Result<Self, String> {
        let run = Arc::new(Run::new(plan).map_err(|error| format!("eventfd: {error}"))?);
        let threads = spawn(vec![Client::new(Arc::clone(&run), 0)?])?;
        let count = |run: &Run| run.opened.load(Ordering::Acquire) + run.failed.load(Ordering::Acquire);
        wait(&run, Micros::MAX, || count(&run) >= run.plan.sockets())?;
        run.enter(Phase::Publish);
        run.begin.store(run.clock.micros(), Ordering::Release);
        Ok(Self { run, threads })
    }

    /// From now on is the recovery.
    pub(super) fn begin(&self) {
        self.run.begin.store(self.run.clock.micros(), Ordering::Release);
    }

    /// The recovery is over.
    pub(super) fn end(&self) {
        self.run.end.store(self.run.clock.micros(), Ordering::Release);
    }

    /// Waits for what is on its way.
    ///
    /// # Errors
    /// A sentence: the run failed.
    pub(super) fn finish(self) -> Result<Noticed, String> {
        let run = self.run;
        run.enter(Phase::Drain);
        let until = run.clock.micros() + PATIENCE;
        // Nothing is published any more after a turn of the thread.
        wait(&run, run.clock.micros() + 50_000, || false)?;
        wait(&run, until, || run.landed.load(Ordering::Acquire) >= run.owed.load(Ordering::Acquire))?;
        run.enter(Phase::Stop);
        let book = collect(self.threads)?;
        let faults = book.ledger.faults();
        Ok(Noticed {
            connections: run.opened.load(Ordering::Acquire),
            quiet_us: Latency::of(&together(&book.earlier)),
            meanwhile_us: Latency::of(&together(&book.intervals)),
            lost: faults.lost,
            duplicated: faults.duplicated,
            reordered: faults.reordered,
            failed: u64::from(run.failed.load(Ordering::Acquire)) + book.endings.values().sum::<u64>(),
        })
    }
}
