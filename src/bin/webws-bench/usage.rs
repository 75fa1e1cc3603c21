//! CPU time and resident memory of processes, from /proc (proc(5)).
//!
//! CPU time is the scheduler's own count in nanoseconds (`schedstat`), summed over threads: the ticks of `stat` are too
//! coarse for an idle process. May not enter: what the processes do.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::str::FromStr;
use std::time::Duration;

/// Processes to watch, under one name; with their descendants, so that nginx is its master's pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watch {
    pub(crate) name: String,
    pub(crate) pids: Vec<u32>,
}

/// The usage of some processes up to one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a CPU, by thread.
    cpu: HashMap<u32, u64>,
    /// Resident memory.
    pub(crate) resident_kb: u64,
}

impl FromStr for Watch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pids) = text.split_once('=').ok_or("write NAME=PID or NAME=PID,PID, as webws=4711")?;
        let pids = pids
            .split(',')
            .map(|pid| pid.trim().parse().map_err(|_| format!("'{pid}' is no process id: write NAME=PID,PID")))
            .collect::<Result<Vec<_>, _>>()?;
        if name.is_empty() {
            return Err("the name before '=' is missing: write NAME=PID".to_owned());
        }
        Ok(Self { name: name.to_owned(), pids })
    }
}

impl Watch {
    /// This process.
    pub(crate) fn itself() -> Self {
        Self { name: "webws-bench (itself)".to_owned(), pids: vec![std::process::id()] }
    }

    /// Why the processes cannot be watched, if so.
    pub(crate) fn fault(&self) -> Option<String> {
        let missing = self.pids.iter().find(|pid| fs::metadata(format!("/proc/{pid}")).is_err())?;
        Some(format!("--watch {}: there is no process {missing}; is it running, and on this machine?", self.name))
    }

    /// The usage of the processes up to now.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pid in family(&self.pids) {
            usage.resident_kb += resident_kb(pid).unwrap_or(0);
            for thread in numbers_in(&format!("/proc/{pid}/task")) {
                if let Some(nanoseconds) = cpu_nanoseconds(pid, thread) {
                    usage.cpu.insert(thread, nanoseconds);
                }
            }
        }
        usage
    }
}

impl Usage {
    /// CPU time used since `earlier`. Threads that ended in between are not counted.
    pub(crate) fn cpu_since(&self, earlier: &Self) -> Duration {
        let used = |(thread, now): (&u32, &u64)| now.saturating_sub(earlier.cpu.get(thread).copied().unwrap_or(0));
        Duration::from_nanos(self.cpu.iter().map(used).sum())
    }
}

/// The processes and their descendants, without this process unless it is named.
fn family(pids: &[u32]) -> HashSet<u32> {
    let mut found: HashSet<u32> = pids.iter().copied().collect();
    let parents: Vec<(u32, u32)> = numbers_in("/proc")
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .filter(|(pid, _)| *pid != std::process::id())
        .collect();
    loop {
        let before = found.len();
        let children: Vec<u32> =
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

fn numbers_in(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn cpu_nanoseconds(pid: u32, thread: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
    stat.split_whitespace().next()?.parse().ok()
}

fn resident_kb(pid: u32) -> Option<u64> {
    // VmRSS of `status` is counted per CPU and late by some pages; this one is exact.
    let exact = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok().and_then(|text| field(&text, "Rss:"));
    exact.or_else(|| field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_a_name_and_process_ids() {
        assert_eq!("nginx=1,22".parse(), Ok(Watch { name: "nginx".into(), pids: vec![1, 22] }));
        for (text, hint) in [("webws", "NAME=PID"), ("webws=x", "'x'"), ("=1", "name"), ("a=", "NAME=PID")] {
            let error = text.parse::<Watch>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(Watch { name: "gone".into(), pids: vec![u32::MAX] }.fault().unwrap().contains("no process 4294967295"));
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let earlier = Watch::itself().usage();
        assert!(earlier.resident_kb > 100);
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(Watch::itself().usage().cpu_since(&earlier) > Duration::from_millis(1));
        assert_eq!(Watch::itself().fault(), None);
    }

    #[test]
    fn children_belong_to_their_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(family(&[std::process::id()]).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
