//! A session's timers: pings, and all deadlines after which the session closes or ends. May not enter: a clock, because
//! `now` is an argument.

use std::time::Duration;

use super::action::{Action, Denial};
use super::state::{Phase, Session};
use crate::clock::{Millis, millis};
use crate::close::CloseReason;
use crate::protocol::outbound::Batch;
use crate::protocol::socket::Socket;

impl Session {
    /// Handles every timer that is due at `now`.
    pub(crate) fn on_tick(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        match self.phase {
            Phase::Subscribing { until } if now >= until => Action::Refuse(Denial::TimedOut),
            Phase::Closing { reason, until, awaits_reply } if now >= until => {
                if let Some(action) = self.continue_answer(socket, now) {
                    return action;
                }
                if awaits_reply && self.outbound.is_none() {
                    // No reply came in time; FIN may still end the connection in order.
                    self.phase = Phase::Closing { reason, until, awaits_reply: false };
                    self.finish_if_sent(socket, now);
                    return Action::Stay;
                }
                Action::End(reason)
            }
            Phase::Ending { reason, until } if now >= until => Action::End(reason),
            Phase::Subscribing { .. } | Phase::Opening | Phase::Closing { .. } | Phase::Ending { .. } => Action::Stay,
            Phase::Open => self.on_tick_while_open(socket, now),
        }
    }

    fn on_tick_while_open(&mut self, socket: &mut impl Socket, now: Millis) -> Action {
        if self.expires_at() <= now {
            return self.fault(CloseReason::Expired, socket, now);
        }
        if self.stalled_at() <= now {
            // The kernel reports a Unix socket as writable only when three quarters of its buffer are free
            // (unix_writable). A send finds out whether a slow reader has taken bytes.
            if let Err(unsent) = self.drain(socket, now) {
                return self.on_unsent(unsent, socket, now);
            }
            if self.stalled_at() <= now {
                return self.fault(CloseReason::Stalled, socket, now);
            }
        }
        if self.silent_at() <= now {
            return self.fault(CloseReason::Silent, socket, now);
        }
        if self.not_published_at() <= now {
            return self.fault(CloseReason::NotPublished, socket, now);
        }
        if self.ping_at() <= now {
            if self.is_poll() {
                return Action::Answer;
            }
            self.pinged_at = now;
            let ping = self.encoding.ping();
            if let Err(unsent) = self.push(&mut Batch::new(ping), socket, now) {
                return self.on_unsent(unsent, socket, now);
            }
        }
        if self.resumes_at() <= now {
            if let Some(rate) = self.rare.as_mut().and_then(|rare| rare.rate.as_mut()) {
                rate.resumes_at = Millis::MAX;
            }
            return Action::ReadAgain;
        }
        Action::Stay
    }

    /// When [`Session::on_tick`] should be called next, if nothing happens until then; [`Millis::MAX`] for never.
    pub(crate) fn next_due(&self) -> Millis {
        match self.phase {
            Phase::Opening => Millis::MAX,
            Phase::Subscribing { until } | Phase::Closing { until, .. } | Phase::Ending { until, .. } => until,
            Phase::Open => {
                let fault = self.stalled_at().min(self.silent_at()).min(self.not_published_at());
                fault.min(self.ping_at()).min(self.expires_at()).min(self.resumes_at())
            }
        }
    }

    pub(super) fn stalled_at(&self) -> Millis {
        let queue = self.outbound.as_ref();
        queue.map_or(Millis::MAX, |queue| after(queue.progress_at, self.endpoint.config.stall_timeout))
    }

    pub(super) fn silent_at(&self) -> Millis {
        // While the session is paused, bytes of the client are not seen. A client that only receives sends none: its
        // end shows in the pings that it does not take (`stalled_at`), or in an error of the socket.
        if self.waiting.is_paused || self.encoding.is_one_way() {
            return Millis::MAX;
        }
        after(self.alive_at, self.endpoint.config.idle_timeout)
    }

    pub(super) fn not_published_at(&self) -> Millis {
        let config = &self.endpoint.config;
        if self.has_waiting_messages() { after(self.waiting.since, config.publish_timeout) } else { Millis::MAX }
    }

    fn expires_at(&self) -> Millis {
        self.identity().map_or(Millis::MAX, |identity| identity.expires_at)
    }

    /// When a client that was too fast is read again.
    fn resumes_at(&self) -> Millis {
        self.rate().map_or(Millis::MAX, |rate| rate.resumes_at)
    }

    /// A client that polls is answered instead.
    fn ping_at(&self) -> Millis {
        if self.is_poll() {
            return after(self.pinged_at, self.endpoint.config.poll_timeout);
        }
        after(self.heard_at.max(self.pinged_at), self.endpoint.config.ping_interval)
    }

    /// Moves all deadlines but the end of claims by `time`, in which the quiesced worker did not read, tick or publish.
    pub(crate) fn quiesced(&mut self, time: Millis) {
        self.alive_at = self.alive_at.saturating_add(time);
        self.waiting.since = self.waiting.since.saturating_add(time);
        if let Some(queue) = &mut self.outbound {
            queue.progress_at = queue.progress_at.saturating_add(time);
        }
        if let Phase::Subscribing { until } | Phase::Closing { until, .. } | Phase::Ending { until, .. } =
            &mut self.phase
        {
            *until = until.saturating_add(time);
        }
    }
}

/// `limit` after `since`; a limit of zero never passes.
fn after(since: Millis, limit: Duration) -> Millis {
    if limit.is_zero() { Millis::MAX } else { since.saturating_add(millis(limit)) }
}
