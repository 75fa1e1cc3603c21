//! The state that load threads, publishers and the conductor share during a run.
//!
//! Counters and phases only; each thread's own figures are in its `book`. May not enter: sockets.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::{io, iter};

use rustix::event::{EventfdFlags, eventfd};

use crate::clock::{Clock, Micros};
use crate::flight::Flight;
use crate::plan::{Pace, Plan, Publish};

/// The phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    Publish,
    /// Publishing has ended; publications under way may arrive.
    Drain,
    Stop,
}

/// What clients that come back with a position show, and what they are owed.
#[derive(Debug)]
pub(crate) struct Resume {
    /// By channel: the position behind publication 0.
    pub(crate) tokens: Vec<String>,
    /// The argument of the request that takes it.
    pub(crate) argument: String,
    /// Publications 1 to this one were missed.
    pub(crate) missed: u32,
}

/// The shared state of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) plan: Plan,
    pub(crate) clock: Clock,
    /// The key that this run's publications carry.
    pub(crate) tag: u16,
    phase: AtomicU8,
    /// The window of the measurement; `Micros::MAX` until it is known.
    pub(crate) begin: AtomicU64,
    pub(crate) end: AtomicU64,
    /// Subscribers by channel.
    pub(crate) live: Vec<AtomicU32>,
    /// Publications by sender.
    pub(crate) sent: Vec<AtomicU32>,
    pub(crate) flights: Vec<Flight>,
    wakers: Vec<OwnedFd>,
    pub(crate) opened: AtomicU32,
    pub(crate) failed: AtomicU32,
    /// When the last connection was opened.
    pub(crate) last_opened: AtomicU64,
    pub(crate) published: AtomicU64,
    /// Deliveries of all kinds.
    pub(crate) deliveries: AtomicU64,
    /// Deliveries owed, and those that arrived of them.
    pub(crate) owed: AtomicU64,
    pub(crate) landed: AtomicU64,
    /// Set before the first connection if all show positions; and how many have what they missed, the last since when.
    pub(crate) resume: OnceLock<Resume>,
    pub(crate) whole: AtomicU32,
    pub(crate) last_whole: AtomicU64,
    fatal: Mutex<Option<String>>,
}

impl Run {
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        let threads = plan.threads;
        // By connections, every thread publishes its share; else the first publishes all.
        let publishers = if plan.publish == Publish::WebSocket { threads } else { 1 };
        let flights = (0..publishers).map(|publisher| {
            let window = if let Pace::InFlight(window) = plan.pace { share(window, publishers, publisher) } else { 1 };
            Flight::new(u8::try_from(publisher).unwrap_or(u8::MAX), window)
        });
        let wakers = (0..threads).map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK));
        let zeros = |count: u32| iter::repeat_with(AtomicU32::default).take(count as usize).collect::<Vec<_>>();
        Ok(Self {
            clock: Clock::start(),
            tag: fastrand::u16(..),
            phase: AtomicU8::new(0),
            begin: AtomicU64::new(Micros::MAX),
            end: AtomicU64::new(Micros::MAX),
            live: zeros(plan.channels),
            sent: zeros(plan.senders()),
            flights: flights.collect(),
            wakers: wakers.collect::<Result<_, _>>()?,
            opened: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            last_opened: AtomicU64::new(0),
            published: AtomicU64::new(0),
            deliveries: AtomicU64::new(0),
            owed: AtomicU64::new(0),
            landed: AtomicU64::new(0),
            resume: OnceLock::new(),
            whole: AtomicU32::new(0),
            last_whole: AtomicU64::new(0),
            fatal: Mutex::new(None),
            plan,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Connect,
            1 => Phase::Publish,
            2 => Phase::Drain,
            _ => Phase::Stop,
        }
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
        for thread in 0..self.wakers.len() {
            self.wake(thread);
        }
    }

    pub(crate) fn waker(&self, thread: usize) -> Option<&OwnedFd> {
        self.wakers.get(thread)
    }

    pub(crate) fn wake(&self, thread: usize) {
        if let Some(waker) = self.wakers.get(thread) {
            // A full waker means that the thread is awake already.
            rustix::io::write(waker, &1_u64.to_ne_bytes()).ok();
        }
    }

    /// The run cannot go on; the first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        self.fatal.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(reason);
    }

    pub(crate) fn fatal(&self) -> Option<String> {
        self.fatal.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// The part of `whole` that falls to `place` of `parts`.
pub(crate) fn share(whole: u32, parts: u32, place: u32) -> u32 {
    whole / parts + u32::from(place < whole % parts)
}

/// Reads a counter by place.
pub(crate) fn load(counters: &[AtomicU32], place: u32) -> u32 {
    counters.get(place as usize).map_or(0, |counter| counter.load(Ordering::Acquire))
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up() {
        assert_eq!((0..3).map(|place| share(64, 3, place)).collect::<Vec<_>>(), [22, 21, 21]);
        assert_eq!((0..3).map(|place| share(1, 3, place)).sum::<u32>(), 1);
    }
}
