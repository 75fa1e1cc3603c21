//! How fast a client sends, against how fast it may: a bucket of tokens, kept as the one time at which all messages so
//! far are paid for (the generic cell rate algorithm, ITU-T I.371). May not enter: what happens to a client that is too
//! fast.

use crate::clock::Millis;
use crate::config::RateConfig;

/// How much may come at once: the messages of one second.
const BURST_US: u64 = 1_000_000;

/// A client's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// When all messages so far are paid for, in microseconds.
    paid_at: u64,
    /// When a session that waits for its rate is read again.
    pub(super) resumes_at: Millis,
}

impl Default for Rate {
    fn default() -> Self {
        Self { paid_at: 0, resumes_at: Millis::MAX }
    }
}

impl Rate {
    /// Counts a message; false when it comes too fast.
    pub(super) fn take(&mut self, config: &RateConfig, bytes: usize, now: Millis) -> bool {
        let now = now.saturating_mul(1_000);
        let share = |count: usize, of: usize| (count as u64).saturating_mul(1_000_000) / (of as u64).max(1);
        let cost = share(1, config.messages).max(share(bytes, config.bytes));
        self.paid_at = self.paid_at.max(now).saturating_add(cost);
        self.paid_at <= now.saturating_add(BURST_US)
    }

    /// From when on the client may send again.
    pub(super) fn free_at(&self) -> Millis {
        self.paid_at.saturating_sub(BURST_US).div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Action;
    use super::super::stage::{LUA, Stage, frame};
    use super::*;
    use crate::close::CloseReason;
    use crate::config::{EndpointConfig, RatePolicy};

    /// The opcode of a text.
    const TEXT: u8 = 0x81;

    fn stage(over: RatePolicy) -> Stage {
        let rate = RateConfig { messages: 10, over, ..RateConfig::default() };
        Stage::open(EndpointConfig::default().with_rate(rate), LUA)
    }

    #[test]
    fn a_client_that_is_too_fast_waits_and_loses_nothing() {
        let mut stage = stage(RatePolicy::Wait);
        let many: Vec<u8> = (0..25).flat_map(|_| frame(TEXT, b"x")).collect();
        assert_eq!(stage.read(&many), Action::Stay);
        assert_eq!(stage.outbox.messages.len(), 11, "a second's worth, and the one that was too fast");
        for sent in 12..=25 {
            let due = stage.session.next_due();
            assert!(!stage.session.may_end_pause(usize::MAX, stage.now), "not before its time");
            assert!(due > stage.now && due <= stage.now + 100, "{due}");
            assert_eq!(stage.pass(due - stage.now), Action::ReadAgain);
            assert!(stage.session.may_end_pause(usize::MAX, stage.now));
            assert_eq!((stage.end_pause(), stage.outbox.messages.len()), (Action::Stay, sent));
        }
    }

    #[test]
    fn an_endpoint_may_close_a_client_that_is_too_fast() {
        let mut stage = stage(RatePolicy::Close);
        let many: Vec<u8> = (0..25).flat_map(|_| frame(TEXT, b"x")).collect();
        assert_eq!(stage.read(&many), Action::Close(CloseReason::TooFast));
        assert_eq!(stage.outbox.messages.len(), 10);
    }

    #[test]
    fn a_second_may_come_at_once_and_the_average_is_kept() {
        let config = RateConfig { messages: 10, bytes: 1_000, ..RateConfig::default() };
        let (mut rate, start) = (Rate::default(), 5_000);
        let at_once = (0..20).filter(|_| Rate::take(&mut rate, &config, 10, start)).count();
        assert_eq!(at_once, 10);
        assert_eq!(rate.free_at(), start + 1_000, "ten more have to be paid for");
        let mut rate = Rate::default();
        let mut now = start;
        for _ in 0..100 {
            if !rate.take(&config, 10, now) {
                now = rate.free_at();
            }
        }
        assert_eq!(now - start, 9_000, "a hundred messages at ten a second, the first second's at once");
    }

    #[test]
    fn long_messages_count_by_their_bytes() {
        let config = RateConfig { messages: 1_000, bytes: 1_000, ..RateConfig::default() };
        let mut rate = Rate::default();
        assert!(rate.take(&config, 900, 7) && !rate.take(&config, 300, 7));
        assert_eq!(rate.free_at(), 7 + 200);
        assert!(rate.take(&config, 100, 7 + 200 + 100));
    }

    #[test]
    fn a_pause_earns_no_more_than_a_second() {
        let config = RateConfig { messages: 10, ..RateConfig::default() };
        let mut rate = Rate::default();
        rate.take(&config, 1, 0);
        assert_eq!((0..50).filter(|_| rate.take(&config, 1, 3_600_000)).count(), 10);
    }
}
