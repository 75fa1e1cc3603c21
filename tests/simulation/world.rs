//! The world of a run: processes with their workers, servers, streams and clients on one clock and one seed.
//!
//! Here time passes and things reach each other; `faults.rs` breaks them, `ledger.rs` judges.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::client::{Client, HEAD, PREFIX, State};
use super::faults::Fault;
use super::handover::Handover;
use super::node_links::{Logs, NodeLinks, Which};
use super::plan::{Plan, config};
use super::positions::Tally;
use super::read_backs::Asking;
use super::redis::{Acl, Redis, Role};
use super::replication::ReplicationLog;
use super::stream::{Stream, StreamId, Towards};
use crate::broker::redis::health::Health;
use crate::channel::Channel;
use crate::clock::{self, Millis};
use crate::config::{Config, NotUtf8Policy, RedisUrl};
use crate::id::SessionKey;
use crate::placement::Placement;
use crate::protocol::encoding::Encoding;
use crate::worker::reactor::Ready;
use crate::worker::simulated::Simulated;

/// Microseconds.
pub(crate) const MILLISECOND: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000_000;

/// How long things break, and how long they have to heal. Chosen: the longest outage, then twice what the deadlines of
/// the links and the audits add up to.
pub(crate) const ACTIVE: u64 = 8 * SECOND;
pub(crate) const HEALED: u64 = 10 * SECOND;

/// What happens at some time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Happening {
    Wake(usize),
    Tick(usize),
    Deliver(StreamId, Towards),
    /// An attempt to connect ends.
    Made(usize, Which),
    /// A session's socket has something to read, or has room.
    Readable(usize),
    Writable(usize),
    /// A client does something.
    Client(usize),
    /// A socket reaches its session.
    Attach(usize),
    /// The next worker is asked for its history, or all have answered.
    Ask(u64),
    /// A log is made where there is none.
    KeepLog,
    Produce,
    Fault,
    End(Fault),
    Handover,
}

/// A worker and its links.
#[derive(Debug)]
pub(crate) struct Node1 {
    pub(crate) worker: Simulated,
    pub(crate) links: NodeLinks,
    pub(crate) health: Arc<Health>,
    pub(crate) wakes_at: u64,
    pub(crate) were_all_complete: bool,
    /// The last stream of its publisher.
    pub(crate) publisher: Option<StreamId>,
    /// Its process does not run until then.
    pub(crate) stopped_until: u64,
}

/// All there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) base: Instant,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    pub(crate) plan: Plan,
    config: Arc<Config>,
    /// None where a process is gone.
    pub(crate) workers: Vec<Option<Node1>>,
    pub(crate) redis: Redis,
    /// The server that the address leads to.
    pub(crate) address: usize,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    /// Streams whose end did not tell the worker what its server is.
    pub(crate) cut: BTreeSet<StreamId>,
    pub(crate) clients: Vec<Client>,
    pub(crate) next_stream: u64,
    pub(crate) produced: usize,
    pub(crate) handover: Option<Handover>,
    /// Workers that take new clients, and those of another process.
    pub(crate) serving: Vec<usize>,
    pub(crate) fleet: Vec<usize>,
    /// Workers that ask others for histories.
    pub(crate) askings: BTreeMap<u64, Asking>,
    pub(crate) next_asking: u64,
    /// Whether a server forgot what its log had.
    pub(crate) has_forgotten: bool,
    pub(crate) tally: Tally,
    /// Whether a hand-over was begun in which no side dies, and whether one succeeded.
    pub(crate) hands_over_well: bool,
    pub(crate) has_handed_over: bool,
    /// What happened, folded into a number: two runs of a seed have the same.
    pub(crate) trace: u64,
    /// Whether all that happens is printed (`SIMULATION_TRACE=1`).
    pub(crate) is_told: bool,
}

impl World {
    pub(crate) fn new(seed: u64, one_of: u64) -> Self {
        fastrand::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::new(&mut rng, one_of);
        let config = config(&plan, &mut rng);
        let is_told = std::env::var_os("SIMULATION_TRACE").is_some();
        let acl = plan.history.map_or(Acl::All, |history| history.acl);
        let mut redis = Redis { is_told, acl, ..Redis::default() };
        let (size, has_log) = plan.history.map_or((1 << 20, false), |history| (history.log_bytes, history.has_log));
        redis.add(Role::Master, ReplicationLog::new(size, has_log, &mut rng));
        let mut world = Self {
            rng,
            now: 0,
            base: Instant::now(),
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            config: Arc::new(config),
            workers: Vec::new(),
            redis,
            address: 0,
            streams: BTreeMap::new(),
            cut: BTreeSet::new(),
            clients: Vec::new(),
            next_stream: 0,
            produced: 0,
            handover: None,
            serving: Vec::new(),
            fleet: Vec::new(),
            askings: BTreeMap::new(),
            next_asking: 0,
            has_forgotten: false,
            tally: Tally::default(),
            hands_over_well: false,
            has_handed_over: false,
            trace: 0,
            is_told,
            plan,
        };
        world.serving = world.start_process();
        if world.plan.history.is_some_and(|history| history.has_fleet) {
            world.fleet = world.start_process();
        }
        if world.plan.history.is_some_and(|history| history.keeps_log) {
            world.at(0, Happening::KeepLog);
        }
        for _ in 0..world.plan.clients {
            let at = world.rng.u64(..ACTIVE / 2);
            world.arrive(at);
        }
        world.at(50 * MILLISECOND, Happening::Produce);
        if world.plan.has_faults {
            world.at(SECOND, Happening::Fault);
        }
        if world.plan.hands_over {
            let at = world.rng.u64(2 * SECOND..ACTIVE);
            world.at(at, Happening::Handover);
        }
        world
    }

    /// A process with its workers, which share what they know of a node.
    pub(crate) fn start_process(&mut self) -> Vec<usize> {
        let health = Arc::new(Health::new(&RedisUrl::default(), self.plan.workers));
        (0..self.plan.workers)
            .map(|_| {
                let placement = Placement::over(1);
                let now = self.instant();
                let logs =
                    self.plan.history.map(|history| Logs { has_milestones: true, may_replay: history.may_replay });
                let logs = logs.unwrap_or_default();
                let links = NodeLinks::new(self.plan.protocol, logs, health.clone(), placement.clone(), now);
                let worker = Simulated::new(&self.config, placement);
                let health = health.clone();
                self.workers.push(Some(Node1 {
                    worker,
                    links,
                    health,
                    wakes_at: u64::MAX,
                    were_all_complete: false,
                    publisher: None,
                    stopped_until: 0,
                }));
                let index = self.workers.len() - 1;
                self.at(self.now, Happening::Wake(index));
                self.at(self.now + 100 * MILLISECOND, Happening::Tick(index));
                index
            })
            .collect()
    }

    /// A client comes.
    pub(crate) fn arrive(&mut self, at: u64) {
        let id = self.clients.len();
        let name = match self.rng.u8(..30) {
            0 => "deny0".to_owned(),
            _ => format!("chan{}", self.rng.usize(..self.plan.channels)),
        };
        let channel = Channel::from(format!("{PREFIX}{name}"));
        let has_history = self.plan.history.is_some() && self.rng.u8(..5) > 0;
        let encoding = match (has_history, self.rng.bool()) {
            (false, true) => Encoding::Lua { name_at: 2 },
            (false, false) => Encoding::Plain,
            (true, true) => Encoding::Meta,
            (true, false) => Encoding::Sse { not_utf8: NotUtf8Policy::Binary },
        };
        let closes_on_gap = self.rng.bool();
        self.clients.push(Client::new(id, channel, encoding, closes_on_gap));
        self.at(at, Happening::Client(id));
    }

    pub(crate) fn at(&mut self, at: u64, happening: Happening) {
        self.next += 1;
        self.agenda.push(Reverse((at.max(self.now), self.next)));
        self.happenings.insert(self.next, happening);
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    pub(crate) fn millis(&self) -> Millis {
        clock::START + self.now / MILLISECOND
    }

    pub(crate) fn is_active(&self) -> bool {
        self.now < ACTIVE
    }

    /// How long something takes.
    pub(crate) fn delay(&mut self) -> u64 {
        let longest = if self.plan.is_fast { 500 } else { 20 * MILLISECOND };
        self.rng.u64(1..longest)
    }

    /// Lets time pass until `end`.
    pub(crate) fn run(&mut self, end: u64) {
        while let Some(Reverse((at, id))) = self.agenda.peek().copied() {
            if at > end {
                break;
            }
            self.agenda.pop();
            let happening = self.happenings.remove(&id).expect("each is there once");
            assert!(at >= self.now, "time goes on");
            self.now = at;
            self.say(|| format!("{happening:?}"));
            self.trace = self.trace.wrapping_mul(31).wrapping_add(at ^ self.redis.executed.len() as u64);
            self.happen(happening);
        }
        self.now = end;
    }

    /// Prints what happens, where it is asked for.
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.is_told {
            eprintln!("{} {}", self.now, what());
        }
    }

    /// The worker that something happens to.
    fn worker_of(&self, happening: Happening) -> Option<usize> {
        match happening {
            Happening::Wake(worker) | Happening::Tick(worker) | Happening::Made(worker, _) => Some(worker),
            Happening::Readable(client) | Happening::Writable(client) | Happening::Attach(client) => {
                Some(self.clients[client].worker)
            }
            // Those of a hand-over wait for each other.
            Happening::Handover => {
                let handover = self.handover.as_ref();
                handover.into_iter().flat_map(Handover::workers).max_by_key(|worker| self.stopped_until(*worker))
            }
            Happening::Ask(id) => self.askings.get(&id).map(Asking::at),
            Happening::Deliver(..) | Happening::Client(_) => None,
            Happening::Produce | Happening::KeepLog | Happening::Fault | Happening::End(_) => None,
        }
    }

    /// Until when a worker's process does not run.
    pub(crate) fn stopped_until(&self, worker: usize) -> u64 {
        self.workers.get(worker).and_then(Option::as_ref).map_or(0, |node| node.stopped_until)
    }

    fn happen(&mut self, happening: Happening) {
        let now = self.millis();
        let stopped_until = self.worker_of(happening).map_or(0, |worker| self.stopped_until(worker));
        if stopped_until > self.now {
            return self.at(stopped_until, happening);
        }
        match happening {
            Happening::Wake(worker) => self.pump(worker),
            Happening::Tick(worker) => {
                if let Some(node) = self.workers[worker].as_mut() {
                    node.worker.tick(now);
                    node.worker.check();
                    let pause = if self.is_active() { 100 * MILLISECOND } else { 250 * MILLISECOND };
                    self.at(self.now + pause, Happening::Tick(worker));
                    self.pump(worker);
                }
            }
            Happening::Deliver(stream, towards) => self.deliver(stream, towards),
            Happening::Made(worker, which) => self.made(worker, which),
            Happening::Readable(client) => {
                // As the kernel: an end is told with the bytes before it.
                let hung_up = self.clients[client].socket.0.borrow().is_peer_finished;
                self.ready(client, |key| Ready { key, readable: true, hung_up, writable: false });
            }
            Happening::Writable(client) => {
                self.clients[client].is_told_of_room = false;
                self.ready(client, |key| Ready { key, readable: false, hung_up: false, writable: true });
            }
            Happening::Client(client) => self.act(client),
            Happening::Attach(client) => self.attach(client),
            Happening::Ask(id) => self.ask(id),
            Happening::KeepLog => self.keep_log(),
            Happening::Produce => self.produce(),
            Happening::Fault => self.break_something(),
            Happening::End(fault) => self.mend(fault),
            Happening::Handover => self.hand_over(),
        }
    }

    fn ready(&mut self, client: usize, ready: impl FnOnce(SessionKey) -> Ready) {
        let now = self.millis();
        let Client { state: State::Open(key), worker, .. } = self.clients[client] else { return };
        if let Some(node) = self.workers[worker].as_mut() {
            node.worker.on_ready(ready(key), now);
            self.pump(worker);
        }
    }

    /// The socket of a client whose handshake was answered reaches its session.
    fn attach(&mut self, id: usize) {
        let now = self.millis();
        let client = &mut self.clients[id];
        let State::Answered(key) = client.state else { return };
        let Some(node) = self.workers[client.worker].as_mut() else { return };
        if !node.worker.has(key) {
            client.state = State::Refused;
            return;
        }
        if node.worker.is_still() {
            // Neither process would have its session.
            return self.at(self.now + 10 * MILLISECOND, Happening::Attach(id));
        }
        client.capacity = self.rng.usize(HEAD.len()..3_000);
        client.socket.0.borrow_mut().room = client.capacity;
        (client.state, client.open_at) = (State::Open(key), self.now);
        if client.since.is_none() {
            client.first_order = self.redis.executed.len() as u64;
        }
        let index = client.worker;
        node.worker.attach(key, client.socket.clone(), HEAD, now);
        self.pump(index);
    }

    /// One of several.
    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }
}
