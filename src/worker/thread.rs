//! A worker's thread: its runtime, and the tasks that share it.
//!
//! May not enter: what the tasks do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::core::Core;
use super::reactor;
use super::seed::{BrokerSeed, WorkerSeed};
use super::state::Worker;
use crate::broker::{Broker, memory, redis};
use crate::clock::{self, Clock};
use crate::placement::Placement;
use crate::protocol::endpoint::Endpoint;

/// Runs a worker until it has drained, or at once to its end when its server is gone.
///
/// `front` brings connections to it.
///
/// # Errors
/// When the thread's runtime or reactor cannot be made.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    seed: WorkerSeed,
    front: impl FnOnce(Rc<Worker>) -> F,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (reactor, registrar) = reactor::new()?;
        let WorkerSeed { requests, mut orders, mut asks, .. } = seed;
        let placement = match &seed.broker {
            BrokerSeed::Memory(_) => Placement::over(1),
            BrokerSeed::Redis(deployment) => deployment.placement(),
        };
        let worker = Rc::new(Worker {
            endpoints: seed.config.endpoints.iter().map(|config| Rc::new(Endpoint::new(config.clone()))).collect(),
            broker: match seed.broker {
                BrokerSeed::Memory(seed) => Broker::Memory(memory::Port::new(seed)),
                BrokerSeed::Redis(deployment) => Broker::Redis(redis::Servers::new(deployment, placement.clone())),
            },
            core: RefCell::new(Core::new(&seed.config, placement.clone(), registrar, seed.shard.clone())),
            shard: seed.shard,
            metrics: seed.metrics,
            max_sessions: seed.max_sessions,
            config: seed.config,
            clock: Clock::new(),
            is_draining: Cell::new(false),
            is_resting: Cell::new(seed.rests),
            rests_since: Cell::new(clock::START),
            is_frozen: Cell::new(seed.rests),
            is_closing_gapped: Cell::new(false),
            was_restarted: Cell::new(false),
            handshakes: Cell::new(0),
            again: Notify::new(),
            next_flush: Cell::new(None),
            flush_sooner: Notify::new(),
            gapped: RefCell::default(),
            gap: Notify::new(),
        });
        // Dropped, and so ended, with this future.
        let mut tasks = JoinSet::new();
        let of = |worker: &Rc<Worker>| worker.clone();
        tasks.spawn_local({
            let worker = of(&worker);
            async move { worker.broker.run(worker.clone()).await }
        });
        tasks.spawn_local(of(&worker).react(reactor));
        tasks.spawn_local(of(&worker).tick());
        tasks.spawn_local(of(&worker).read_again());
        tasks.spawn_local(of(&worker).flush_held_back());
        tasks.spawn_local(of(&worker).close_gapped());
        tasks.spawn_local(front(of(&worker)));
        if let Some(requests) = requests {
            tasks.spawn_local(of(&worker).take_requests(requests));
        }
        tokio::select! {
            () = worker.serve_and_drain(&mut orders) => Ok(()),
            () = worker.obey(&mut asks) => Ok(()),
            Some(ended) = tasks.join_next() => Err(match ended {
                Err(panic) => std::io::Error::other(panic),
                Ok(()) => std::io::Error::other("a task of the worker ended before its time"),
            }),
        }
    })
}
