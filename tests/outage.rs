//! Promise: whatever happens to Redis, no WebSocket is lost, none goes deaf, and what clients send
//! meanwhile is published once and in order as soon as Redis is there again.

use std::collections::HashMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::client::Target;
use crate::support::redis::Redis;
use crate::support::webws::{Builder, Webws};
use crate::support::witness::{Answer, Witness, upgrades_within};
use crate::support::{SOON, lasting, until};

/// Pings are answered within, whatever Redis does.
const PONG_MAX: Duration = Duration::from_millis(1_500);
/// Everything is as before within, counted from the end of the outage.
const RECOVERY: Duration = Duration::from_secs(8);
const CHANNELS: [&str; 3] = ["a", "b", "c"];
const SESSIONS: usize = 3;
/// Texts that each client sends during the outage.
const TEXTS: usize = 4;

#[tokio::test]
async fn every_websocket_stays_open_and_subscribed_when_redis_restarts() {
    for_workers([1, 2], async |workers| {
        let mut stage = Stage::start(workers).await;
        stage.redis.kill();
        stage.live_through(Instant::now() + Duration::from_secs(1)).await;
        stage.redis.start_again().await;
        stage.hears_all_again(Lost::Nothing).await;
        stage.log_has_one_line_per_change(1).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_subscribing_link_comes_back_with_all_its_channels() {
    for_workers([1, 2], async |workers| {
        let mut stage = Stage::start(workers).await;
        let killed = stage.kill_links("webws-subscriber").await;
        assert_eq!(killed, workers);
        until("webws has noticed", SOON, async || !stage.webws.outages().is_empty()).await;
        stage.live_through(Instant::now()).await;
        // A worker holds its clients' texts back while it is deaf itself. What another worker (or
        // another process) publishes in the meantime is lost to it, as Pub/Sub loses it.
        stage.hears_all_again(if workers == 1 { Lost::Nothing } else { Lost::FromOtherWorkers }).await;
        stage.log_has_one_line_per_change(workers).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_publishing_link_comes_back_and_publishes_what_waits() {
    for_workers([1, 2], async |workers| {
        let mut stage = Stage::start(workers).await;
        let killed = stage.kill_links("webws-publisher").await;
        assert_eq!(killed, workers);
        until("webws has noticed", SOON, async || !stage.webws.outages().is_empty()).await;
        stage.live_through(Instant::now()).await;
        stage.hears_all_again(Lost::Nothing).await;
        stage.log_has_one_line_per_change(workers).await;
    })
    .await;
}

#[tokio::test]
async fn a_redis_frozen_for_less_than_its_timeouts_costs_no_client_its_connection_or_a_message() {
    // As the defaults are: response_timeout is longer than publish_timeout.
    let [response, publish] = [6, 5].map(Duration::from_secs);
    let redis = format!("[redis]\nresponse_timeout = \"{response:?}\"");
    let endpoint = format!("path = \"/webws\"\npublish_timeout = \"{publish:?}\"");
    for_workers([1, 2], async |workers| {
        let mut stage = Stage::start_with(workers, |builder| builder.extra_toml(&redis).endpoint_toml(&endpoint)).await;
        stage.redis.freeze();
        let thaw = Instant::now() + response * 2 / 3;
        // The messages wait for half of publish_timeout.
        lasting(thaw - publish / 2 - Instant::now()).await;
        stage.live_through(thaw).await;
        stage.redis.thaw();
        stage.hears_all_again(Lost::Nothing).await;
        stage.log_has_one_line_per_change(1).await;
    })
    .await;
}

#[tokio::test]
async fn five_hundred_channels_are_subscribed_again_after_a_restart() {
    const COUNT: usize = 500;
    let mut redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).start().await;
    let mut witnesses = Vec::new();
    for n in 0..COUNT {
        witnesses.push(Witness::join(&webws.target(), &path(&format!("n{n}"))).await);
    }
    redis.kill();
    for witness in &mut witnesses {
        witness.ping(b"down", PONG_MAX).await;
    }
    redis.start_again().await;
    let channels: Vec<_> = (0..COUNT).map(|n| format!("chat:n{n}")).collect();
    let command: Vec<_> = ["PUBSUB", "NUMSUB"].into_iter().chain(channels.iter().map(String::as_str)).collect();
    let complete = async || {
        let counts = format!("{:?}", redis.command(&command).await);
        counts.matches("int(1)").count() == COUNT
    };
    until("each channel has one subscriber", RECOVERY, complete).await;
    for channel in &channels {
        assert_eq!(redis.publish(channel.as_bytes(), b"again ").await, 1, "{channel}");
    }
    for (n, witness) in witnesses.iter_mut().enumerate() {
        witness.await_text(&format!("again n{n}"), SOON).await;
        assert_eq!(witness.texts.len(), 1);
    }
}

#[tokio::test]
async fn handshakes_during_an_outage_get_503_in_bounded_time_and_101_afterwards() {
    let mut redis = Redis::start().await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).start().await;
    let target = webws.target();
    let mut witness = Witness::join(&target, &path("old")).await;
    redis.kill();
    // Before, a handshake on a channel that is subscribed succeeds, and rightly.
    until("webws has noticed", SOON, async || !webws.is_ready().await).await;
    // At once, when the link may still be coming back, and later, when it is given up.
    for bound in [Duration::from_secs(5), Duration::from_secs(1)] {
        let asked = Instant::now();
        for name in ["old", "new"] {
            refused(&target, name, bound.saturating_sub(asked.elapsed())).await;
        }
    }
    witness.ping(b"still here", PONG_MAX).await;
    redis.start_again().await;
    assert!(upgrades_within(&target, &path("new"), RECOVERY).await);
    until("it is subscribed", RECOVERY, async || redis.numsub(b"chat:old").await == 1).await;
    redis.publish(b"chat:old", b"x").await;
    witness.await_text("xold", SOON).await;
}

#[tokio::test]
async fn handshakes_while_redis_is_frozen_get_503_in_bounded_time_however_many() {
    let redis = Redis::start().await;
    let settings = "[redis]\nsubscribe_timeout = \"1s\"";
    let webws = Webws::builder().broker(&redis.url()).workers(1).extra_toml(settings).start().await;
    let mut witness = Witness::join(&webws.target(), &path("old")).await;
    redis.freeze();
    let mut asking = JoinSet::new();
    // Many times what is worked on at a time.
    for n in 0..300 {
        let target = webws.target();
        asking.spawn(async move { refused(&target, &format!("n{n}"), Duration::from_secs(7)).await });
    }
    witness.ping(b"meanwhile", PONG_MAX).await;
    asking.join_all().await;
    redis.thaw();
    assert!(upgrades_within(&webws.target(), &path("new"), SOON).await);
    let none_left = async || {
        let channels = redis.command(&["PUBSUB", "CHANNELS", "chat:n*"]).await;
        format!("{channels:?}") == "array([])"
    };
    until("nothing of the refused is subscribed", RECOVERY, none_left).await;
}

#[tokio::test]
async fn a_redis_that_is_away_at_the_start_is_reported_once_and_found_later() {
    let mut redis = Redis::start().await;
    redis.kill();
    let mut webws = Webws::builder().broker(&redis.url()).workers(2).start().await;
    refused(&webws.target(), "early", Duration::from_secs(5)).await;
    until("it is reported", SOON, async || webws.outages().len() == 1).await;
    redis.start_again().await;
    assert!(upgrades_within(&webws.target(), &path("late"), RECOVERY).await);
    until("all links are up", SOON, async || webws.is_ready().await).await;
    assert!(webws.outages().len() == 1 && webws.entries().len() <= 4, "{}", webws.log());
    webws.signal(Signal::SIGTERM);
    assert!(webws.wait_exit(SOON * 2).await.success());
}

/// Runs the same for several numbers of workers at once.
async fn for_workers<const N: usize>(workers: [usize; N], act: impl AsyncFn(usize)) {
    let mut running: Vec<_> = workers.into_iter().map(|workers| Box::pin(act(workers))).collect();
    let all = std::future::poll_fn(|cx| {
        running.retain_mut(|act| act.as_mut().poll(cx).is_pending());
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    all.await;
}

/// A handshake that must be refused in time, with 503.
async fn refused(target: &Target, name: &str, bound: Duration) {
    let answer = Answer::to_upgrade(target, &path(name), bound).await;
    let answer = answer.unwrap_or_else(|| panic!("no answer to a handshake on {name} within {bound:?}"));
    answer.expect_unavailable("broker");
}

fn path(name: &str) -> String {
    format!("/webws?channel=%22{name}%22")
}

/// Which texts of the outage may be missing somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Nothing,
    FromOtherWorkers,
}

/// Several sessions on each of several channels.
struct Stage {
    redis: Redis,
    webws: Webws,
    /// How many workers had subscribed each channel before the outage.
    numsub: HashMap<&'static str, usize>,
    witnesses: Vec<(&'static str, Vec<Witness>)>,
}

impl Stage {
    async fn start(workers: usize) -> Stage {
        Stage::start_with(workers, |builder| builder).await
    }

    async fn start_with(workers: usize, more: impl FnOnce(Builder) -> Builder) -> Stage {
        let redis = Redis::start().await;
        let webws = more(Webws::builder().broker(&redis.url()).workers(workers)).start().await;
        let mut witnesses = Vec::new();
        for name in CHANNELS {
            let mut here = Vec::new();
            for _ in 0..SESSIONS {
                here.push(Witness::join(&webws.target(), &path(name)).await);
            }
            witnesses.push((name, here));
        }
        let mut numsub = HashMap::new();
        for name in CHANNELS {
            let count = redis.numsub(format!("chat:{name}").as_bytes()).await;
            assert!((1..=workers).contains(&count), "{name}: {count}");
            numsub.insert(name, count);
        }
        let mut stage = Stage { redis, webws, numsub, witnesses };
        stage.publish_everywhere("before").await;
        stage
    }

    /// Publishes once on each channel; everybody gets it.
    async fn publish_everywhere(&mut self, text: &str) {
        for (name, witnesses) in &mut self.witnesses {
            let receivers = self.redis.publish(format!("chat:{name}").as_bytes(), text.as_bytes()).await;
            assert!(receivers > 0, "nobody is subscribed to {name}");
            for witness in witnesses {
                witness.await_text(&format!("{text}{name}"), SOON).await;
            }
        }
    }

    async fn kill_links(&self, link: &str) -> usize {
        let mut killed = 0;
        for client in self.redis.clients().await {
            let field = |key| client.split(' ').find_map(|field| field.strip_prefix(key));
            if field("name=") == Some(link) {
                self.redis.command(&["CLIENT", "KILL", "ID", field("id=").unwrap()]).await;
                killed += 1;
            }
        }
        killed
    }

    /// Everybody sends texts, and pings are answered, until `end`.
    async fn live_through(&mut self, end: Instant) {
        for n in 0..TEXTS {
            for (name, witnesses) in &self.witnesses {
                for (index, witness) in witnesses.iter().enumerate() {
                    witness.client.send_text(&format!("{name}{index}-{n} ")).await;
                }
            }
        }
        let mut round = 0;
        loop {
            for (_, witnesses) in &mut self.witnesses {
                for witness in witnesses {
                    witness.ping(format!("ping {round}").as_bytes(), PONG_MAX).await;
                }
            }
            round += 1;
            let next = Instant::now() + Duration::from_millis(500);
            if next >= end {
                return sleep_until(end).await;
            }
            sleep_until(next).await;
        }
    }

    /// All channels are subscribed, the next publication arrives, and every text did, once and in order.
    async fn hears_all_again(&mut self, lost: Lost) {
        for name in CHANNELS {
            let channel = format!("chat:{name}");
            let subscribed = async || self.redis.numsub(channel.as_bytes()).await == self.numsub[name];
            until(&format!("{channel} is subscribed"), RECOVERY, subscribed).await;
        }
        if lost == Lost::Nothing {
            for (_, witnesses) in &mut self.witnesses {
                for witness in witnesses {
                    witness.await_texts(1 + SESSIONS * TEXTS, RECOVERY).await;
                }
            }
        }
        self.publish_everywhere("after").await;
        for (name, witnesses) in &mut self.witnesses {
            for witness in witnesses {
                // A second copy would follow at once.
                witness.collect(Duration::from_millis(200)).await;
                let texts = &witness.texts;
                assert_eq!(texts.first(), Some(&format!("before{name}")));
                assert_eq!(texts.iter().filter(|text| **text == format!("after{name}")).count(), 1, "{texts:?}");
                for index in 0..SESSIONS {
                    let own: Vec<_> =
                        texts.iter().filter(|text| text.starts_with(&format!("{name}{index}-"))).collect();
                    let all: Vec<_> = (0..TEXTS).map(|n| format!("{name}{index}-{n} {name}")).collect();
                    // Sorted and without copies, whatever is missing.
                    assert!(own.is_sorted_by(|a, b| a < b), "texts of {index}: {texts:?}");
                    assert!(lost == Lost::FromOtherWorkers || own.iter().copied().eq(&all), "{texts:?}");
                }
            }
        }
    }

    /// Redis is away and back again at most `changes` times, a gap at most once a worker, and nothing else but
    /// the start.
    async fn log_has_one_line_per_change(&self, changes: usize) {
        let back = || self.webws.entries_with("after").len();
        until("each outage is over", SOON, async || self.webws.outages().len() == back()).await;
        let (away, back, gaps) = (self.webws.outages().len(), back(), self.webws.gaps().len());
        let lines = self.webws.entries().len();
        assert!(away <= changes && gaps <= 2 && lines <= 2 + away + back + gaps, "{}", self.webws.log());
    }
}
