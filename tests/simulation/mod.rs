//! The simulation: sessions, hub, outbox and links of whole workers, a model of Redis and clients, on one seed and a
//! virtual clock, in one thread. Each run breaks what can break, and is judged by a ledger.
//!
//! `world.rs` lets time pass; `plan.rs` sizes a run, `pump.rs` runs a worker; `redis.rs` is the model; `links.rs` and
//! `stream.rs` carry bytes between the two, `node_links.rs` has the links' machines, `worker.rs` and `worker_handover.rs`
//! the worker; `actions.rs` and `client.rs` are clients; `faults.rs` and `handover.rs`
//! break things; `ledger.rs` judges. A failing seed is printed: `SIMULATION_SEED=7 cargo test --lib simulation` runs that
//! one again, exactly; `SIMULATION_SEEDS=200000` runs more.

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

use self::world::{ACTIVE, HEALED, MILLISECOND, SECOND, World};

/// Seeds of a default run. Chosen: forty seconds on two quiet cores, in a debug build.
const SEEDS: u64 = 2_000;

/// Names the seed of a run that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this run has the seed {0}: SIMULATION_SEED={0}", self.0);
        }
    }
}

/// Runs a seed. Returns what tells two runs apart.
fn run(seed: u64) -> u64 {
    let _named = Named(seed);
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

#[test]
fn no_seed_breaks_a_promise() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect("a seed is a number"));
    let seeds = match (number("SIMULATION_SEED"), number("SIMULATION_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS),
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    std::thread::scope(|scope| {
        let runs = (0..threads).map(|first| {
            let seeds = seeds.clone();
            scope.spawn(move || {
                seeds.skip(usize::try_from(first).unwrap()).step_by(usize::try_from(threads).unwrap()).for_each(
                    |seed| {
                        run(seed);
                    },
                )
            })
        });
        for run in runs.collect::<Vec<_>>() {
            run.join().expect("a seed has failed, see above");
        }
    });
}

#[test]
fn a_seed_is_replayed_exactly() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
