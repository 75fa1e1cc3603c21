//! Carries out commands. For a hand-over, a worker quiesces, becomes a snapshot, and resumes or leaves; or it adopts
//! the snapshot of another worker, and resumes from there.
//!
//! While a worker is quiesced, no session is read, nothing is published, and no timer runs. May not enter: how long a
//! command waits (`wait.rs`).

use std::time::Duration;

use tokio::time::Instant;

use super::command::{Answer, Command, Missing};
use super::snapshot::{Adopted, Collected};
use super::state::Worker;
use super::wait::{Until, Wait};
use crate::broker::{Broker, Marking, Request};
use crate::channel::Channel;
use crate::protocol::hub::Keep;

impl Worker {
    /// Carries out a command: at once, or when the awaited state is reached.
    pub(super) fn obey(&mut self, command: Command, broker: &mut Broker) {
        match command {
            Command::Drain => self.drain(broker),
            Command::Leave => self.phase.leave(),
            Command::Publish(request) => self.publish(request),
            // The asker may have gone, here and below.
            Command::State(tell) => drop(tell.send(self.state(broker))),
            Command::LinkFault(tell) => drop(tell.send(broker.link_fault())),
            Command::Channels(tell) => drop(tell.send(self.core.hub.channels_in_use())),
            Command::Connect { within, tell } => self.wait(Until::Connected, within, tell),
            Command::Histories { from, tell } => drop(tell.send(self.core.hub.histories(from, self.now()))),
            Command::AdoptHistories(part, tell) => {
                self.core.hub.adopt_histories(part, self.now());
                drop(tell.send(Ok(())));
            }
            Command::Hear { milestone, within, tell } => self.wait(Until::Heard(milestone), within, tell),
            Command::HistoryOf { channel, tell } => {
                drop(tell.send(self.core.hub.history_of(&channel, self.now())));
            }
            Command::ReadBack { client, parts } => self.on_read_back(client, parts, broker),
            Command::Reserve { channels, within, tell } => self.reserve_all(channels, within, tell),
            Command::SetMarker { name, seal, within, tell } => {
                self.wait(Until::MarkerPossible { name, seal }, within, tell);
            }
            Command::FinishHandshakes { within, tell } => self.wait(Until::HandshakesFinished, within, tell),
            Command::Quiesce { within, tell } => {
                self.phase.quiesce(self.clock.now());
                self.wait(Until::Answered, within, tell);
            }
            Command::PublishMarker => broker.request(Request::PublishMarker),
            Command::AwaitMarker { within, tell } => self.wait(Until::Marker(Marking::Reached), within, tell),
            Command::Collect(tell) => drop(tell.send(self.collect(broker))),
            Command::Adopt(adopted, tell) => drop(tell.send(self.adopt(adopted))),
            Command::Lose(time, why) => self.lose(time, why, broker),
            Command::Resume(tell) => {
                self.resume(broker);
                drop(tell.send(Ok(())));
            }
        }
    }

    fn wait(&mut self, until: Until, within: Duration, tell: Answer) {
        self.waits.push(Wait::new(until, within, tell));
    }

    fn reserve_all(&mut self, channels: Vec<Channel>, within: Duration, tell: Answer) {
        let mut confirmations = Vec::new();
        for channel in channels {
            let keep = Keep::widest(self.endpoints.iter().map(|endpoint| &endpoint.config), &channel);
            confirmations.extend(self.core.reserve(&channel, keep));
        }
        self.wait(Until::Subscribed(confirmations), within, tell);
    }

    fn collect(&mut self, broker: &Broker) -> Collected {
        let now = self.now();
        self.core.hub.stop_pacing();
        self.core.flush(now);
        // From here on, the other process knows everything that was sent.
        self.phase.freeze();
        Collected { away: broker.away_for(), ..self.core.collect(now) }
    }

    fn adopt(&mut self, adopted: Adopted) -> Result<(), String> {
        let now = self.now();
        self.phase.adopt(now);
        self.core.adopt(adopted, &self.endpoints, now).map_err(|error| error.to_string())
    }

    fn lose(&mut self, time: Duration, why: Missing, broker: &mut Broker) {
        debug_assert!(self.phase.is_frozen(), "a gap of adopted sessions while {:?}", self.phase);
        self.missing = Some(why);
        self.core.miss_all();
        let now = Instant::now();
        broker.request(Request::LoseSince(now.checked_sub(time).unwrap_or(now)));
    }

    /// Resumes, as if the worker had never been quiesced.
    pub(super) fn resume(&mut self, broker: &mut Broker) {
        // Commands of the hand-over are no longer awaited.
        self.waits.clear();
        let now = self.now();
        if let Some(since) = self.phase.resume() {
            let still_for = now.saturating_sub(since);
            self.core.hub.set_pace(self.config.pace);
            self.core.free_reserved(now);
            self.core.outbox.extend_deadlines(still_for);
            for key in self.core.all_keys() {
                self.guarded(key, now, |core| core.resume_session(key, still_for, now));
            }
        }
        broker.request(Request::Release);
        self.flush();
    }
}
