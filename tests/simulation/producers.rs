//! Other clients of Redis: what they publish, alone and in transactions, what else they write, and the log that is kept
//! for readers. May not enter: webws.

use super::client::PREFIX;
use super::plan::HistoryPlan;
use super::redis::Acl;
use super::world::{Happening, MILLISECOND, SECOND, World};

impl World {
    /// Publishes something as a producer.
    pub(crate) fn produce(&mut self) {
        let count = if self.rng.u8(..8) == 0 { self.rng.usize(..30) } else { 1 };
        let is_transaction = self.plan.history.is_some() && self.rng.u8(..4) == 0;
        if is_transaction {
            self.transact(true);
        }
        for _ in 0..count {
            let channel = format!("{PREFIX}chan{}", self.rng.usize(..self.plan.channels));
            let padding = if self.rng.u8(..20) == 0 { self.rng.usize(..600) } else { 0 };
            self.publish(&channel, padding);
        }
        if is_transaction {
            self.transact(false);
        } else if self.plan.history.is_some() && self.rng.u8(..4) == 0 {
            self.write();
        }
        if self.is_active() {
            let pause = self.rng.u64(..200 * MILLISECOND);
            self.at(self.now + pause, Happening::Produce);
        }
    }

    /// A producer publishes at the master that there is.
    pub(crate) fn publish(&mut self, channel: &str, padding: usize) {
        let Some(server) = self.redis.master() else { return };
        self.produced += 1;
        let payload = format!("p{}{}!", self.produced, " ".repeat(padding));
        let mut sent = Vec::new();
        self.redis.publish(server, None, channel.as_bytes(), payload.as_bytes(), self.now, &mut sent);
        self.spread(sent);
    }

    /// A producer begins a transaction, or ends it.
    fn transact(&mut self, begins: bool) {
        let Some(server) = self.redis.master() else { return };
        let mut sent = Vec::new();
        self.redis.transact(server, begins, &mut sent);
        self.spread(sent);
    }

    /// Another program writes data, or says something else where milestones are.
    fn write(&mut self) {
        let Some(server) = self.redis.master() else { return };
        let mut sent = Vec::new();
        if self.rng.u8(..10) == 0 {
            let now = self.now;
            self.redis.publish(server, None, b"webws:milestone", b"nothing of ours", now, &mut sent);
        } else {
            let value = vec![b'*'; self.rng.usize(..400)];
            self.redis.append(server, &[b"SET", b"key", &value], &mut sent);
        }
        self.spread(sent);
    }

    /// Makes a log where there is none (`redis.replay = "on"`).
    pub(crate) fn keep_log(&mut self) {
        if let Some(server) = self.redis.master() {
            self.redis.servers[server].log.make(&mut self.rng);
        }
        if self.is_active() {
            let pause = self.rng.u64(..3 * SECOND);
            self.at(self.now + pause, Happening::KeepLog);
        }
    }

    /// Whether all that was executed in the run could be read back.
    pub(crate) fn has_all_logged(&self) -> bool {
        let is_kept = |history: &HistoryPlan| {
            history.has_log && history.may_replay && history.log_bytes >= 1 << 20 && history.acl == Acl::All
        };
        self.plan.history.as_ref().is_some_and(is_kept) && !self.has_forgotten
    }
}
