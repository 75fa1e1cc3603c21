//! A worker's thread: its runtime, the worker's loop, and the handshakes beside it.
//!
//! May not enter: what the loop does.

use std::io;
use std::rc::Rc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::admission::{Handle, MAX_OPENINGS};
use super::core::Core;
use super::phase::Phase;
use super::reactor;
use super::seed::{BrokerSeed, WorkerSeed};
use super::state::Worker;
use super::turn::{Sources, Turns};
use crate::broker::{Broker, memory, redis};
use crate::clock::{self, Clock};
use crate::placement::Placement;
use crate::protocol::endpoint::Endpoint;

/// Runs a worker until its drain is over, or until its server is gone.
///
/// `front` passes connections to the worker.
///
/// # Errors
/// When the thread's runtime or reactor cannot be made, or a task of the worker ends early.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    seed: WorkerSeed,
    front: impl FnOnce(Handle) -> F,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (turns, handle) = planted(seed)?;
        // Dropped with this future, which ends the task.
        let mut tasks = JoinSet::new();
        tasks.spawn_local(front(handle));
        // A separate task is polled only when woken; this future is polled with every other task.
        let mut turns = tokio::task::spawn_local(turns.run());
        tokio::select! {
            ended = &mut turns => ended.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Some(ended) = tasks.join_next() => Err(before_its_time(ended)),
        }
    })
}

/// A worker from its seed, its sources of work, and the handle for its handshakes.
fn planted(seed: WorkerSeed) -> io::Result<(Turns, Handle)> {
    let (reactor, registrar) = reactor::new()?;
    let (broker, placement) = match seed.broker {
        BrokerSeed::Memory(seed) => (Broker::Memory(memory::Port::new(seed)), Placement::over(1)),
        BrokerSeed::Redis(deployment) => {
            let placement = deployment.placement();
            (Broker::Redis(redis::RedisBroker::new(&deployment, placement.clone())), placement)
        }
    };
    let endpoints: Rc<[_]> =
        seed.config.endpoints.iter().map(|config| Rc::new(Endpoint::new(config.clone()))).collect();
    let (sender, openings) = mpsc::channel(MAX_OPENINGS);
    let handle = Handle {
        config: seed.config.clone(),
        endpoints: endpoints.clone(),
        shard: seed.shard.clone(),
        mailbox: seed.own.clone(),
        openings: sender,
    };
    let worker = Worker {
        endpoints,
        core: Core::new(&seed.config, placement, registrar, seed.shard.clone()),
        shard: seed.shard,
        metrics: seed.metrics,
        max_sessions: seed.max_sessions,
        budget: seed.budget,
        shed_again: clock::START,
        config: seed.config,
        clock: Clock::new(),
        phase: if seed.awaits_sessions { Phase::Frozen { since: clock::START } } else { Phase::Serving },
        own: seed.own,
        siblings: seed.siblings.into(),
        waits: Vec::new(),
        gaps: Vec::new(),
        missing: None,
        next_flush: None,
        handshakes: seed.handshakes,
    };
    let sources = Sources { broker, mailbox: seed.mailbox, openings, reactor };
    Ok((Turns::new(worker, sources), handle))
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
    use crate::memory::Budget;
    use crate::metrics::{Metrics, Shard};
    use crate::position::MilestoneId;
    use crate::protocol::encoding::Encoding;
    use crate::protocol::session::Grant;
    use crate::worker::command::Command;
    use crate::worker::command::{Answer, Mailbox, mailbox};
    use crate::worker::handshakes::Handshakes;
    use crate::worker::opening::{Hello, Opening, Refusal};
    use crate::worker::snapshot::Adopted;
    use bytes::Bytes;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
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
            Self::start_with(awaits_sessions, |_| std::future::pending::<()>())
        }

        fn start_with<F: Future<Output = ()> + 'static>(
            awaits_sessions: bool,
            front: impl FnOnce(Handle) -> F + Send + 'static,
        ) -> Self {
            let (sender, mailbox) = mailbox();
            let (handshakes, shard) = (Arc::new(Handshakes::default()), Arc::new(Shard::new()));
            let config = Config { drain_time: Duration::from_millis(50), ..Config::default() };
            let seed = WorkerSeed {
                config: Arc::new(config),
                broker: BrokerSeed::Memory(memory::bus(1).pop().unwrap()),
                metrics: Metrics::new([shard.clone()].into()),
                shard,
                max_sessions: 10,
                budget: Budget::new(usize::MAX),
                mailbox,
                own: Mailbox::of(&sender),
                siblings: Vec::new(),
                handshakes: handshakes.clone(),
                awaits_sessions,
            };
            let (tell, ended) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || tell.send(run(seed, front)));
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
        assert_eq!(snapshot.messages.len(), 1, "the message that waits is in the snapshot");
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
    fn a_milestone_that_is_not_heard_delays_an_answer_only_for_a_time() {
        let worker = Running::start(false);
        let within = Duration::from_millis(50);
        let start = std::time::Instant::now();
        worker.tell(|tell| Command::Hear { milestone: MilestoneId(7), within, tell }).unwrap();
        assert!(start.elapsed() >= within, "it is waited for");
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
        assert!(state.handshakes == 1 && state.fault.unwrap().contains("shutting down"));
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

    /// Opens a connection on `chat:a`; a refusal is sent on the returned receiver.
    async fn open(worker: &Handle, socket: UnixStream) {
        let endpoint = worker.endpoints.first().unwrap().clone();
        let hello = Hello { socket: socket.into(), head: Bytes::from_static(b"101 "), read_ahead: Vec::new() };
        let refuse = Box::new(|socket: OwnedFd, refusal: Refusal| {
            UnixStream::from(socket).write_all(refusal.to_string().as_bytes()).unwrap();
        });
        let grant = Grant::of(endpoint, Channel::from_static(b"chat:a"), Encoding::Plain);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        worker.open(Opening { grant, deadline, hello, refuse }).await;
    }

    fn said(client: &mut UnixStream) -> Vec<u8> {
        let mut said = [0; 100];
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = client.read(&mut said).unwrap();
        said[..length].to_vec()
    }

    #[test]
    fn a_connection_becomes_a_session_when_the_worker_serves_and_a_drain_refuses_the_next() {
        let (mut first, theirs) = UnixStream::pair().unwrap();
        let (mut second, theirs_too) = UnixStream::pair().unwrap();
        for socket in [&theirs, &theirs_too] {
            socket.set_nonblocking(true).unwrap();
        }
        let (proceed, proceeding) = tokio::sync::oneshot::channel::<()>();
        let worker = Running::start_with(true, |handle| async move {
            open(&handle, theirs).await;
            proceeding.await.unwrap();
            open(&handle, theirs_too).await;
            std::future::pending().await
        });
        first.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(first.read(&mut [0]).is_err(), "another process has the sessions");
        worker.tell(Command::Resume).unwrap();
        assert_eq!(said(&mut first), b"101 ");
        worker.sender.blocking_send(Command::Drain).unwrap();
        assert_eq!(said(&mut first)[0], 0x88, "a close frame");
        proceed.send(()).unwrap();
        assert_eq!(said(&mut second), Refusal::Draining.to_string().into_bytes());
        drop(first);
        worker.ended.recv_timeout(PATIENCE).unwrap().unwrap();
    }
}
