//! The figures of a run, from the books and the usage, as JSON; the table is in `table`. May not enter: how the figures
//! are measured.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hdrhistogram::{Counter, Histogram};
use serde::Serialize;

use crate::book::{Book, Counts, Interval, histogram, interval};
use crate::clock::{Micros, seconds};
use crate::run::Run;
use crate::usage::{Usage, Watch};

/// Usage at the moments that count, in the order of `watches`.
#[derive(Debug)]
pub(crate) struct Moments {
    pub(crate) watches: Vec<Watch>,
    pub(crate) before: Vec<Usage>,
    pub(crate) connected: Vec<Usage>,
    pub(crate) begun: Vec<Usage>,
    pub(crate) ended: Vec<Usage>,
    pub(crate) drained: Vec<Usage>,
    /// Connections at the window's begin.
    pub(crate) opened: u32,
    /// From the first connection's start to the last one's 101.
    pub(crate) connecting: Micros,
    pub(crate) begin: Micros,
    pub(crate) end: Micros,
}

/// A run's figures. Times are microseconds unless their name says otherwise.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: Vec<String>,
    pub(crate) connections: Connections,
    /// The window of the measurement.
    pub(crate) seconds: f64,
    pub(crate) publications: u64,
    pub(crate) publications_per_second: f64,
    pub(crate) deliveries: u64,
    pub(crate) deliveries_per_second: f64,
    /// From the intended time of sending to the arrival.
    pub(crate) latency_us: Latency,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// Payloads on a channel on which they were not sent.
    pub(crate) misdelivered: u64,
    /// Payloads of other programs.
    pub(crate) foreign: u64,
    /// Publications that a closed loop did not wait for any longer.
    pub(crate) given_up: u64,
    /// Publications for which the broker knew no subscriber.
    pub(crate) unheard: u64,
    pub(crate) pings: u64,
    pub(crate) churned: u64,
    pub(crate) slow: Slow,
    pub(crate) processes: Vec<Process>,
    /// All watched processes together, without this one.
    pub(crate) stack: Option<Process>,
    /// This process.
    pub(crate) itself: Process,
    /// Latency by percentile, for the plot.
    pub(crate) distribution: Vec<(f64, u64)>,
    pub(crate) series: Vec<Point>,
    /// Faults of the server or the run; none gives exit code 0.
    pub(crate) complaints: Vec<String>,
    /// Circumstances that make the figures doubtful.
    pub(crate) cautions: Vec<String>,
}

/// How connections were opened, and how they ended.
#[derive(Debug, Serialize)]
pub(crate) struct Connections {
    pub(crate) opened: u32,
    pub(crate) failed: u32,
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// From connecting to the 101.
    pub(crate) latency_us: Latency,
    pub(crate) failures: BTreeMap<String, u64>,
    /// Those that ended before the run did.
    pub(crate) endings: BTreeMap<String, u64>,
}

/// The connections that never read.
#[derive(Debug, Serialize)]
pub(crate) struct Slow {
    pub(crate) connections: u64,
    pub(crate) ended_by_server: u64,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
    pub(crate) mean: f64,
}

/// The usage of processes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// Inside the window.
    pub(crate) cpu_us: f64,
    /// Of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) cpu_us_per_delivery: Option<f64>,
    pub(crate) cpu_us_per_publication: Option<f64>,
    pub(crate) cpu_us_per_connection_second: f64,
    /// While connecting.
    pub(crate) cpu_us_per_connect: f64,
    pub(crate) resident_kb_before: u64,
    pub(crate) resident_kb_connected: u64,
    pub(crate) resident_kb_after: u64,
    pub(crate) resident_kb_per_connection: f64,
    pub(crate) resident_kb_per_connection_after: f64,
}

/// A piece of the window.
#[derive(Debug, Serialize)]
pub(crate) struct Point {
    /// From the window's begin to the piece's.
    pub(crate) seconds: f64,
    pub(crate) deliveries_per_second: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Latency {
    pub(crate) fn of<C: Counter>(histogram: &Histogram<C>) -> Self {
        Self {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
            mean: histogram.mean(),
        }
    }
}

impl Report {
    pub(crate) fn new(run: &Run, book: &Book, moments: &Moments) -> Self {
        let window = seconds(moments.end - moments.begin);
        let Counts { deliveries, publications, .. } = book.counts;
        let opened = moments.opened;
        let total = together(&book.intervals);
        let mut processes = processes(moments, &book.counts, opened, window);
        let itself = processes.pop().unwrap_or_else(|| Process::sum("webws-bench (itself)", &[]));
        let stack = (!processes.is_empty()).then(|| Process::sum("together", &processes));
        let faults = book.ledger.faults();
        let connecting = seconds(moments.connecting).max(1e-6);
        let mut report = Self {
            command: std::env::args().map(without_password).collect(),
            connections: Connections {
                opened,
                failed: run.failed.load(Ordering::Acquire),
                seconds: connecting,
                per_second: f64::from(opened) / connecting,
                latency_us: Latency::of(&book.connects),
                failures: book.failures.clone(),
                endings: book.endings.clone(),
            },
            seconds: window,
            publications,
            publications_per_second: publications as f64 / window,
            deliveries,
            deliveries_per_second: deliveries as f64 / window,
            latency_us: Latency::of(&total),
            lost: faults.lost,
            duplicated: faults.duplicated,
            reordered: faults.reordered,
            misdelivered: book.counts.misdelivered,
            foreign: book.counts.foreign,
            given_up: book.counts.given_up,
            unheard: book.counts.unheard,
            pings: book.counts.pings,
            churned: book.counts.churned,
            slow: Slow { connections: book.counts.slow, ended_by_server: book.counts.slow_ended },
            processes,
            stack,
            itself,
            distribution: distribution(&total),
            series: series(book, moments),
            complaints: Vec::new(),
            cautions: Vec::new(),
        };
        report.judge(run, faults.is_clean());
        report
    }

    fn judge(&mut self, run: &Run, clean: bool) {
        let Self { lost, duplicated, reordered, .. } = self;
        if !clean {
            self.complaints.push(format!("{lost} lost, {duplicated} duplicated, {reordered} reordered"));
        }
        if self.misdelivered > 0 {
            self.complaints.push(format!("{} arrived on a channel where they were not sent", self.misdelivered));
        }
        if self.given_up > 0 {
            self.complaints.push(format!("{} publications did not reach all subscribers within 30 s", self.given_up));
        }
        if self.connections.failed > 0 {
            self.complaints.push(format!("{} connections failed", self.connections.failed));
        }
        let endings: u64 = self.connections.endings.values().sum();
        if endings > 0 {
            self.complaints.push(format!("{endings} connections ended before the run did"));
        }
        if run.plan.senders() > 0 && self.deliveries == 0 {
            self.complaints.push("nothing was delivered".to_owned());
        }
        if self.unheard > 0 {
            let hint = "do the channels' names in --url and in --redis-channel or --publish belong together?";
            self.cautions.push(format!("{} publications had no subscriber at the broker: {hint}", self.unheard));
        }
        if self.foreign > 0 {
            self.cautions
                .push(format!("{} messages were not of this run: another program publishes here", self.foreign));
        }
        let busy = self.itself.cpu_percent / f64::from(run.plan.threads);
        if busy > 85.0 {
            self.cautions.push(format!(
                "the load threads were busy for {busy:.0} % of the time: latencies may be theirs; see --threads"
            ));
        }
    }
}

/// The latencies of all intervals.
pub(crate) fn together(intervals: &[Interval]) -> Histogram<u64> {
    let mut total = histogram();
    // Both grow as needed, so nothing is out of range.
    for bucket in intervals.iter().flat_map(|interval| interval.latency.iter_recorded()) {
        total.record_n(bucket.value_iterated_to(), bucket.count_at_value().into()).ok();
    }
    total
}

fn processes(moments: &Moments, counts: &Counts, opened: u32, window: f64) -> Vec<Process> {
    let per = |cpu: f64, count: u64| (count > 0).then(|| cpu / count as f64);
    let connections = f64::from(opened.max(1));
    let process = |(place, watch): (usize, &Watch)| {
        let [before, connected, begun, ended, drained] =
            [&moments.before, &moments.connected, &moments.begun, &moments.ended, &moments.drained]
                .map(|usages| usages.get(place).cloned().unwrap_or_default());
        let cpu = ended.cpu_since(&begun).as_secs_f64() * 1e6;
        let grown = |usage: &Usage| (usage.resident_kb as f64 - before.resident_kb as f64) / connections;
        Process {
            name: watch.name.clone(),
            cpu_us: cpu,
            cpu_percent: cpu / window / 1e4,
            cpu_us_per_delivery: per(cpu, counts.deliveries),
            cpu_us_per_publication: per(cpu, counts.publications),
            cpu_us_per_connection_second: cpu / connections / window,
            cpu_us_per_connect: connected.cpu_since(&before).as_secs_f64() * 1e6 / connections,
            resident_kb_before: before.resident_kb,
            resident_kb_connected: connected.resident_kb,
            resident_kb_after: drained.resident_kb,
            resident_kb_per_connection: grown(&connected),
            resident_kb_per_connection_after: grown(&drained),
        }
    };
    moments.watches.iter().enumerate().map(process).collect()
}

impl Process {
    fn sum(name: &str, processes: &[Self]) -> Self {
        let add = |figure: fn(&Self) -> f64| processes.iter().map(figure).sum::<f64>();
        let add_some = |figure: fn(&Self) -> Option<f64>| processes.iter().map(figure).sum::<Option<f64>>();
        let add_kb = |figure: fn(&Self) -> u64| processes.iter().map(figure).sum::<u64>();
        Self {
            name: name.to_owned(),
            cpu_us: add(|process| process.cpu_us),
            cpu_percent: add(|process| process.cpu_percent),
            cpu_us_per_delivery: add_some(|process| process.cpu_us_per_delivery),
            cpu_us_per_publication: add_some(|process| process.cpu_us_per_publication),
            cpu_us_per_connection_second: add(|process| process.cpu_us_per_connection_second),
            cpu_us_per_connect: add(|process| process.cpu_us_per_connect),
            resident_kb_before: add_kb(|process| process.resident_kb_before),
            resident_kb_connected: add_kb(|process| process.resident_kb_connected),
            resident_kb_after: add_kb(|process| process.resident_kb_after),
            resident_kb_per_connection: add(|process| process.resident_kb_per_connection),
            resident_kb_per_connection_after: add(|process| process.resident_kb_per_connection_after),
        }
    }
}

fn series(book: &Book, moments: &Moments) -> Vec<Point> {
    let step = interval(moments.begin, moments.end);
    let point = |(place, interval): (usize, &Interval)| {
        let from = step * place as u64;
        let len = step.min((moments.end - moments.begin).saturating_sub(from)).max(1);
        Point {
            seconds: seconds(from),
            deliveries_per_second: interval.deliveries as f64 / seconds(len),
            p50_us: interval.latency.value_at_quantile(0.5),
            p99_us: interval.latency.value_at_quantile(0.99),
            max_us: interval.latency.max(),
        }
    };
    let inside = (moments.end - moments.begin).div_ceil(step);
    book.intervals.iter().take(usize::try_from(inside).unwrap_or(usize::MAX)).enumerate().map(point).collect()
}

/// Latencies at percentiles that get denser towards 100.
fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    // Ten steps for each further nine, as far as there are values.
    let nines = (histogram.len() as f64).log10().ceil().clamp(1.0, 6.0);
    let steps = crate::clock::whole(nines * 10.0);
    let quantile = |step: u64| 1.0 - 10_f64.powf(-(step as f64) / 10.0);
    (0..=steps).map(|step| (quantile(step) * 100.0, histogram.value_at_quantile(quantile(step)))).collect()
}

/// An argument as it may be shown.
fn without_password(argument: String) -> String {
    match (argument.split_once("://"), argument.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) if scheme.ends_with("redis") => format!("{scheme}://***@{rest}"),
        _ => argument,
    }
}

#[cfg(test)]
impl Report {
    /// A report with figures in it.
    pub(crate) fn sample() -> Self {
        let point = |second: u32| Point {
            seconds: f64::from(second),
            deliveries_per_second: 1000.0,
            p50_us: 100,
            p99_us: 900,
            max_us: 20_000,
        };
        Self {
            command: Vec::new(),
            connections: Connections {
                opened: 1000,
                failed: 0,
                seconds: 1.0,
                per_second: 1000.0,
                latency_us: Latency::default(),
                failures: BTreeMap::new(),
                endings: BTreeMap::new(),
            },
            seconds: 10.0,
            publications: 10,
            publications_per_second: 1.0,
            deliveries: 10_000,
            deliveries_per_second: 1000.0,
            latency_us: Latency::default(),
            lost: 0,
            duplicated: 0,
            reordered: 0,
            misdelivered: 0,
            foreign: 0,
            given_up: 0,
            unheard: 0,
            pings: 0,
            churned: 0,
            slow: Slow { connections: 0, ended_by_server: 0 },
            processes: Vec::new(),
            stack: None,
            itself: Process::sum("itself", &[]),
            distribution: vec![(0.0, 10), (50.0, 100), (90.0, 500), (99.0, 900)],
            series: (0..10).map(point).collect(),
            complaints: Vec::new(),
            cautions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_reported() {
        assert_eq!(without_password("redis://web:secret@127.0.0.1:1".into()), "redis://***@127.0.0.1:1");
        assert_eq!(without_password("ws://x/@".into()), "ws://x/@");
    }

    #[test]
    fn the_distribution_ends_at_the_largest() {
        let mut values: Histogram<u64> = histogram();
        (1..=1000).for_each(|value| values.record(value).unwrap());
        let distribution = distribution(&values);
        assert_eq!(distribution.first().unwrap().0, 0.0);
        assert_eq!(distribution.last().unwrap().1, values.value_at_quantile(0.999));
        assert!(distribution.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }
}
