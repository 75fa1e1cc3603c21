//! Three pictures in one SVG: throughput over time, latency over time, latency's distribution.
//!
//! The SVG is built by hand, and opens in any browser. May not enter: how the figures are measured.

use std::fmt::Write;

use crate::clock::whole;
use crate::report::Report;
use crate::table::Time;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const HEIGHT: f64 = 220.0;
const GAP: f64 = 70.0;
const TOP: f64 = 60.0;

/// A panel: its position, and the range of its axes.
struct Panel {
    top: f64,
    x: (f64, f64),
    y: Scale,
}

/// How figures become heights.
enum Scale {
    /// From 0.
    Linear(f64),
    /// Between powers of ten.
    Log(f64, f64),
}

/// Draws a report.
pub(crate) fn draw(report: &Report) -> String {
    let mut out = String::new();
    let height = TOP + 3.0 * (HEIGHT + GAP);
    // Writing into a String cannot fail.
    write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
    .ok();
    text(&mut out, LEFT, 24.0, "start", &summary(report));
    let end = report.series.last().map_or(1.0, |point| point.seconds.max(1e-3));
    let most = report.series.iter().map(|point| point.deliveries_per_second).fold(1.0, f64::max);
    let rates = report.series.iter().map(|point| (point.seconds, point.deliveries_per_second));
    let throughput = Panel { top: TOP, x: (0.0, end), y: Scale::Linear(round_up(most)) };
    throughput.frame(&mut out, "deliveries per second", |value| format!("{value:.0}"), &seconds_marks(end));
    throughput.line(&mut out, rates, "#1f77b4", "");
    let slowest =
        report.series.iter().map(|point| point.max_us).chain(report.distribution.last().map(|last| last.1)).max();
    let latency = || log_scale(slowest.unwrap_or(1));
    let over_time = Panel { top: TOP + HEIGHT + GAP, x: (0.0, end), y: latency() };
    over_time.frame(&mut out, "latency over time", as_time, &seconds_marks(end));
    for (name, colour, of) in [
        ("max", "#d62728", (|point| point.max_us) as fn(&crate::report::Point) -> u64),
        ("p99", "#ff7f0e", |point| point.p99_us),
        ("p50", "#2ca02c", |point| point.p50_us),
    ] {
        over_time.line(&mut out, report.series.iter().map(|point| (point.seconds, of(point) as f64)), colour, name);
    }
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-9).log10();
    let last = report.distribution.last().map_or(1.0, |last| nines(last.0));
    let marks = [
        (0.0, "0"),
        (nines(50.0), "50 %"),
        (1.0, "90 %"),
        (2.0, "99 %"),
        (3.0, "99.9 %"),
        (4.0, "99.99 %"),
        (5.0, "99.999 %"),
    ];
    let marks: Vec<_> = marks.iter().filter(|mark| mark.0 <= last).map(|mark| (mark.0, mark.1.to_owned())).collect();
    let by_percentile = Panel { top: TOP + 2.0 * (HEIGHT + GAP), x: (0.0, last), y: latency() };
    by_percentile.frame(&mut out, "latency by percentile", as_time, &marks);
    let points = report.distribution.iter().map(|(percentile, value)| (nines(*percentile), *value as f64));
    by_percentile.line(&mut out, points, "#9467bd", "");
    out.push_str("</svg>\n");
    out
}

impl Panel {
    fn to_x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0).max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    fn to_y(&self, value: f64) -> f64 {
        let part = match self.y {
            Scale::Linear(most) => value / most,
            Scale::Log(low, high) => (value.max(low).log10() - low.log10()) / (high.log10() - low.log10()),
        };
        self.top + HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    }

    /// The title, the axes and their marks.
    fn frame(&self, out: &mut String, title: &str, mark: impl Fn(f64) -> String, x_marks: &[(f64, String)]) {
        text(out, LEFT, self.top - 10.0, "start", title);
        let (bottom, right) = (self.top + HEIGHT, WIDTH - RIGHT);
        let values: Vec<f64> = match self.y {
            Scale::Linear(most) => (0..=4_u8).map(|step| most * f64::from(step) / 4.0).collect(),
            Scale::Log(low, high) => std::iter::successors(Some(low), |value| Some(value * 10.0))
                .take_while(|value| *value <= high * 1.01)
                .collect(),
        };
        for value in values {
            let y = self.to_y(value);
            line(out, (LEFT, y), (right, y));
            text(out, LEFT - 8.0, y + 4.0, "end", &mark(value));
        }
        for (value, name) in x_marks {
            let x = self.to_x(*value);
            line(out, (x, self.top), (x, bottom));
            text(out, x, bottom + 18.0, "middle", name);
        }
    }

    fn line(&self, out: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str, name: &str) {
        let mut last = (LEFT, self.top + HEIGHT);
        write!(out, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"").ok();
        for (x, y) in points {
            last = (self.to_x(x), self.to_y(y));
            write!(out, "{:.1},{:.1} ", last.0, last.1).ok();
        }
        out.push_str("\"/>\n");
        if !name.is_empty() {
            writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{name}</text>",
                last.0,
                last.1 - 5.0
            )
            .ok();
        }
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    )
    .ok();
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>").ok();
}

fn summary(report: &Report) -> String {
    format!(
        "{} connections, {:.0} deliveries/s, p50 {}, p99 {}, max {}; {} lost, {} duplicated, {} reordered",
        report.connections.opened,
        report.deliveries_per_second,
        Time(report.latency_us.p50),
        Time(report.latency_us.p99),
        Time(report.latency_us.max),
        report.lost,
        report.duplicated,
        report.reordered
    )
}

fn as_time(micros: f64) -> String {
    Time(whole(micros)).to_string()
}

fn seconds_marks(end: f64) -> Vec<(f64, String)> {
    let step = round_up(end / 8.0).max(0.1);
    std::iter::successors(Some(0.0), |value| Some(value + step))
        .take_while(|value| *value <= end)
        .map(|value| (value, format!("{value:.1} s")))
        .collect()
}

/// The next of 1, 2, 5, 10, 20, 50, ...
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

fn log_scale(slowest: u64) -> Scale {
    let high = 10_f64.powf((slowest.max(1) as f64).log10().ceil()).max(100.0);
    Scale::Log(10.0, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_figures() {
        for (value, expected) in [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (4.0, 5.0), (700_000.0, 1_000_000.0)] {
            assert!((round_up(value) / expected - 1.0).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }

    /// Every opened tag is closed, in order, and no text breaks out.
    fn is_well_formed(svg: &str) -> bool {
        let mut open: Vec<&str> = Vec::new();
        for tag in svg.split('<').skip(1) {
            let Some((tag, content)) = tag.split_once('>') else { return false };
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            if tag.matches('"').count() % 2 != 0 || content.contains('>') {
                return false;
            }
            if tag.starts_with('/') {
                if open.pop() != Some(name) {
                    return false;
                }
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        open.is_empty() && svg.starts_with("<svg ") && !svg.contains("NaN") && !svg.contains("inf")
    }

    #[test]
    fn the_picture_is_well_formed_with_and_without_figures() {
        let mut report = Report::sample();
        let svg = draw(&report);
        assert!(is_well_formed(&svg), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 5);
        report.series.clear();
        report.distribution.clear();
        assert!(is_well_formed(&draw(&report)));
    }

    #[test]
    fn markup_in_a_text_stays_text() {
        let mut out = String::from("<svg >");
        text(&mut out, 0.0, 0.0, "end", "a<b>&c");
        out.push_str("</svg>");
        assert!(is_well_formed(&out) && out.contains("a&lt;b&gt;&amp;c"));
        assert!(!is_well_formed("<svg ><text></svg>"), "the judge judges");
    }
}
