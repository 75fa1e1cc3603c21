//! The figures of a recovery: as JSON those of `load` and a part of their own, and a table. May not enter: how the
//! figures are measured.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::book::Book;
use crate::clock::seconds;
use crate::report::{self, Latency, Moments};
use crate::run::Run;
use crate::table::{Time, latency, processes};

use super::bystanders::Noticed;

/// A recovery's figures.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    recovery: Recovery,
    /// Deliveries are those of missed publications; `cpu_us_per_connect` is the CPU of a client's whole recovery.
    #[serde(flatten)]
    pub(crate) load: report::Report,
}

#[derive(Debug, Serialize)]
struct Recovery {
    clients: u32,
    channels: u32,
    /// By each client.
    missed: u32,
    /// Clients that got all they missed.
    whole: u32,
    /// From the first connection's start until the last client was whole.
    seconds: f64,
    /// From a client's connecting until it was whole.
    latency_us: Latency,
    /// By how many bytes of memory each process grew per publication that it had to keep.
    kept_bytes: BTreeMap<String, f64>,
    bystanders: Option<Noticed>,
}

impl Report {
    pub(super) fn new(
        run: &Run,
        book: &Book,
        moments: &Moments,
        kept_bytes: BTreeMap<String, f64>,
        bystanders: Option<Noticed>,
    ) -> Self {
        let mut load = report::Report::new(run, book, moments);
        // The whole recovery is one interval.
        load.series.clear();
        let recovery = Recovery {
            clients: run.plan.connections,
            channels: run.plan.channels,
            missed: run.resume.get().map_or(0, |resume| resume.missed),
            whole: run.whole.load(Ordering::Acquire),
            seconds: seconds(run.last_whole.load(Ordering::Acquire).saturating_sub(moments.begin)),
            latency_us: Latency::of(&book.recoveries),
            kept_bytes,
            bystanders,
        };
        if recovery.whole < recovery.clients {
            let short = recovery.clients - recovery.whole;
            load.complaints.push(format!("{short} of {} clients did not get all they missed", recovery.clients));
        }
        if load.foreign > 0 {
            load.complaints.push(format!("{} messages were no publications, as a gap is none", load.foreign));
        }
        if let Some(Noticed { lost, duplicated, reordered, failed, .. }) = recovery.bystanders
            && lost + duplicated + reordered + failed > 0
        {
            load.complaints.push(format!(
                "bystanders: {lost} lost, {duplicated} duplicated, {reordered} reordered, {failed} connections failed"
            ));
        }
        Self { recovery, load }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { recovery, load } = self;
        writeln!(
            f,
            "recovered     {} of {} clients, {} publications each on {} channel(s), in {:.3} s",
            recovery.whole, recovery.clients, recovery.missed, recovery.channels, recovery.seconds
        )?;
        latency(f, "  per client", &recovery.latency_us)?;
        latency(f, "  to the 101", &load.connections.latency_us)?;
        for (reason, count) in load.connections.failures.iter().chain(&load.connections.endings) {
            writeln!(f, "  {count} × {reason}")?;
        }
        writeln!(
            f,
            "accounts      {} lost, {} duplicated, {} reordered, {} refused",
            load.lost, load.duplicated, load.reordered, load.connections.failed
        )?;
        for (name, bytes) in &recovery.kept_bytes {
            writeln!(f, "kept          {bytes:.0} bytes of memory per publication in {name}")?;
        }
        if let Some(Noticed { connections, quiet_us, meanwhile_us, .. }) = &recovery.bystanders {
            let (quiet, meanwhile) = (Time(quiet_us.p99), Time(meanwhile_us.p99));
            writeln!(f, "bystanders    {connections}, p99 {quiet} alone, {meanwhile} meanwhile")?;
        }
        processes(f, load)?;
        load.complaints.iter().try_for_each(|complaint| writeln!(f, "WRONG: {complaint}"))?;
        load.cautions.iter().try_for_each(|caution| writeln!(f, "note: {caution}"))
    }
}
