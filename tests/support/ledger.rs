//! What was sent by number and time, against what came and the gaps that were reported.

use std::time::{Duration, SystemTime};

use super::program::entries;

/// From when to when messages may be missing.
pub(crate) type Gap = (SystemTime, SystemTime);

/// A gap begins with the last message that came, so the first that is missing may be a step later,
/// and the log is written a moment after the gap's end.
const SLACK: Duration = Duration::from_millis(250);

/// What is published as `number` at `now`: clients see "NUMBER MICROSECONDS CHANNEL".
pub(crate) fn text(number: usize, now: SystemTime) -> String {
    format!("{number} {} ", now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros())
}

pub(crate) fn number_and_time(text: &str) -> Option<(usize, SystemTime)> {
    let mut words = text.split(' ');
    let number = words.next()?.parse().ok()?;
    let micros = words.next()?.parse().ok()?;
    Some((number, SystemTime::UNIX_EPOCH + Duration::from_micros(micros)))
}

/// How many of the texts `sent` at these times did not come after the first that did. Nothing may come
/// twice or out of order, and what is missing must lie in a gap of `log`.
pub(crate) fn lost(texts: &[String], sent: &[SystemTime], log: &str) -> usize {
    let received: Vec<usize> = texts.iter().filter_map(|text| Some(number_and_time(text)?.0)).collect();
    assert!(received.is_sorted_by(|a, b| a < b), "twice, or out of order: {received:?}");
    let gaps = gaps(log);
    let is_missing = |number: &usize| received.binary_search(number).is_err();
    let missing: Vec<usize> = (received[0]..sent.len()).filter(is_missing).collect();
    for number in &missing {
        let at = sent[*number];
        let is_named = gaps.iter().any(|(from, to)| *from - SLACK <= at && at <= *to + SLACK);
        assert!(is_named, "{number}, sent at {at:?}, is missing outside of all gaps {gaps:?}\n{log}");
    }
    missing.len()
}

/// The gaps that a log reports.
pub(crate) fn gaps(log: &str) -> Vec<Gap> {
    let gaps = entries(log).into_iter().filter_map(|line| {
        let length = Duration::from_millis(line["length_ms"].as_u64()?);
        let end = humantime::parse_rfc3339(line["timestamp"].as_str()?).unwrap();
        Some((end - length, end))
    });
    gaps.collect()
}
