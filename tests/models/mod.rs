//! Model tests: a room and a naive model of the room get the same random operations, and are compared after each.
//!
//! Compiled into the library's unit tests, because the rooms are the crate's own. A failing seed is printed;
//! `MODEL_SEED=7 cargo test --lib models` runs that one alone, `MODEL_SEEDS=100000` runs more. May not enter: several
//! rooms at once, which is the simulation's part.

mod hub;
mod outbox;
mod stream;

use fastrand::Rng;

use crate::placement::{Node, SLOTS};

/// Seeds of a default run. Chosen: the models together take a few seconds in a debug build.
const SEEDS: u64 = 1_000;

/// Names the seed of a run that panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this run has the seed {0}: MODEL_SEED={0}", self.0);
        }
    }
}

/// Runs `run` with each seed.
fn each_seed(mut run: impl FnMut(&mut Rng)) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect("a seed is a number"));
    let seeds = match (number("MODEL_SEED"), number("MODEL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS),
    };
    for seed in seeds {
        let _named = Named(seed);
        run(&mut Rng::with_seed(seed));
    }
}

/// One of several.
fn one_of<T: Clone>(rng: &mut Rng, all: &[T]) -> Option<T> {
    (!all.is_empty()).then(|| all[rng.usize(..all.len())].clone())
}

/// Owners of all slots among so many nodes; some slots have none.
fn some_owners(rng: &mut Rng, nodes: usize) -> Vec<Option<Node>> {
    let one = |rng: &mut Rng| rng.usize(..=nodes).checked_sub(1).map(Node::at);
    let some: Vec<_> = (0..16).map(|_| one(rng)).collect();
    some.into_iter().cycle().take(SLOTS.into()).collect()
}
