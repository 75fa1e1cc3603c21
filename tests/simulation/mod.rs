//! The simulation: sessions, hub, outbox and links of whole workers, a model of Redis and clients, on one seed and a
//! virtual clock, in one thread. Each run breaks what can break, and is judged by a ledger.
//!
//! `world.rs` lets time pass; `plan.rs` sizes a run, `pump.rs` runs a worker; `redis.rs` is the model; `links.rs` and
//! `stream.rs` carry bytes between the two, `node_links.rs` has the links' machines, `worker.rs` and `worker_handover.rs`
//! the worker; `actions.rs` and `client.rs` are clients; `faults.rs` and `handover.rs`
//! break things; `ledger.rs` judges. A failing seed is printed: `SIMULATION_SEED=7 cargo test --lib simulation` runs that
//! one again, exactly; `SIMULATION_SEEDS=200000` runs more, from `SIMULATION_FIRST` on.

mod actions;
mod client;
mod faults;
mod handover;
mod ledger;
mod links;
mod node_links;
mod plan;
mod pump;
mod redis;
mod stream;
mod world;

use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use self::world::{ACTIVE, HEALED, MILLISECOND, SECOND, World};

/// Seeds of a default run. Chosen: forty seconds on two quiet cores, in a debug build.
const SEEDS: u64 = 2_000;

/// A run ends early after so many seeds that fail. Chosen: enough to tell a rare finding from a frequent one.
const MAX_FAILED: usize = 10;

/// Runs a seed. Returns what tells two runs apart.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    let mut at = 0;
    while at < ACTIVE + HEALED {
        at += 500 * MILLISECOND;
        world.run(at);
        world.judge_links();
    }
    for channel in 0..world.plan.channels {
        world.publish(&format!("c:chan{channel}"), 0);
    }
    world.run(at + 3 * SECOND);
    world.judge();
    world.trace
}

/// Runs seeds on all cores. Returns how many ran, and those that failed.
fn run_all(seeds: &Range<u64>) -> (u64, Vec<u64>) {
    let (next, ran, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        while failed.lock().unwrap().len() < MAX_FAILED {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            ran.fetch_add(1, Ordering::Relaxed);
            if std::panic::catch_unwind(|| run(seed)).is_err() {
                eprintln!("this run has the seed {seed}: SIMULATION_SEED={seed}");
                failed.lock().unwrap().push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_unstable();
    (ran.into_inner(), failed)
}

#[test]
fn no_seed_breaks_a_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect("a seed is a number"));
    let seeds = if let Some(seed) = number("SIMULATION_SEED") {
        seed..seed + 1
    } else {
        let first = number("SIMULATION_FIRST").unwrap_or(0);
        first..first + number("SIMULATION_SEEDS").unwrap_or(SEEDS)
    };
    let begun = Instant::now();
    let (ran, failed) = run_all(&seeds);
    eprintln!("{ran} seeds of {seeds:?} ran in {:.1?}, {} failed", begun.elapsed(), failed.len());
    assert!(failed.is_empty(), "these seeds failed, see above: {failed:?}");
}

#[test]
fn a_seed_is_replayed_exactly() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
