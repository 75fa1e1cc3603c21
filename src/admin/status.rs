//! The line that `systemctl status` shows, updated while the process serves. May not enter: how workers count.

use std::time::Duration;

use crate::metrics::Metrics;
use crate::os;
use crate::worker::{Command, Mailbox, State};

/// The time between two updates. Chosen: an operator sees changes within some seconds.
const PERIOD: Duration = Duration::from_secs(2);

/// How long the workers may take to answer. During a hand-over they are busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends the state to systemd after each change. Never resolves.
pub(crate) async fn renew(metrics: Metrics, workers: Vec<Mailbox>, max_sessions: usize) {
    let mut told = String::new();
    loop {
        // A worker that does not answer in time is asked again at the next update.
        if let Ok(Some(state)) = tokio::time::timeout(PATIENCE, state_of(&workers)).await {
            let text = text(metrics.sessions(), max_sessions, &state, metrics.straight());
            if text != told && os::systemd::renew_status(&text).is_ok() {
                told = text;
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// All workers' state as one; `None` when one has ended.
async fn state_of(workers: &[Mailbox]) -> Option<State> {
    let mut all = State::default();
    for worker in workers {
        let state = worker.ask(Command::State).await.ok()?;
        all.handshakes += state.handshakes;
        // Each worker reports the fault of all links.
        all.fault = all.fault.or(state.fault);
    }
    Some(all)
}

fn text(sessions: u64, max_sessions: usize, state: &State, straight: Option<String>) -> String {
    let fault =
        state.fault.as_deref().map_or_else(|| "ready, messages flow".to_owned(), |why| format!("NOT READY: {why}"));
    let straight = straight.map_or_else(String::new, |straight| format!("{straight}; "));
    let handshakes = state.handshakes;
    format!(
        "{sessions} of at most {max_sessions} WebSockets open, {handshakes} handshakes under way; {straight}{fault}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_many_and_what_is_wrong() {
        let mut state = State { handshakes: 2, fault: None };
        let fine = text(12, 100, &state, None);
        assert_eq!(fine, "12 of at most 100 WebSockets open, 2 handshakes under way; ready, messages flow");
        state.fault = Some("Redis is on fire".to_owned());
        let on_fire = text(12, 100, &state, Some("5 straight".to_owned()));
        assert!(on_fire.ends_with("; 5 straight; NOT READY: Redis is on fire"), "{on_fire}");
    }
}
