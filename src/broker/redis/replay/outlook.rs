//! How far back a node's replication log reaches at the present rate, in one sentence for an operator. May not enter:
//! the reading itself.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::ReplayError;
use super::info::Kept;
use super::link::ReplayLink;
use super::reader::{ReadLimits, Reading};
use crate::broker::redis::connect::Settings;
use crate::config::ReplayPolicy;

/// The time over which the rate is measured.
const MEASURED: Duration = Duration::from_secs(1);

/// The time that a log should reach back. Chosen: a client's network change, a failover and a restart of webws take
/// less.
const WANTED_SECONDS: u64 = 60;

/// A log and the rate at which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outlook {
    pub(crate) kept: Kept,
    /// Bytes a second.
    pub(crate) rate: u64,
}

/// Looks at a node's log for a second, and opens the log, to be sure that this is permitted.
///
/// # Errors
/// Why the log cannot be read.
pub(crate) async fn outlook(settings: &Settings) -> Result<Outlook, ReplayError> {
    let (mut link, start) = (ReplayLink::connect(settings).await?, Instant::now());
    let before = link.state().await?;
    before.kept.ok_or(ReplayError::NoLog)?;
    Reading::open(settings, before.end(), ReadLimits::default()).await?;
    sleep(MEASURED).await;
    let after = link.state().await?;
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = after.offset.saturating_sub(before.offset).saturating_mul(1_000) / millis;
    Ok(Outlook { kept: after.kept.ok_or(ReplayError::NoLog)?, rate })
}

/// What an operator is told of a log.
pub(crate) fn sentence(outlook: &Result<Outlook, ReplayError>, policy: ReplayPolicy) -> String {
    match outlook {
        Ok(outlook) => outlook.to_string(),
        Err(ReplayError::NoLog) if policy == ReplayPolicy::On => {
            "there is no replication log yet; webws makes one when it runs".to_owned()
        }
        Err(ReplayError::NoLog) => {
            "there is no replication log, so nothing can be replayed: set redis.replay = \"on\", and webws makes and \
             keeps one, or attach a replica"
                .to_owned()
        }
        Err(error) => error.to_string(),
    }
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kept { len, size, .. } = self.kept;
        write!(f, "the replication log reaches back {}", Bytes(len))?;
        if len < size {
            // It was made lately, and grows.
            write!(f, " (at most {})", Bytes(size))?;
        }
        let Some(seconds) = len.checked_div(self.rate) else {
            return f.write_str("; nothing was written within a second");
        };
        write!(f, ", {} at the present {}/s", Length(seconds), Bytes(self.rate))?;
        let wanted = self.rate.saturating_mul(WANTED_SECONDS);
        if wanted <= size {
            return Ok(());
        }
        // Redis' "mb" is 2^20 bytes.
        write!(f, "; to cover one minute, set repl-backlog-size to {}mb", wanted.div_ceil(1 << 20))
    }
}

/// A size in at most three digits and a unit.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut unit, mut rest) = (1, "B");
        for larger in ["kB", "MB", "GB"] {
            if self.0 / unit >= 1_000 {
                (unit, rest) = (unit * 1_000, larger);
            }
        }
        let (whole, tenths) = (self.0 / unit, self.0 % unit * 10 / unit);
        if whole < 10 && unit > 1 { write!(f, "{whole}.{tenths} {rest}") } else { write!(f, "{whole} {rest}") }
    }
}

/// A time in its largest unit.
struct Length(u64);

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds @ 120..7_200 => write!(f, "{} min", seconds / 60),
            seconds @ 7_200..172_800 => write!(f, "{} h", seconds / 3_600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_described_in_one_line_with_the_remedy() {
        for (len, size, rate, said) in [
            (1 << 20, 1 << 20, 0, "reaches back 1.0 MB; nothing was written within a second"),
            (
                1 << 20,
                1 << 20,
                87_000,
                "1.0 MB, 12 s at the present 87 kB/s; to cover one minute, set repl-backlog-size to 5mb",
            ),
            (1 << 20, 1 << 20, 1, "reaches back 1.0 MB, 12 days at the present 1 B/s"),
            (64 << 20, 64 << 20, 100_000, "reaches back 67 MB, 11 min at the present 100 kB/s"),
            (1_000, 1 << 20, 100, "reaches back 1.0 kB (at most 1.0 MB), 10 s at the present 100 B/s"),
            (
                1 << 20,
                1 << 20,
                9_999_999,
                "0 s at the present 9.9 MB/s; to cover one minute, set repl-backlog-size to 573mb",
            ),
            (u64::MAX, u64::MAX, u64::MAX, "reaches back 18446744073 GB, 1 s at the present 18446744073 GB/s"),
        ] {
            let told = sentence(&Ok(Outlook { kept: Kept { first: 1, len, size }, rate }), ReplayPolicy::Auto);
            assert!(told.ends_with(said) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn what_a_missing_log_needs_depends_on_the_setting() {
        let told = |policy| sentence(&Err(ReplayError::NoLog), policy);
        assert!(told(ReplayPolicy::Auto).contains("redis.replay = \"on\""));
        assert!(!told(ReplayPolicy::On).contains("redis.replay"));
        let refused = ReplayError::NotPermitted { refusal: "NOPERM no".to_owned() };
        assert!(sentence(&Err(refused), ReplayPolicy::Auto).contains("+info +replconf +psync"));
    }
}
