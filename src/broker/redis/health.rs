//! The health of all links of all workers to a node: what the log and `/readyz` say, once per change. May not enter:
//! what a link does.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::LinkError;
use super::milestone::MilestoneUse;
use crate::channel::Channel;
use crate::config::RedisUrl;
use crate::throttle::Throttle;

/// The state of all links to a server, for one log line per change.
#[derive(Debug)]
pub(crate) struct Health {
    state: Mutex<State>,
    /// Whether Redis refuses subscriptions; `state` has the details.
    is_refused: AtomicBool,
    /// The number of workers that are incomplete.
    incomplete: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    /// The address of the server, without its password.
    server: String,
    /// The number of all links, and of those that are down.
    links: usize,
    down: usize,
    /// Since when links are down, and whether the log says so.
    since: Instant,
    is_told: bool,
    /// Further faults that are logged.
    also_told: Vec<&'static str>,
    was_up: bool,
    /// The last error of a link.
    last_error: String,
    is_probe_refused: bool,
    are_milestones_refused: bool,
    is_role_unknown: bool,
    /// Why no channel can be subscribed.
    refusal: Option<Refusal>,
    /// The last channel that Redis accepted from any worker, and the last one that it refused.
    taken: Option<Channel>,
    refused: Option<Channel>,
}

/// Redis refuses all subscriptions.
#[derive(Debug)]
struct Refusal {
    error: String,
    since: Instant,
    /// Whether the refusal is logged.
    is_told: bool,
}

impl Health {
    /// The health of the links of `workers` workers to `server`; none is up yet.
    pub(crate) fn new(server: &RedisUrl, workers: usize) -> Self {
        let state = State {
            server: server.to_string(),
            links: 2 * workers,
            down: 2 * workers,
            since: Instant::now(),
            is_told: false,
            also_told: Vec::new(),
            was_up: false,
            last_error: "not connected yet".to_owned(),
            is_probe_refused: false,
            are_milestones_refused: false,
            is_role_unknown: false,
            refusal: None,
            taken: None,
            refused: None,
        };
        Self { state: Mutex::new(state), is_refused: AtomicBool::new(false), incomplete: watch::Sender::new(workers) }
    }

    /// A worker is complete at this node.
    pub(crate) fn worker_is_complete(&self) {
        self.incomplete.send_modify(|incomplete| *incomplete = incomplete.saturating_sub(1));
    }

    /// A worker that was complete is incomplete.
    pub(crate) fn worker_is_incomplete(&self) {
        self.incomplete.send_modify(|incomplete| *incomplete += 1);
    }

    /// Whether all workers are complete.
    pub(crate) fn are_all_complete(&self) -> bool {
        *self.incomplete.borrow() == 0
    }

    /// The number of incomplete workers, for a task that waits for its changes.
    pub(crate) fn incomplete(&self) -> watch::Receiver<usize> {
        self.incomplete.subscribe()
    }

    /// What is wrong, if anything, as a sentence for an operator.
    pub(crate) fn fault(&self) -> Option<String> {
        let mut fault = None;
        self.change(|state| {
            if state.down > 0 {
                let State { server, links, down, since, last_error, .. } = state;
                fault = Some(format!(
                    "{down} of {links} links to {server} have been down for {:.1?}: {last_error}",
                    since.elapsed()
                ));
            }
        });
        match *self.incomplete.borrow() {
            incomplete if incomplete > 0 && fault.is_none() => {
                Some(format!("{incomplete} workers are still subscribing their channels"))
            }
            _ => fault,
        }
    }

    /// Redis does not allow probes.
    pub(crate) fn probe_is_refused(&self, error: &dyn fmt::Display) {
        self.change(|state| {
            if !std::mem::replace(&mut state.is_probe_refused, true) {
                let server = &state.server;
                tracing::warn!(
                    server,
                    %error,
                    "{server} does not allow webws' probe channels ({error}): add &webws:probe:* to the ACL user; \
                     until then webws only compares numbers of subscriptions, and does not detect a link that is \
                     subscribed and delivers nothing"
                );
            }
        });
    }

    /// Redis does not allow milestones.
    pub(crate) fn milestones_are_refused(&self, error: &dyn fmt::Display, usage: MilestoneUse) {
        self.change(|state| {
            if std::mem::replace(&mut state.are_milestones_refused, true) {
                return;
            }
            let server = &state.server;
            if usage == MilestoneUse::Positions {
                tracing::warn!(
                    server,
                    %error,
                    "{server} does not allow the channel webws:milestone ({error}): add &webws:milestone to the ACL user; \
                     until then clients get no positions and cannot catch up on missed messages, and gaps are not \
                     filled"
                );
            } else {
                tracing::info!(
                    server,
                    %error,
                    "{server} does not allow the channel webws:milestone ({error}): without &webws:milestone in the ACL \
                     user, gaps are not filled from a replication log"
                );
            }
        });
    }

    /// Redis refuses all subscriptions.
    pub(crate) fn subscription_is_refused(&self, error: &str) {
        static REFUSED: Throttle = Throttle::per_minute();
        self.change(|state| {
            self.is_refused.store(true, Ordering::Relaxed);
            let error = error.to_owned();
            let before = state.refusal.take();
            let (since, is_told) =
                before.map_or_else(|| (Instant::now(), false), |before| (before.since, before.is_told));
            let tells = REFUSED.allows();
            if tells {
                let server = &state.server;
                tracing::warn!(
                    server,
                    error,
                    "{server} refuses subscriptions, so all new WebSockets get 503: {error} (the ACL user needs \
                     +subscribe and the channels of all prefixes, for example &chat:*)"
                );
            }
            state.refusal = Some(Refusal { error, since, is_told: is_told || tells });
        });
    }

    /// Redis has accepted a worker's subscription to `channel`.
    pub(crate) fn subscription_is_taken(&self, channel: &Channel) {
        self.change(|state| {
            self.is_refused.store(false, Ordering::Relaxed);
            state.taken = Some(channel.clone());
            // Logged as often as the refusal itself.
            if let Some(Refusal { since, is_told: true, .. }) = state.refusal.take() {
                let (server, after) = (&state.server, since.elapsed());
                tracing::info!(server, ?after, "{server} accepts subscriptions again, after {after:.1?}");
            }
        });
    }

    /// Notes that Redis refuses `channel`. Returns the channels that Redis accepted and refused last before.
    pub(crate) fn tried(&self, channel: &Channel) -> [Option<Channel>; 2] {
        let mut tried = [None, None];
        self.change(|state| tried = [state.taken.clone(), state.refused.replace(channel.clone())]);
        tried
    }

    /// The channel to try again: the last one accepted, or else the last one refused.
    pub(crate) fn last_tried(&self) -> Option<Channel> {
        let mut channel = None;
        self.change(|state| channel = state.taken.clone().or_else(|| state.refused.clone()));
        channel
    }

    pub(crate) fn is_subscription_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    /// Why Redis refuses all subscriptions, as a sentence for an operator.
    pub(crate) fn refusal(&self) -> Option<String> {
        let mut refusal = None;
        self.change(|state| {
            if let Some(Refusal { error, since, .. }) = &state.refusal {
                let (server, since) = (&state.server, since.elapsed());
                refusal = Some(format!("{server} refuses subscriptions (for {since:.1?} now): {error}"));
            }
        });
        refusal
    }

    /// The server does not report its role.
    pub(crate) fn role_is_unknown(&self) {
        self.change(|state| {
            if !std::mem::replace(&mut state.is_role_unknown, true) {
                let server = &state.server;
                tracing::warn!(
                    server,
                    "{server} does not report whether it is a master (HELLO is unknown there, and ROLE is unknown or not \
                     allowed: add +role to the ACL user); webws cannot notice when it becomes a replica"
                );
            }
        });
    }

    /// A link is up.
    pub(crate) fn link_is_up(&self) {
        self.change(|state| {
            state.down = state.down.saturating_sub(1);
            if state.down > 0 {
                return;
            }
            let State { server, links, .. } = &*state;
            if state.was_up {
                let after = state.since.elapsed();
                tracing::info!(
                    server,
                    links,
                    ?after,
                    "Redis is back after {after:.1?}: all {links} links to {server} are up and subscribed"
                );
            } else {
                tracing::info!(server, links, "Redis: all {links} links to {server} are up");
            }
            state.was_up = true;
            state.is_told = false;
            state.also_told.clear();
        });
    }

    /// A link that was up is lost.
    pub(crate) fn link_is_lost(&self, error: &LinkError) {
        self.change(|state| {
            if state.down == 0 {
                state.since = Instant::now();
            }
            state.down += 1;
            state.tell(error);
        });
    }

    /// A link could not be made.
    pub(crate) fn attempt_failed(&self, error: &LinkError) {
        self.change(|state| state.tell(error));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        // Only tracing can panic while the lock is held; the counts are correct all the same.
        change(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl State {
    fn tell(&mut self, error: &LinkError) {
        self.last_error = error.to_string();
        // A fault that only an operator can end is logged even after another fault.
        if let Some(lasting) = error.lasting().filter(|lasting| self.is_told && !self.also_told.contains(lasting)) {
            self.also_told.push(lasting);
            let server = &self.server;
            tracing::warn!(server, %error, "Redis at {server} is still unavailable: {error}");
            return;
        }
        self.also_told.extend(error.lasting());
        let was_told = std::mem::replace(&mut self.is_told, true);
        let server = &self.server;
        if was_told {
            tracing::debug!(server, %error, "Redis at {server} is still unavailable: {error}");
        } else {
            tracing::warn!(
                server,
                %error,
                "Redis at {server} is unavailable: {error}. Open WebSockets stay open, new ones get 503, webws keeps \
                 retrying"
            );
        }
    }
}
