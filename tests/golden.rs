//! Promise: webws is a drop-in for the Lua handler. Its recorded cases are replayed, directly, behind nginx, and straight from
//! nginx.
//!
//! `golden.json` is the contract's data (its `format` field explains it). `case` reads it, `replay` drives a
//! case, `judge` compares, `scenario` holds the cases whose rules are prose. All failures are listed at once.

mod case;
mod judge;
mod replay;
mod scenario;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};

use self::case::{Case, GOLDEN, Kind};
use crate::nginx::site::HOSTILE;
use crate::support::client::Target;
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;

/// Servers that share the plain cases: those on one channel, which must not meet, finish sooner.
const STACKS: usize = 4;
/// Cases under way at any time, so that two cores keep up.
const AT_ONCE: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_replays_directly_on_the_unix_socket() {
    replay_all(Route::Direct).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_replays_through_nginx() {
    replay_all(Route::ThroughNginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_replays_straight_from_nginx() {
    replay_all(Route::Straight).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn golden_replays_through_nginx_in_a_site_with_hostile_settings() {
    let failures = replay_plain(Route::ThroughHostileSite).await;
    assert!(failures.is_empty(), "{} golden cases fail:\n\n{}", failures.len(), failures.join("\n\n"));
}

/// Cases that nginx answers before it has a location; in a hostile site its answers take minutes.
const BEFORE_A_LOCATION: [&str; 4] = ["hs-http20", "hs-long9k", "hs-nohost", "hs-rawspace"];

/// How the client reaches webws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Direct,
    ThroughNginx,
    /// nginx, in a site that sets whatever a location inherits.
    ThroughHostileSite,
    /// nginx, which hands its clients off.
    Straight,
}

/// Redis, webws and, if the route leads there, nginx.
#[derive(Debug)]
struct Stack {
    nginx: Option<Nginx>,
    webws: Webws,
    redis: Redis,
}

impl Stack {
    async fn start(route: Route) -> Stack {
        let redis = Redis::start().await;
        let webws = Webws::builder().broker(&redis.url());
        let webws = if route == Route::Straight { webws.straight() } else { webws }.start().await;
        let nginx = match route {
            Route::Direct => None,
            Route::Straight => {
                let sockets = (&*webws.socket(), &*webws.handoff());
                Some(Nginx::start_straight(Site::default(), sockets, |_, text| text).await)
            }
            Route::ThroughNginx => Some(Nginx::start(&webws.socket()).await),
            Route::ThroughHostileSite => Some(Nginx::start_in(HOSTILE, &webws.socket(), |_, text| text).await),
        };
        Stack { nginx, webws, redis }
    }

    fn target(&self) -> Target {
        self.nginx.as_ref().map_or_else(|| self.webws.target(), Nginx::target)
    }
}

/// Plain cases first, then the scenarios, which measure times and stop servers.
async fn replay_all(route: Route) {
    let mut failures = replay_plain(route).await;
    failures.extend(play_scenarios(route).await);
    let total = GOLDEN.cases.len();
    assert!(failures.is_empty(), "{} of {total} golden cases fail:\n\n{}", failures.len(), failures.join("\n\n"));
}

async fn replay_plain(route: Route) -> Vec<String> {
    // What has the same channel takes turns on its stack; a case without one waits for nobody.
    let mut stacks: [HashMap<&[u8], Vec<&'static Case>>; STACKS] = Default::default();
    for (nth, case) in GOLDEN.cases.iter().enumerate() {
        if route == Route::ThroughHostileSite && BEFORE_A_LOCATION.contains(&&*case.id) {
            continue;
        }
        if let Kind::Plain { channel, .. } = &case.kind {
            let turn = channel.as_deref().unwrap_or(case.id.as_bytes());
            stacks[nth % STACKS].entry(turn).or_default().push(case);
        }
    }
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut running = JoinSet::new();
    for turns in stacks {
        let stack = Arc::new(Stack::start(route).await);
        for cases in turns.into_values() {
            let (stack, permits) = (Arc::clone(&stack), Arc::clone(&permits));
            running.spawn(async move {
                let mut failures = Vec::new();
                for case in cases {
                    let _permit = permits.acquire().await;
                    if let Err(report) = replay::replay(case, &stack, route).await {
                        failures.push(format!("{case}\n{report}"));
                    }
                }
                failures
            });
        }
    }
    let mut failures = running.join_all().await.concat();
    failures.sort();
    failures
}

async fn play_scenarios(route: Route) -> Vec<String> {
    let mut running = JoinSet::new();
    let mut names: HashMap<Id, &'static Case> = HashMap::new();
    for case in &GOLDEN.cases {
        if let Kind::Scenario(scenario) = &case.kind {
            let task = running.spawn(async move { scenario.play(Stack::start(route).await).await });
            names.insert(task.id(), case);
        }
    }
    let mut failures = Vec::new();
    while let Some(ended) = running.join_next_with_id().await {
        if let Err(panic) = ended {
            failures.push(format!("{}\n{}", names[&panic.id()], reason(panic)));
        }
    }
    failures.sort();
    failures
}

fn reason(panic: JoinError) -> String {
    let payload = panic.into_panic();
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}
