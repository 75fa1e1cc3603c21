//! A worker's thread: its runtime, and the tasks that share it.
//!
//! May not enter: what the tasks do.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Waker;

use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinSet};

use super::admission::Handle;
use super::command::Command;
use super::core::Core;
use super::phase::Phase;
use super::reactor::{self, Registrar};
use super::seed::{BrokerSeed, WorkerSeed};
use super::state::Worker;
use super::turn::Turns;
use crate::broker::{Broker, memory, redis};
use crate::clock::{self, Clock};
use crate::placement::Placement;
use crate::protocol::endpoint::Endpoint;

/// Runs a worker until it has drained, or at once to its end when its server is gone.
///
/// `front` brings connections to it.
///
/// # Errors
/// When the thread's runtime or reactor cannot be made, and when a task of the worker ends before its time.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    seed: WorkerSeed,
    front: impl FnOnce(Handle) -> F,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (reactor, registrar) = reactor::new()?;
        let (worker, mailbox) = planted(seed, registrar);
        let worker = Rc::new(RefCell::new(worker));
        // Dropped, and so ended, with this future.
        let mut tasks = JoinSet::new();
        let pumped = worker.clone();
        tasks.spawn_local(poll_fn(move |cx| pumped.borrow_mut().poll_broker(cx)));
        tasks.spawn_local(front(Handle::of(&worker)));
        // A task of its own, which is polled when it is woken; this future is polled with every other task.
        let mut turns = tokio::task::spawn_local(Turns::new(worker, mailbox, reactor).run());
        tokio::select! {
            ended = &mut turns => ended.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Some(ended) = tasks.join_next() => Err(before_its_time(ended)),
        }
    })
}

/// The worker of a seed, and what it is told by.
fn planted(seed: WorkerSeed, registrar: Registrar) -> (Worker, mpsc::Receiver<Command>) {
    let placement = match &seed.broker {
        BrokerSeed::Memory(_) => Placement::over(1),
        BrokerSeed::Redis(deployment) => deployment.placement(),
    };
    let broker = match seed.broker {
        BrokerSeed::Memory(seed) => Broker::Memory(memory::Port::new(seed)),
        BrokerSeed::Redis(deployment) => Broker::Redis(redis::Pool::new(&deployment, placement.clone())),
    };
    let worker = Worker {
        endpoints: seed.config.endpoints.iter().map(|config| Rc::new(Endpoint::new(config.clone()))).collect(),
        broker,
        core: Core::new(&seed.config, placement, registrar, seed.shard.clone()),
        shard: seed.shard,
        metrics: seed.metrics,
        max_sessions: seed.max_sessions,
        config: seed.config,
        clock: Clock::new(),
        phase: if seed.awaits_sessions { Phase::Frozen { since: clock::START } } else { Phase::Serving },
        waits: Vec::new(),
        gaps: Vec::new(),
        missing: None,
        next_flush: None,
        handshakes: seed.handshakes,
        resumed: Rc::new(Notify::new()),
        waker: Waker::noop().clone(),
    };
    (worker, seed.mailbox)
}

fn before_its_time(ended: Result<(), JoinError>) -> io::Error {
    match ended {
        Err(panic) => io::Error::other(panic),
        Ok(()) => io::Error::other("a task of the worker ended before its time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::config::Config;
    use crate::metrics::{Metrics, Shard};
    use crate::worker::command::{Answer, Mailbox, mailbox};
    use crate::worker::handshakes::Handshakes;
    use crate::worker::snapshot::Adopted;
    use std::sync::Arc;
    use std::time::Duration;

    /// A worker on a thread of its own, with the embedded broker and without connections.
    struct Running {
        sender: mpsc::Sender<Command>,
        handshakes: Arc<Handshakes>,
        ended: std::sync::mpsc::Receiver<io::Result<()>>,
    }

    impl Running {
        fn start(awaits_sessions: bool) -> Self {
            let (sender, mailbox) = mailbox();
            let (handshakes, shard) = (Arc::new(Handshakes::default()), Arc::new(Shard::new()));
            let config = Config { drain_time: Duration::from_millis(50), ..Config::default() };
            let seed = WorkerSeed {
                config: Arc::new(config),
                broker: BrokerSeed::Memory(memory::bus(1).pop().unwrap()),
                metrics: Metrics::new([shard.clone()].into()),
                shard,
                max_sessions: 10,
                mailbox,
                handshakes: handshakes.clone(),
                awaits_sessions,
            };
            let (tell, ended) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || tell.send(run(seed, |_| std::future::pending::<()>())));
            Self { sender, handshakes, ended }
        }

        fn tell(&self, command: impl FnOnce(Answer) -> Command) -> Result<(), String> {
            Mailbox::of(&self.sender).blocking_ask(command).unwrap()
        }

        fn finish_handshakes(&self, within: Duration) -> Duration {
            let start = std::time::Instant::now();
            self.tell(|tell| Command::FinishHandshakes { within, tell }).unwrap();
            start.elapsed()
        }

        fn end(self) {
            drop(self.sender);
            self.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn a_worker_is_quiesced_comes_to_the_marker_and_resumes() {
        let worker = Running::start(false);
        let publisher = crate::Publisher::through(Mailbox::of(&worker.sender));
        let publish = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let publish = publisher.publish("chat:a", "x");
            runtime.block_on(async { tokio::time::timeout(Duration::from_millis(200), publish).await })
        };
        assert_eq!(publish(), Ok(Ok(())));
        worker.tell(|tell| Command::Quiesce { within: PATIENCE, tell }).unwrap();
        assert!(publish().is_err(), "nothing is published while a worker is quiesced");
        worker.tell(|tell| Command::AwaitMarker { within: PATIENCE, tell }).unwrap();
        let snapshot = Mailbox::of(&worker.sender).blocking_ask(Command::Collect).unwrap();
        assert_eq!(snapshot.texts.len(), 1, "the message that waits is in the snapshot");
        worker.tell(Command::Resume).unwrap();
        assert_eq!(publish(), Ok(Ok(())));
        worker.end();
    }

    #[test]
    fn a_worker_that_awaits_sessions_resumes_with_them() {
        let worker = Running::start(true);
        worker.tell(|tell| Command::Connect { within: PATIENCE, tell }).unwrap();
        let channels = vec![Channel::from_static(b"chat:a"), Channel::from_static(b"chat:b")];
        worker.tell(|tell| Command::Reserve { channels, within: PATIENCE, tell }).unwrap();
        worker.tell(|tell| Command::Adopt(Adopted::default(), tell)).unwrap();
        worker.tell(Command::Resume).unwrap();
        let fault = Mailbox::of(&worker.sender).blocking_ask(Command::State).unwrap().fault;
        assert_eq!(fault, None);
        worker.end();
    }

    #[test]
    fn handshakes_are_waited_for_until_the_last_has_finished_or_the_time_is_up() {
        let worker = Running::start(false);
        assert!(worker.finish_handshakes(PATIENCE) < PATIENCE / 2, "there is none");
        let handshake = worker.handshakes.begin();
        let within = Duration::from_millis(150);
        let waited = worker.finish_handshakes(within);
        assert!(waited >= within && waited < PATIENCE / 2, "{waited:?}");
        let finishing = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(50));
            drop(handshake);
        });
        assert!(worker.finish_handshakes(PATIENCE) < PATIENCE / 2);
        finishing.join().unwrap();
        worker.end();
    }

    #[test]
    fn a_drain_waits_for_handshakes_and_ends_the_worker() {
        let worker = Running::start(false);
        let handshake = worker.handshakes.begin();
        worker.sender.blocking_send(Command::Drain).unwrap();
        let state = Mailbox::of(&worker.sender).blocking_ask(Command::State).unwrap();
        assert!(state.handshakes == 1 && state.fault.unwrap().contains("goes away"));
        assert!(worker.ended.recv_timeout(Duration::from_millis(200)).is_err());
        drop(handshake);
        worker.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        assert!(worker.sender.blocking_send(Command::Drain).is_err());
    }

    #[test]
    fn a_worker_ends_when_it_is_told_to_leave() {
        let worker = Running::start(false);
        worker.sender.blocking_send(Command::Leave).unwrap();
        worker.ended.recv_timeout(PATIENCE).unwrap().unwrap();
    }
}
