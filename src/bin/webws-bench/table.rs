//! The report for people. May not enter: how the figures are measured.

use std::fmt::{self, Display, Formatter};

use crate::report::{Latency, Process, Report};

/// Prints a report as a table.
#[derive(Debug)]
pub(crate) struct Table<'a>(pub(crate) &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let connections = &report.connections;
        writeln!(
            f,
            "connections   {} opened in {:.2} s ({:.0}/s), {} failed",
            connections.opened, connections.seconds, connections.per_second, connections.failed
        )?;
        latency(f, "  to the 101", &connections.latency_us)?;
        for (reason, count) in connections.failures.iter().chain(&connections.endings) {
            writeln!(f, "  {count} × {reason}")?;
        }
        if report.publications > 0 {
            writeln!(
                f,
                "published     {} in {:.1} s ({:.0}/s)",
                report.publications, report.seconds, report.publications_per_second
            )?;
            writeln!(f, "delivered     {} ({:.0}/s)", report.deliveries, report.deliveries_per_second)?;
            latency(f, "  latency", &report.latency_us)?;
            writeln!(
                f,
                "accounts      {} lost, {} duplicated, {} reordered",
                report.lost, report.duplicated, report.reordered
            )?;
        }
        if report.slow.connections > 0 {
            let slow = &report.slow;
            writeln!(f, "slow readers  {}, of which the server ended {}", slow.connections, slow.ended_by_server)?;
        }
        if report.churned > 0 {
            writeln!(f, "churn         {} closed and opened again", report.churned)?;
        }
        if report.pings > 0 {
            writeln!(f, "pings         {}", report.pings)?;
        }
        processes(f, report)?;
        for complaint in &report.complaints {
            writeln!(f, "WRONG: {complaint}")?;
        }
        for caution in &report.cautions {
            writeln!(f, "note: {caution}")?;
        }
        Ok(())
    }
}

pub(crate) fn latency(f: &mut Formatter<'_>, name: &str, latency: &Latency) -> fmt::Result {
    if latency.count == 0 {
        return Ok(());
    }
    let Latency { p50, p90, p99, p999, max, .. } = latency;
    writeln!(
        f,
        "{name:<14}p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        Time(*p50),
        Time(*p90),
        Time(*p99),
        Time(*p999),
        Time(*max)
    )
}

pub(crate) fn processes(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    writeln!(
        f,
        "\n{:<22}{:>7}{:>14}{:>14}{:>12}{:>15}{:>11}{:>11}",
        "CPU and memory", "core %", "µs/delivery", "µs/published", "µs/connect", "µs/(conn·s)", "kB/conn", "kB after"
    )?;
    let stack = report.stack.iter().filter(|_| report.processes.len() > 1);
    for process in report.processes.iter().chain(stack).chain([&report.itself]) {
        let Process { name, cpu_percent, cpu_us_per_connect, cpu_us_per_connection_second, .. } = process;
        writeln!(
            f,
            "{name:<22}{cpu_percent:>7.1}{:>14}{:>14}{cpu_us_per_connect:>12.1}{cpu_us_per_connection_second:>15.2}{:>11.2}{:>11.2}",
            Figure(process.cpu_us_per_delivery),
            Figure(process.cpu_us_per_publication),
            process.resident_kb_per_connection,
            process.resident_kb_per_connection_after,
        )?;
    }
    Ok(())
}

/// Microseconds with a unit that keeps them short.
pub(crate) struct Time(pub(crate) u64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros @ 0..1000 => write!(f, "{micros} µs"),
            micros @ 1000..1_000_000 => write!(f, "{:.2} ms", micros as f64 / 1e3),
            micros => write!(f, "{:.2} s", micros as f64 / 1e6),
        }
    }
}

struct Figure(Option<f64>);

impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(figure) => f.pad(&format!("{figure:.3}")),
            None => f.pad("-"),
        }
    }
}
