//! Compares what was seen with one acceptable outcome, to the letter of `format` in `golden.json`.
//!
//! No sockets here. Tested on what the Lua handler did: its kept behaviour passes, any other byte fails.

use super::case::{ExpectedEnd, Outcome};
use crate::support::client::End;
use crate::support::frame::{CLOSE, Frame, Head};

/// All that can be seen of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed {
    pub(super) head: Option<Head>,
    /// With the seconds since the connect.
    pub(super) frames: Vec<(f64, Frame)>,
    /// Bytes that no server may send.
    pub(super) fault: Option<String>,
    /// With the seconds since the client sent something for the last time.
    pub(super) end: Option<(End, f64)>,
    /// All payloads that the spy saw.
    pub(super) published: Vec<Vec<u8>>,
    pub(super) subscribed: bool,
}

/// Holds if `seen` is this outcome entirely.
///
/// # Errors
/// The first difference, for people.
pub(super) fn judge(outcome: &Outcome, seen: &Observed) -> Result<(), String> {
    if let Some(fault) = &seen.fault {
        return Err(fault.clone());
    }
    judge_head(outcome, seen)?;
    judge_frames(outcome, seen)?;
    judge_end(outcome, seen)?;
    if let Some(published) = &outcome.published {
        require(seen.published.iter().eq(published.iter().map(|data| &data.0)), || format!("published {published:?}"))?;
    }
    require(seen.subscribed || !outcome.subscribed, || "subscribed".to_owned())
}

fn judge_head(outcome: &Outcome, seen: &Observed) -> Result<(), String> {
    let status = seen.head.as_ref().map(|head| head.status);
    let replied = status.is_some() || seen.end.is_some();
    if let Some(accepted) = &outcome.status {
        require(replied && accepted.contains(&status), || {
            let names = accepted.iter().map(|code| code.map_or("none".into(), |c| c.to_string()));
            format!("status {}", names.collect::<Vec<String>>().join(" or "))
        })?;
    }
    require(replied && status.is_none_or(|status| !outcome.not_status.contains(&status)), || {
        format!("a status other than {:?}", outcome.not_status)
    })?;
    let head = seen.head.clone().unwrap_or_default();
    if let Some(line) = &outcome.status_line {
        require(head.status_line == *line, || format!("status line {line:?}"))?;
    }
    for (name, value) in &outcome.headers_include {
        require(head.header(name) == Some(value), || format!("header {name}: {value}"))?;
    }
    let Some(headers) = &outcome.headers_exact else {
        return Ok(());
    };
    let expected = comparable(headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let sent = comparable(head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    require(sent == expected, || format!("exactly the headers {expected:?}"))
}

/// Headers in one order and form: names in lower case, no Server and Date, `Connection` in any case.
fn comparable<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .filter(|(name, _)| name != "server" && name != "date")
        .map(|(name, value)| match &name[..] {
            "connection" => (name, value.to_ascii_lowercase()),
            _ => (name, value),
        })
        .collect();
    headers.sort();
    headers
}

fn judge_frames(outcome: &Outcome, seen: &Observed) -> Result<(), String> {
    let raw: Vec<&[u8]> = seen.frames.iter().map(|(_, frame)| &frame.raw[..]).collect();
    if let Some(frames) = &outcome.frames {
        require(raw.iter().eq(frames.iter().map(|f| &f.0)), || format!("frames {frames:?}"))?;
    }
    let first = raw.iter().take(outcome.frames_prefix.len());
    require(first.eq(outcome.frames_prefix.iter().map(|f| &f.0)), || {
        format!("frames that begin with {:?}", outcome.frames_prefix)
    })?;
    if let Some(by_opcode) = &outcome.frames_by_opcode {
        let of = |opcode| raw.iter().filter(move |frame| frame[0] & 0x0f == opcode);
        let total: usize = by_opcode.values().map(Vec::len).sum();
        let mut groups = by_opcode.iter();
        let same = groups.all(|(opcode, frames)| of(*opcode).eq(frames.iter().map(|f| &f.0)));
        require(same && total == raw.len(), || format!("frames by opcode {by_opcode:?}"))?;
    }
    if let Some(close) = &outcome.close {
        let holds = seen.frames.split_last().is_some_and(|((_, last), _)| {
            let code = last.close_code();
            last.opcode == CLOSE
                && code.is_some_and(|code| close.code.contains(&code))
                && raw[..raw.len() - 1].iter().eq(close.after.iter().map(|f| &f.0))
        });
        require(holds, || format!("a close frame of {:?} after {:?}", close.code, close.after))?;
    }
    for (nth, (at, tolerance)) in outcome.frame_times.iter().enumerate() {
        let on_time = seen.frames.get(nth).is_some_and(|(t, _)| (t - at).abs() <= *tolerance);
        require(on_time, || format!("frame {} at {at} s ± {tolerance}", nth + 1))?;
    }
    Ok(())
}

fn judge_end(outcome: &Outcome, seen: &Observed) -> Result<(), String> {
    let holds = match outcome.end {
        None => true,
        Some(ExpectedEnd::Open) => seen.end.is_none(),
        Some(ExpectedEnd::Fin) => matches!(seen.end, Some((End::Fin, _))),
        Some(ExpectedEnd::Any) => seen.end.is_some(),
    };
    require(holds, || format!("end {:?}", outcome.end))?;
    let Some(limit) = outcome.end_within_s else {
        return Ok(());
    };
    let in_time = seen.end.is_some_and(|(_, after)| after <= limit);
    require(in_time, || format!("the end within {limit} s"))
}

fn require(holds: bool, expected: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(expected()) }
}

mod tests {
    use bytes::{Bytes, BytesMut};

    use super::super::case::{Case, GOLDEN, Kind, Verdict};
    use super::*;
    use crate::support::frame::take_frame;

    fn cases(verdict: Verdict) -> impl Iterator<Item = &'static Case> {
        GOLDEN.cases.iter().filter(move |case| case.verdict == verdict && matches!(case.kind, Kind::Plain { .. }))
    }

    fn accepted(case: &Case, seen: &Observed) -> bool {
        case.expect.any_of.iter().any(|outcome| judge(outcome, seen).is_ok())
    }

    /// The recording as if we had just seen it.
    fn recorded(case: &Case) -> Observed {
        let original = &case.original;
        let head = original.status_line.as_ref().map(|line| Head {
            status: line[9..12].parse().unwrap(),
            status_line: line.clone(),
            headers: original.headers.clone().into_iter().collect(),
        });
        let frame = |data: &[u8]| take_frame(&mut BytesMut::from(data)).unwrap().unwrap();
        Observed {
            head,
            frames: original.frames.iter().map(|f| (f.t, frame(&f.bytes))).collect(),
            fault: None,
            end: match original.end.as_deref() {
                Some("fin") => Some((End::Fin, original.end_at.unwrap_or_default())),
                Some("rst") => Some((End::Rst, original.end_at.unwrap_or_default())),
                _ => None,
            },
            published: original.published.iter().map(|data| data.0.clone()).collect(),
            subscribed: original.subscribed_before_end > 0,
        }
    }

    #[test]
    fn judge_accepts_every_recording_that_is_to_be_kept() {
        for case in cases(Verdict::Keep) {
            for outcome in &case.expect.any_of {
                judge(outcome, &recorded(case)).unwrap_or_else(|e| panic!("{case}: {e}"));
            }
        }
        assert!(cases(Verdict::Keep).count() > 50, "the recordings have gone");
    }

    #[test]
    fn judge_refuses_every_recording_that_is_to_be_fixed() {
        for case in cases(Verdict::Fix) {
            let leaked = case.original.subscription_gone_after_client_end == Some(false);
            assert!(leaked || !accepted(case, &recorded(case)), "{case}");
        }
    }

    #[test]
    fn judge_notices_any_changed_byte_of_any_frame() {
        for case in cases(Verdict::Keep) {
            for nth in 0..case.original.frames.len() {
                let mut seen = recorded(case);
                let mut raw = seen.frames[nth].1.raw.to_vec();
                *raw.last_mut().unwrap() ^= 1;
                seen.frames[nth].1.raw = Bytes::from(raw);
                assert!(!accepted(case, &seen), "{case}: frame {nth}");
            }
        }
    }

    #[test]
    fn judge_notices_one_frame_more_or_less_and_a_wrong_head_or_end_or_publication() {
        let case = cases(Verdict::Keep).find(|case| case.to_string().contains("[hs-normal]")).unwrap();
        let mistakes: [fn(&mut Observed); 9] = [
            |seen| seen.frames.truncate(1),
            |seen| seen.frames.push(seen.frames[0].clone()),
            |seen| seen.head.as_mut().unwrap().status = 200,
            |seen| seen.head.as_mut().unwrap().headers.push(("X-More".into(), String::new())),
            |seen| seen.head.as_mut().unwrap().headers[0].1.push('x'),
            |seen| seen.end = Some((End::Fin, 0.0)),
            |seen| seen.published.push(b"twice".to_vec()),
            |seen| seen.subscribed = false,
            |seen| seen.fault = Some("a masked frame".into()),
        ];
        for (nth, mistake) in mistakes.iter().enumerate() {
            let mut seen = recorded(case);
            mistake(&mut seen);
            assert!(!accepted(case, &seen), "mistake {nth} passes");
        }
    }
}
