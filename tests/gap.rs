//! Promise: whatever happens between Redis and us, nobody goes deaf. What is missing is missing inside
//! a gap that was reported, nothing comes twice or out of order, and messages flow again within
//! five seconds of the trouble's end.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::http::get;
use crate::support::ledger;
use crate::support::proxy::{Mode, Proxy};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, holds_within, lasting, until};

/// Messages flow again within, after Redis and the way to it are well.
const FLOWS_WITHIN: Duration = Duration::from_secs(5);
/// Between two numbers of the ledger.
const STEP: Duration = Duration::from_millis(5);

/// These clients answer no pings.
const KEEP: &str = "path = \"/webws\"\nidle_timeout = \"0s\"";
const CLOSE: &str = "path = \"/told\"\non_gap = \"close\"";

#[tokio::test]
async fn a_link_that_delivers_nothing_any_more_is_replaced() {
    let mut stage = Stage::start().await;
    stage.proxy.set(Mode::Deafen);
    until("it is found out", 2 * SOON, async || !stage.webws.outages().is_empty()).await;
    stage.proxy.set(Mode::Pass);
    let ledger = stage.settle().await;
    assert!(ledger.lost > 0, "what the proxy swallowed is lost");
}

#[tokio::test]
async fn a_subscription_that_redis_forgot_is_found_and_made_again() {
    let mut stage = Stage::start().await;
    stage.proxy.say_as_subscriber(b"UNSUBSCRIBE chat:ledger\r\n");
    until("it is found out", 3 * SOON, async || !stage.webws.entries_with("missing").is_empty()).await;
    stage.settle().await;
}

#[tokio::test]
async fn a_way_to_redis_that_stands_still_for_a_while_loses_nothing() {
    let mut stage = Stage::start().await;
    stage.proxy.set(Mode::Hold);
    lasting(Duration::from_secs(4)).await;
    stage.proxy.set(Mode::Pass);
    assert_eq!(stage.settle().await.lost, 0);
}

#[tokio::test]
async fn a_slow_and_a_trickling_way_to_redis_lose_nothing() {
    let mut stage = Stage::start().await;
    for mode in [Mode::Delay(Duration::from_millis(100)), Mode::Trickle] {
        stage.proxy.set(mode);
        lasting(Duration::from_secs(3)).await;
    }
    stage.proxy.set(Mode::Pass);
    assert_eq!(stage.settle().await.lost, 0);
    assert_eq!(stage.webws.outages(), [0; 0]);
}

#[tokio::test]
async fn connections_that_are_reset_again_and_again_come_back_each_time() {
    let mut stage = Stage::start().await;
    for _ in 0..5 {
        let before = stage.redis.links().await;
        stage.proxy.reset();
        let are_new = async || {
            let links = stage.redis.links().await;
            links.len() == before.len() && links.iter().all(|link| !before.contains(link))
        };
        until("both links are made again", SOON, are_new).await;
        stage.flows_again().await;
    }
    stage.settle().await;
}

#[tokio::test]
async fn a_message_that_is_cut_in_the_middle_is_never_delivered_in_part() {
    let mut stage = Stage::start().await;
    stage.proxy.set(Mode::CutInMessage);
    until("it is cut", SOON, async || !stage.webws.outages().is_empty()).await;
    stage.proxy.set(Mode::Pass);
    stage.settle().await;
}

#[tokio::test]
async fn a_redis_that_is_killed_and_comes_back_leaves_one_gap() {
    let mut stage = Stage::start().await;
    stage.redis.kill();
    lasting(Duration::from_secs(1)).await;
    stage.redis.start_again().await;
    stage.settle().await;
    assert_eq!(stage.webws.gaps().len(), 1, "{}", stage.webws.log());
}

#[tokio::test]
async fn a_redis_that_dies_again_while_channels_are_subscribed_again_leaves_no_client_deaf() {
    let mut stage = Stage::start().await;
    let mut others = Vec::new();
    for n in 0..300 {
        others.push(Witness::join(&stage.webws.target(), &format!("/webws?channel=%22n{n}%22")).await);
    }
    for _ in 0..3 {
        // Slow, so that it dies in the middle.
        stage.proxy.set(Mode::Delay(Duration::from_millis(50)));
        stage.redis.kill();
        stage.redis.start_again().await;
        let is_back = async || stage.redis.clients().await.iter().any(|client| client.contains("webws-subscriber"));
        until("the subscriber is there", SOON, is_back).await;
    }
    stage.proxy.set(Mode::Pass);
    stage.settle().await;
    for (n, other) in others.iter_mut().enumerate() {
        stage.redis.publish(format!("chat:n{n}").as_bytes(), b"at last ").await;
        other.await_text(&format!("at last n{n}"), SOON).await;
    }
}

#[tokio::test]
async fn a_redis_that_is_frozen_for_a_second_loses_nothing() {
    let mut stage = Stage::start().await;
    stage.redis.freeze();
    lasting(Duration::from_secs(1)).await;
    stage.redis.thaw();
    assert_eq!(stage.settle().await.lost, 0);
    assert_eq!(stage.webws.outages(), [0; 0]);
}

#[tokio::test]
async fn a_redis_that_is_frozen_for_much_longer_than_response_timeout_leaves_one_gap_and_a_short_log() {
    // Links are given up after a second, and tried again many times before the thaw.
    let impatient = "[redis]\nresponse_timeout = \"1s\"\nconnect_timeout = \"300ms\"\nmax_reconnect_delay = \"100ms\"";
    let mut stage = Stage::start_with(impatient).await;
    stage.redis.freeze();
    lasting(Duration::from_secs(6)).await;
    stage.redis.thaw();
    stage.settle().await;
    assert_eq!(stage.webws.gaps().len(), 1, "{}", stage.webws.log());
    assert!(stage.webws.entries().len() < 10, "{}", stage.webws.log());
}

#[tokio::test]
async fn a_rotated_password_is_read_when_redis_asks_for_it() {
    let redis = Redis::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let rotate = async |password: &str| {
        std::fs::write(&file, password).unwrap();
        let rights = format!("ACL SETUSER web on resetpass >{password} ~* &* +@all");
        redis.command(&rights.split(' ').collect::<Vec<_>>()).await;
    };
    rotate("first").await;
    let settings = format!("[redis]\nusername = \"web\"\npassword_file = {:?}", file.display().to_string());
    let webws = Webws::builder().broker(&redis.url()).workers(1).extra_toml(&settings).start().await;
    let mut witness = Witness::join(&webws.target(), "/webws?channel=%22ledger%22").await;
    rotate("second").await;
    redis.command(&["CLIENT", "KILL", "USER", "web"]).await;
    until("it is gone", SOON, async || !webws.outages().is_empty()).await;
    until("it is back", SOON, async || redis.numsub(b"chat:ledger").await == 1).await;
    redis.publish(b"chat:ledger", b"x ").await;
    witness.await_text("x ledger", SOON).await;
}

#[tokio::test]
async fn a_subscriber_that_redis_ends_for_its_output_buffer_comes_back() {
    let mut stage = Stage::start().await;
    stage.redis.command(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 1mb 1"]).await;
    stage.webws.signal(Signal::SIGSTOP);
    // Until the sockets are full and the buffer is over its limit.
    let payload = vec![b'x'; 1 << 20];
    let is_listening = async || stage.redis.numsub(b"chat:ledger").await > 0;
    let deadline = Instant::now() + SOON;
    while is_listening().await {
        assert!(Instant::now() < deadline, "Redis keeps its subscriber");
        stage.redis.publish(b"chat:ledger", &payload).await;
    }
    stage.webws.signal(Signal::SIGCONT);
    stage.settle().await;
}

/// Any troubles in any order. For longer, and for the same again:
/// `SOAK_SECONDS=600 SOAK_SEED=7 tests/run.sh --test main soak -- --nocapture`.
#[tokio::test]
async fn soak() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = number("SOAK_SECONDS").unwrap_or(20);
    let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut stage = Stage::start().await;
    let mut suffered = Vec::new();
    while Instant::now() < end {
        let (trouble, length) = (random.usize(..11), Duration::from_millis(random.u64(100..2_000)));
        suffered.push((trouble, length));
        // What a failure shows, so that it can be had again.
        println!("soak: seed {seed}, trouble {trouble} for {length:?}");
        stage.suffer(trouble, length).await;
        stage.flows_again().await;
        lasting(Duration::from_millis(random.u64(..500))).await;
    }
    let lost = stage.settle().await.lost;
    println!("soak: seed {seed}, {} troubles, {} gaps, {lost} lost", suffered.len(), stage.webws.gaps().len());
}

/// As fast as Redis can: its default output buffer for subscribers ends who is 32 MB behind.
#[tokio::test]
async fn a_flood_is_taken_whole_and_costs_no_memory() {
    const MESSAGES: usize = 500_000;
    const AT_A_TIME: usize = 5_000;
    let redis = Redis::start().await;
    // All of it is some 5 MB: that this client is slow is not what is asked here.
    let roomy = "path = \"/webws\"\nmax_queue_bytes = 16777216";
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(roomy).start().await;
    let mut witness = Witness::join(&webws.target(), "/webws?channel=%22a%22").await;
    let before = webws.rss_kb();
    let client = ::redis::Client::open(redis.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let flood = tokio::spawn(async move {
        for start in (0..MESSAGES).step_by(AT_A_TIME) {
            let mut pipeline = ::redis::pipe();
            for n in start..start + AT_A_TIME {
                pipeline.cmd("PUBLISH").arg("chat:a").arg(format!("{n} ")).ignore();
            }
            pipeline.exec_async(&mut connection).await.unwrap();
        }
    });
    let mut most = 0;
    for n in 0..MESSAGES {
        let frame = witness.client.next_but_pings(SOON).await.unwrap_or_else(|| panic!("no message {n}"));
        assert_eq!(frame.payload, format!("{n} a").as_bytes());
        if n % AT_A_TIME == 0 {
            most = most.max(webws.rss_kb());
        }
    }
    flood.await.unwrap();
    // That queue, and buffers.
    assert!(most < before + 32 * 1024, "{before} kB before, {most} kB at most");
    assert_eq!(webws.outages(), [0; 0]);
}

#[tokio::test]
async fn a_paused_redis_loses_nothing() {
    let mut stage = Stage::start().await;
    stage.redis.command(&["CLIENT", "PAUSE", "2000", "ALL"]).await;
    // The answer comes when the pause is over.
    stage.redis.command(&["PING"]).await;
    assert_eq!(stage.settle().await.lost, 0);
}

#[tokio::test]
async fn only_clients_of_an_endpoint_that_closes_on_gaps_are_told_of_one() {
    let mut stage = Stage::start_with("drain_time = \"100ms\"").await;
    let mut told = Witness::join(&stage.webws.target(), "/told?channel=%22ledger%22").await;
    stage.proxy.reset();
    told.expect_close(1012, SOON).await;
    // Who comes back is not told of a gap that was before.
    let mut again = Witness::join(&stage.webws.target(), "/told?channel=%22ledger%22").await;
    again.await_texts(3, SOON).await;
    stage.settle().await;
    stage.webws.term();
    stage.webws.wait_exit(2 * SOON).await;
    assert_eq!((stage.webws.counter("gaps"), stage.webws.counter("closed_gap")), (1, 1));
}

#[tokio::test]
async fn readiness_says_why_messages_do_not_flow_and_health_stays_ok() {
    let mut redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).start().await;
    let is_ready = async || webws.readiness().await == (200, "ok\n".to_owned());
    until("it is ready", SOON, is_ready).await;
    redis.kill();
    until("it is not", SOON, async || !is_ready().await).await;
    let (status, why) = webws.readiness().await;
    assert!(
        status == 503 && why.contains("links to redis://127.0.0.1") && why.contains("have been down"),
        "{status} {why}"
    );
    let health = get(&webws.target(), "/healthz").await;
    assert_eq!((health.head.status, health.body.as_str()), (200, "ok\n"));
    redis.start_again().await;
    until("it is again", 2 * SOON, is_ready).await;
}

#[tokio::test]
async fn a_redis_that_allows_no_probes_is_used_without_them_and_reported_once() {
    let redis = Redis::start().await;
    let least = "on >pw resetkeys resetchannels &chat:* -@all \
        +subscribe +unsubscribe +publish +ping +hello +auth +client|setname";
    let words: Vec<_> = ["ACL", "SETUSER", "web"].into_iter().chain(least.split_whitespace()).collect();
    redis.command(&words).await;
    let broker = redis.url().replace("redis://", "redis://web:pw@");
    let webws = Webws::builder().broker(&broker).workers(2).start().await;
    let mut witness = Witness::join(&webws.target(), "/webws?channel=%22ledger%22").await;
    // Audits by CLIENT INFO are not allowed either: the first of each worker right after the start, more later.
    let audits = async || {
        let stats = format!("{:?}", redis.command(&["INFO", "commandstats"]).await);
        let (_, of_audits) = stats.split_once("cmdstat_client|info:")?;
        let (_, rejected) = of_audits.split_once("rejected_calls=")?;
        rejected.split(',').next()?.parse::<u32>().ok()
    };
    let said = async |witness: &mut Witness, text: &str| {
        witness.client.send_text(&format!("{text} ")).await;
        witness.await_text(&format!("{text} ledger"), SOON).await;
    };
    said(&mut witness, "before").await;
    until("both workers have audited their links again", 3 * SOON, async || audits().await >= Some(4)).await;
    said(&mut witness, "after").await;
    until("it is said", SOON, async || webws.warnings().len() == 1).await;
    assert!(webws.warns_of("permission") && webws.outages().is_empty(), "{}", webws.log());
}

/// A Redis behind a proxy, a webws, and somebody who counts aloud.
pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) proxy: Proxy,
    pub(crate) webws: Webws,
    pub(crate) witness: Witness,
    stop: watch::Sender<bool>,
    counting: Option<JoinHandle<Vec<SystemTime>>>,
}

/// What became of the numbers.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) lost: usize,
}

impl Stage {
    async fn start() -> Stage {
        Stage::start_with("").await
    }

    /// With further lines in the configuration.
    pub(crate) async fn start_with(lines: &str) -> Stage {
        let redis = Redis::start().await;
        let proxy = Proxy::start(redis.port()).await;
        let builder = Webws::builder().broker(&proxy.url()).workers(1).extra_toml(lines);
        let webws = builder.endpoint_toml(KEEP).endpoint_toml(CLOSE).start().await;
        let mut witness = Witness::join(&webws.target(), "/webws?channel=%22ledger%22").await;
        let stop = watch::Sender::new(false);
        let counting = Some(tokio::spawn(count(redis.url(), stop.subscribe())));
        witness.await_texts(3, SOON).await;
        Stage { redis, proxy, webws, witness, stop, counting }
    }

    /// The trouble is over: messages flow again in time, and the ledger is right.
    pub(crate) async fn settle(&mut self) -> Ledger {
        self.flows_again().await;
        self.stop.send_replace(true);
        let sent = self.counting.take().unwrap().await.unwrap();
        self.witness.collect(Duration::from_millis(500)).await;
        self.judge(&sent)
    }

    /// What is sent from now on arrives in time.
    pub(crate) async fn flows_again(&mut self) {
        let (before, well_at) = (self.witness.texts.len(), Instant::now());
        // What waited somewhere comes first; what is published from now on is waited for.
        let resumed = SystemTime::now();
        while self.witness.take(FLOWS_WITHIN.saturating_sub(well_at.elapsed())).await {
            let text = self.witness.texts.last().map(String::as_str).and_then(ledger::number_and_time);
            if text.is_some_and(|(_, sent)| sent > resumed) {
                break;
            }
        }
        self.witness.assert_open();
        assert!(
            self.witness.texts.len() > before && well_at.elapsed() < FLOWS_WITHIN,
            "no message for {FLOWS_WITHIN:?} after the trouble's end:\n{}",
            self.webws.log()
        );
    }

    /// One trouble, from its beginning to its end.
    async fn suffer(&mut self, trouble: usize, length: Duration) {
        match trouble {
            0 => self.proxy.reset(),
            1 => {
                self.redis.kill();
                lasting(length).await;
                self.redis.start_again().await;
            }
            2 => {
                self.redis.freeze();
                lasting(length).await;
                self.redis.thaw();
            }
            3 => drop(self.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await),
            4 => {
                let millis = length.as_millis().to_string();
                self.redis.command(&["CLIENT", "PAUSE", &millis, "ALL"]).await;
                // The answer comes when the pause is over.
                self.redis.command(&["PING"]).await;
            }
            5 => {
                let before = self.webws.entries_with("missing").len();
                self.proxy.say_as_subscriber(b"UNSUBSCRIBE chat:ledger\r\n");
                // Whether an audit finds this is judged by the messages that flow again.
                holds_within(3 * SOON, async || self.webws.entries_with("missing").len() > before).await;
            }
            _ => {
                let modes = [Mode::Hold, Mode::Delay(length / 20), Mode::Trickle, Mode::Deafen, Mode::CutInMessage];
                self.proxy.set(modes[trouble % modes.len()]);
                // A deaf link is found out while it is deaf.
                lasting(length + Duration::from_secs(4)).await;
                self.proxy.set(Mode::Pass);
            }
        }
    }

    fn judge(&self, sent: &[SystemTime]) -> Ledger {
        Ledger { lost: ledger::lost(&self.witness.texts, sent, &self.webws.log()) }
    }
}

/// Publishes numbers directly, until it is told to stop; returns when each was sent. What Redis did not
/// take is said again: only the last number can have been taken without our knowledge.
async fn count(url: String, stop: watch::Receiver<bool>) -> Vec<SystemTime> {
    let client = ::redis::Client::open(url).unwrap();
    let mut sent = Vec::new();
    let mut connection = None;
    let mut pace = interval(STEP);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        let Some(open) = &mut connection else {
            connection = client.get_multiplexed_async_connection().await.ok();
            continue;
        };
        let now = SystemTime::now();
        let text = ledger::text(sent.len(), now);
        let published = ::redis::cmd("PUBLISH").arg("chat:ledger").arg(text).query_async::<i64>(open).await;
        match published {
            Ok(_) => sent.push(now),
            Err(error) if error.is_timeout() => sent.push(now),
            Err(_) => connection = None,
        }
    }
    sent
}
