//! Publishing outside the load: one round after another, each until the broker has answered. May not enter: pace.

use std::time::Duration;

use crate::book::Book;
use crate::client::FIRST_LINK;
use crate::flight::UNTRACKED;
use crate::payload::{Composer, Header};
use crate::plan::{Plan, Publish};
use crate::poller::{self, Events, Poller};
use crate::run::Run;

use super::{Outlet, http, redis};

/// How long the broker may take for an answer. Chosen: local ones take less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);

/// A publisher that waits for the broker.
#[derive(Debug)]
pub(crate) struct Producer {
    outlet: Outlet,
    poller: Poller,
    composer: Composer,
    /// Counts the answers.
    book: Book,
    published: u64,
}

impl Producer {
    /// Connects to the broker of a plan.
    ///
    /// # Errors
    /// A sentence: why the broker cannot be reached.
    pub(crate) fn connect(plan: &Plan) -> Result<Self, String> {
        let outlet = match &plan.publish {
            Publish::Redis(source) => Outlet::Redis(redis::Outlet::connect(plan, source)?),
            Publish::Http(target) => Outlet::Http(http::Outlet::connect(plan, target)?),
            Publish::None | Publish::WebSocket => return Err("--publish names neither Redis nor HTTP".to_owned()),
        };
        let poller = Poller::new().map_err(|error| format!("epoll: {error}"))?;
        for link in outlet.links() {
            poller.add(&link.link, link.token, poller::READ).map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(Self { outlet, poller, composer: Composer::new(plan.size), book: Book::new(0, 0, 1), published: 0 })
    }

    /// Publishes so many publications on each channel of a run.
    ///
    /// # Errors
    /// A sentence: the broker is gone, refuses, or does not answer.
    pub(crate) fn publish(&mut self, run: &Run, rounds: u32) -> Result<(), String> {
        for _ in 0..rounds {
            for (channel, sent) in (0..).zip(&run.sent) {
                let sequence = sent.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                let (tag, now) = (run.tag, run.clock.micros());
                let header = Header { run: tag, sender: channel, sequence, sent: now, number: UNTRACKED };
                self.outlet.publish(channel, self.composer.compose(&header));
                self.published += 1;
            }
            self.settle()?;
        }
        Ok(())
    }

    /// Sends, and waits for all answers.
    fn settle(&mut self) -> Result<(), String> {
        let mut events = Events::new();
        while self.book.counts.answered < self.published {
            self.outlet.flush(&self.poller)?;
            let ready = self.poller.wait(&mut events, Some(PATIENCE)).map_err(|error| format!("epoll: {error}"))?;
            if ready == 0 {
                return Err(format!("{} did not answer within {PATIENCE:?}", self.outlet.name()));
            }
            for (token, _) in (0..ready).filter_map(|index| events.get(index)) {
                debug_assert!(token >= FIRST_LINK, "only links are registered");
                self.outlet.on_ready(&self.poller, token, &mut self.book)?;
            }
        }
        Ok(())
    }
}
