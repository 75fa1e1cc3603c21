//! Promise: whatever happens to Redis, to webws and between the two, clients with positions, and those that stay connected,
//! get each message once and in Redis' order, however it was published; or they are told that messages may be missing.
//!
//! What Redis published is read from its own replication log. For longer, and for the same again:
//! `LEDGER_SECONDS=300 LEDGER_SEED=7 tests/run.sh --test main ledger -- --nocapture --test-threads 1`.

mod book;
mod failover;
mod message;
mod producer;
mod reader;
mod truth;
mod verdict;

use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::Signal;
use tokio::time::Instant;

use self::book::{Book, Outcome};
use crate::handover::upgrade;
use crate::support::proxy::{Mode, Proxy};
use crate::support::redis::{Redis, Spy};
use crate::support::webws::{Builder, Webws};
use crate::support::{SOON, START, lasting, until};

/// The endpoint of all clients, which answer no pings. A gap is told by a close as well, for those without positions.
const ENDPOINT: &str = "path = \"/webws\"\nidle_timeout = \"0s\"\non_gap = \"close\"\n\
                        history = { messages = 100000, age = \"10m\", bytes = \"64MB\" }";

/// What Redis keeps of its log, for the test to read all of it: an hour at full rate.
const BACKLOG: [&str; 2] = ["--repl-backlog-size", "1gb"];

/// How much of it all.
struct Size {
    /// Messages a second of each producer.
    rate: u32,
    /// How often all links are killed.
    kills: usize,
    /// How long the network is cut.
    cut: Duration,
    /// Failovers with other faults at the same time.
    failovers: usize,
    /// How many faults are mixed at least, and for how long.
    faults: usize,
    mixed: Duration,
    /// The longest of these faults, in milliseconds.
    longest: u64,
    seed: u64,
}

/// The seed of mixed faults, unless `LEDGER_SEED` has another. It once found a loss.
const MIXED_SEED: u64 = 838_885;

/// The kinds of mixed faults.
const KINDS: usize = 8;

impl Size {
    /// As `LEDGER_SECONDS` and `LEDGER_SEED` say; else a short run with `seed`.
    #[expect(clippy::print_stdout, reason = "what a failure shows, so that it can be had again")]
    fn new(seed: u64) -> Size {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let seed = number("LEDGER_SEED").unwrap_or(seed);
        println!("ledger: seed {seed}");
        match number("LEDGER_SECONDS") {
            Some(seconds) => {
                let (cut, mixed) = (Duration::from_secs(5), Duration::from_secs(seconds));
                Size { rate: 2_000, kills: 50, cut, failovers: 5, faults: KINDS, mixed, longest: 3_000, seed }
            }
            None => {
                let (cut, mixed) = (Duration::from_secs(2), Duration::ZERO);
                Size { rate: 500, kills: 4, cut, failovers: 1, faults: KINDS + 2, mixed, longest: 1_000, seed }
            }
        }
    }

    /// How long the next fault lasts.
    fn length(&self, random: &mut Rng) -> Duration {
        Duration::from_millis(random.u64(50..self.longest))
    }
}

/// A webws that may be killed and started again, upgraded and stopped.
struct Process {
    webws: Webws,
    broker: String,
    /// What those that were killed have logged.
    logs: Vec<String>,
}

impl Process {
    async fn start(broker: &str) -> Process {
        let webws = Process::builder(broker).exchangeable().start().await;
        Process { webws, broker: broker.to_owned(), logs: Vec::new() }
    }

    fn builder(broker: &str) -> Builder {
        let builder = Webws::builder().broker(broker).workers(2).setting("drain_time = \"0s\"");
        builder.endpoint_toml(ENDPOINT).extra_toml("[redis]\nreplay = \"on\"")
    }

    async fn kill_and_start(&mut self, book: &Book) {
        let pid = self.webws.pid();
        self.webws.signal(Signal::SIGKILL);
        // A process that nobody has waited for yet has no descriptors any more.
        let is_gone = async || std::fs::read_dir(format!("/proc/{pid}/fd")).is_err();
        until("it is killed", SOON, async || is_gone().await || !PathBuf::from(format!("/proc/{pid}/exe")).exists())
            .await;
        let fresh = Process::builder(&self.broker).exchangeable().start().await;
        book.lead_clients_to(fresh.target());
        let killed = std::mem::replace(&mut self.webws, fresh);
        self.logs.push(killed.log());
    }

    async fn stop_for(&self, length: Duration) {
        self.webws.signal(Signal::SIGSTOP);
        lasting(length).await;
        self.webws.signal(Signal::SIGCONT);
    }

    async fn upgrade(&self) {
        let (is_done, text) = upgrade(&self.webws).await;
        assert!(is_done, "{text}\n{}", self.webws.log());
    }

    /// In the middle of another fault, it may have to be tried later.
    async fn try_upgrade(&self) {
        let (is_done, text) = upgrade(&self.webws).await;
        assert!(is_done || text.contains("the old process continues to serve"), "{text}\n{}", self.webws.log());
    }

    /// Lines with that field, of all processes.
    fn lines_with(&self, field: &str) -> usize {
        let logs = self.logs.iter().cloned().chain([self.webws.log()]);
        let lines = logs.flat_map(|log| crate::support::program::entries(&log));
        lines.filter(|line| !line[field].is_null()).count()
    }

    fn filled(&self) -> usize {
        self.lines_with("filled_ms")
    }

    /// Nothing is lost untold, twice or out of order.
    #[expect(clippy::print_stdout, reason = "the figures of a long run")]
    fn judge(&self, Outcome { verdict, published, lost_by_redis, .. }: &Outcome) {
        println!(
            "ledger: {published} published, {} received; lost {}, duplicated {}, reordered {}; Redis lost {}, of which \
             {} had been received; {} gaps filled, {} told, {} missed in these, {} repeated; \
             clients came back {} times",
            verdict.received,
            verdict.lost.len(),
            verdict.duplicated.len(),
            verdict.reordered.len(),
            lost_by_redis.len(),
            verdict.not_in_log.len(),
            self.filled(),
            verdict.gaps,
            verdict.missed_in_gaps,
            verdict.repeated_after_gaps,
            verdict.came_back,
        );
        self.print_gaps();
        assert!(verdict.lost.is_empty(), "{:?}\n{}", verdict.lost, self.shown());
        assert_eq!((verdict.duplicated.len(), verdict.reordered.len()), (0, 0), "{verdict:?}");
    }

    /// The gaps that were not filled, and why.
    #[expect(clippy::print_stdout, reason = "the figures of a long run")]
    fn print_gaps(&self) {
        let shown = self.shown();
        let lines = crate::support::program::entries(&shown).into_iter();
        let gaps = lines.filter(|line| line["level"] == "WARN" && line["message"].as_str().unwrap().contains("gap"));
        gaps.for_each(|line| println!("ledger: {} {}", line["timestamp"], line["message"]));
    }

    /// What a failure shows.
    fn shown(&self) -> String {
        let logs = self.logs.iter().cloned().chain([self.webws.log()]);
        logs.collect::<Vec<_>>().join("--- killed ---\n")
    }
}

/// The milestone after the next one knows the log surely.
async fn log_is_known(milestones: &Spy) {
    let before = milestones.seen().len();
    until("two milestones are heard", START, async || milestones.seen().len() >= before + 2).await;
}

/// A Redis behind a proxy.
struct Single {
    redis: Redis,
    proxy: Proxy,
    process: Process,
    milestones: Spy,
    book: Book,
}

impl Single {
    async fn start(size: &Size, random: &mut Rng) -> Single {
        let redis = Redis::start_with(&BACKLOG).await;
        let proxy = Proxy::start(redis.port()).await;
        let process = Process::start(&proxy.url()).await;
        let milestones = redis.spy(b"webws:milestone").await;
        until("there is a log", START, async || redis.info("repl_backlog_active").await == "1").await;
        log_is_known(&milestones).await;
        let book = Book::open(&redis, process.webws.target(), size.rate, random).await;
        let mut single = Single { redis, proxy, process, milestones, book };
        single.settle().await;
        single
    }

    /// Messages reach every client, and the next fault finds every channel subscribed for long enough.
    async fn settle(&mut self) {
        self.book.lap().await;
        log_is_known(&self.milestones).await;
    }

    async fn cut_network(&self, length: Duration) {
        self.proxy.set(Mode::Hold);
        self.proxy.reset();
        lasting(length).await;
        self.proxy.set(Mode::Pass);
    }

    async fn freeze(&self, length: Duration) {
        self.redis.freeze();
        lasting(length).await;
        self.redis.thaw();
    }

    async fn close(self) -> (Outcome, Process, Redis) {
        let outcome = self.book.close(&self.redis).await;
        self.process.judge(&outcome);
        (outcome, self.process, self.redis)
    }
}

#[tokio::test]
async fn each_fault_in_turn_costs_no_client_a_message() {
    let size = Size::new(fastrand::u64(..1_000_000));
    let mut stage = Single::start(&size, &mut Rng::with_seed(size.seed)).await;
    // Without the log, the same faults cost messages, in gaps that are told.
    let control = Webws::builder().broker(&stage.proxy.url()).workers(1).endpoint_toml("idle_timeout = \"0s\"");
    let control = control.extra_toml("[redis]\nreplay = \"off\"").start().await;
    stage.book.control(control.target());
    stage.settle().await;

    let mut killed = 0;
    for _ in 0..size.kills {
        killed += stage.redis.kill_links().await;
        stage.book.lap().await;
    }
    assert!(killed >= 2 * size.kills, "{killed}");
    stage.freeze(Duration::from_secs(1)).await;
    stage.settle().await;
    stage.process.stop_for(Duration::from_secs(2)).await;
    stage.settle().await;
    stage.cut_network(size.cut).await;
    stage.settle().await;
    stage.process.kill_and_start(&stage.book).await;
    stage.settle().await;
    stage.process.upgrade().await;
    stage.settle().await;
    stage.redis.kill_links().await;

    let (outcome, process, redis) = stage.close().await;
    let Outcome { verdict, control: without, lost_by_redis, .. } = outcome;
    assert_eq!((verdict.steady_gaps, verdict.not_in_log.len(), lost_by_redis.len()), (0, 0, 0), "{}", process.shown());
    assert!(process.filled() >= 2 * size.kills && verdict.came_back > 50, "{} {verdict:?}", process.filled());
    assert!(!without.lost.is_empty(), "a webws that does not read the log loses messages in these faults");
    let gaps = control.gaps();
    const SLACK: Duration = Duration::from_millis(300);
    let is_told = |at| gaps.iter().any(|(from, to)| *from - SLACK <= at && at <= *to + SLACK);
    let untold: Vec<_> = without.lost.iter().filter(|(_, _, at)| !is_told(*at)).collect();
    assert!(untold.is_empty() && without.duplicated.is_empty() && without.reordered.is_empty(), "{untold:?} {gaps:?}");
    // The log was made once; nothing was ever copied.
    assert_eq!((redis.info("sync_full").await.as_str(), redis.info("total_forks").await.as_str()), ("1", "0"));
}

/// Every fault once, in the seed's order, and then any.
#[tokio::test]
async fn faults_mixed_by_a_seed_cost_no_client_a_message_untold() {
    let size = Size::new(MIXED_SEED);
    let mut random = Rng::with_seed(size.seed);
    let mut stage = Single::start(&size, &mut random).await;
    let end = Instant::now() + size.mixed;
    let mut each: Vec<usize> = (0..KINDS).collect();
    random.shuffle(&mut each);
    for turn in 0.. {
        if turn >= size.faults && Instant::now() >= end {
            break;
        }
        let length = size.length(&mut random);
        let fault = each.pop().unwrap_or_else(|| random.usize(..KINDS));
        println!("ledger: seed {}, fault {fault} for {length:?}", size.seed);
        match fault {
            0 => stage.freeze(length).await,
            1 => stage.process.stop_for(length).await,
            2 => stage.cut_network(length).await,
            3 => stage.process.kill_and_start(&stage.book).await,
            4 => stage.process.try_upgrade().await,
            5 => stage.proxy.reset(),
            6 => {
                stage.proxy.set(Mode::CutInMessage);
                lasting(length / 4).await;
                stage.proxy.set(Mode::Pass);
            }
            _ => drop(stage.redis.kill_links().await),
        }
        // Often the next one comes before the last one is over.
        if random.bool() {
            stage.book.lap().await;
        } else {
            lasting(Duration::from_millis(random.u64(..1_000))).await;
        }
    }
    let (outcome, _, redis) = stage.close().await;
    assert_eq!((outcome.verdict.not_in_log.len(), outcome.lost_by_redis.len()), (0, 0));
    assert_eq!((redis.info("sync_full").await.as_str(), redis.info("total_forks").await.as_str()), ("1", "0"));
}
