//! A replica that real Sentinels promote, while webws is killed, stopped or upgraded. Redis replicates asynchronously: what
//! its master had confirmed and the replica has not is lost by Redis, and known by the replica's log.

use std::collections::HashSet;
use std::time::Duration;

use fastrand::Rng;

use super::book::{Book, Outcome};
use super::message::Id;
use super::truth::offset;
use super::{BACKLOG, MIXED_SEED, Process, Size, log_is_known};
use crate::support::redis::{Redis, Spy};
use crate::support::{START, lasting, until};
use crate::topology::Sentinels;

/// From the master's end to the first message through the new one.
const FAILOVER: Duration = Duration::from_secs(20);

/// A master and a replica, watched by Sentinels.
struct Watched {
    master: Redis,
    replica: Redis,
    sentinels: Sentinels,
    process: Process,
    milestones: Spy,
    book: Book,
    /// Where the replica's log ends that is promoted, and what its master's log had behind that, by their own offsets.
    kept: u64,
    lost: HashSet<Id>,
}

impl Watched {
    async fn start(size: &Size, random: &mut Rng) -> Watched {
        let arguments = [&BACKLOG[..], &["--repl-diskless-sync-delay", "0"]].concat();
        let master = Redis::start_with(&arguments).await;
        let of = format!("127.0.0.1 {}", master.port());
        let replica = Redis::start_with(&[&arguments[..], &["--replicaof", &of]].concat()).await;
        let sentinels = Sentinels::start(master.port()).await;
        let process = Process::start(&sentinels.url()).await;
        let milestones = master.spy(b"webws:milestone").await;
        log_is_known(&milestones).await;
        let book = Book::open(&master, process.webws.target(), size.rate, random).await;
        Watched { master, replica, sentinels, process, milestones, book, kept: 0, lost: HashSet::new() }
    }

    /// The master dies `late` after its replica has lost its way to the master. The milestone before that is not lost.
    #[expect(clippy::print_stdout, reason = "the figures of a long run")]
    async fn lose_master(&mut self, late: Duration) {
        let Watched { master, replica, milestones, book, .. } = self;
        book.lap().await;
        // The replica's log begins where it was synchronised.
        book.truth.advance(master).await;
        has_all_of(replica, master).await;
        book.truth.advance(replica).await;
        log_is_known(milestones).await;
        has_all_of(replica, master).await;
        replica.command(&["CONFIG", "SET", "masterauth", "wrong, so that it does not come back"]).await;
        master.command(&["CLIENT", "KILL", "TYPE", "replica"]).await;
        lasting(late).await;
        self.kept = offset(replica).await;
        let (lost, end) = book.truth.behind(master, self.kept).await;
        master.kill();
        println!("ledger: a failover loses {} publications, {} bytes of the log", lost.len(), end - self.kept);
        self.lost.extend(lost);
    }

    /// The replica is the master, and the former master follows it.
    async fn recover(&mut self) {
        let Watched { master, replica, sentinels, book, .. } = self;
        let port = replica.port().to_string();
        let is_promoted = async || {
            let named = sentinels.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
            named.contains(&port) && replica.info("role").await == "master"
        };
        until("the replica is promoted", FAILOVER, is_promoted).await;
        book.lead_producers_to(replica);
        book.lap().await;
        book.truth.advance(replica).await;
        assert_eq!(replica.info("second_repl_offset").await, (self.kept + 1).to_string());
        assert!(self.lost.is_disjoint(&book.truth.ids()), "what only the former master had is lost");
        replica.command(&["CONFIG", "SET", "masterauth", ""]).await;
        master.start_again().await;
        master.command(&["REPLICAOF", "127.0.0.1", &port]).await;
        let is_following = async || master.info("master_link_status").await == "up";
        until("the former master follows", FAILOVER, is_following).await;
        std::mem::swap(master, replica);
        self.milestones = self.master.spy(b"webws:milestone").await;
        log_is_known(&self.milestones).await;
    }

    #[expect(clippy::print_stdout, reason = "the figures of a long run")]
    async fn close(self) -> (Outcome, Process, Redis) {
        let outcome = self.book.close(&self.master).await;
        self.process.judge(&outcome);
        assert!(!outcome.lost_by_redis.is_empty(), "the master died before its replica had all");
        // Only what was published in the last moment of a master is not known by the servers' offsets.
        let told_apart = outcome.lost_by_redis.intersection(&self.lost).count();
        println!("ledger: of {} lost by Redis, {told_apart} by offsets", outcome.lost_by_redis.len());
        assert!(told_apart > 0);
        // A full resynchronisation is that of the former master, never of webws.
        assert_eq!(self.master.info("sync_full").await, "1");
        (outcome, self.process, self.master)
    }
}

/// The replica has what its master has now.
async fn has_all_of(replica: &Redis, master: &Redis) {
    let all = offset(master).await;
    until("the replica has it", START, async || offset(replica).await >= all).await;
}

#[tokio::test]
async fn a_failover_costs_what_redis_loses_and_nothing_else() {
    let size = Size::new(fastrand::u64(..1_000_000));
    let mut random = Rng::with_seed(size.seed);
    let mut stage = Watched::start(&size, &mut random).await;
    stage.lose_master(Duration::from_millis(random.u64(100..400))).await;
    stage.recover().await;
    let (outcome, process, _master) = stage.close().await;
    let is_filled = outcome.verdict.steady_gaps == 0 && process.filled() > 0;
    // On a machine that stands still for a second, the next milestone is lost as well.
    assert!(is_filled || process.shown().contains("a failover lost"), "{}", process.shown());
}

#[tokio::test]
async fn failovers_with_other_faults_cost_what_redis_loses_or_are_told() {
    let size = Size::new(MIXED_SEED);
    let mut random = Rng::with_seed(size.seed);
    let mut stage = Watched::start(&size, &mut random).await;
    for _ in 0..size.failovers {
        stage.lose_master(Duration::from_millis(random.u64(50..2_000))).await;
        let (fault, length) = (random.usize(..4), size.length(&mut random));
        println!("ledger: seed {}, failover with fault {fault} for {length:?}", size.seed);
        match fault {
            0 => stage.process.kill_and_start(&stage.book).await,
            1 => stage.process.stop_for(length).await,
            2 => stage.process.try_upgrade().await,
            _ => lasting(length).await,
        }
        stage.recover().await;
    }
    stage.close().await;
}
