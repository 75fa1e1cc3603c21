//! Sends commands to all workers from the hand-over's thread. Blocks; not for async code.
//!
//! May not enter: the other process.

use tokio::sync::oneshot;

use crate::worker::{Answer, Command, Ended, Mailbox};

/// Sends the same command to all workers, and waits for all answers.
///
/// # Errors
/// Why a worker could not carry out the command.
pub(super) fn tell_all(workers: &[Mailbox], command: impl Fn(Answer) -> Command) -> Result<(), String> {
    tell_each(workers, workers.iter().map(|_| &command))
}

/// Sends each worker its own command, and waits for all answers.
///
/// # Errors
/// Why a worker could not carry out its command.
pub(super) fn tell_each<C: FnOnce(Answer) -> Command>(
    workers: &[Mailbox],
    commands: impl IntoIterator<Item = C>,
) -> Result<(), String> {
    let mut answers = Vec::new();
    for (worker, command) in workers.iter().zip(commands) {
        let (tell, told) = oneshot::channel();
        // A worker that has ended does not answer either: `answer` reports it.
        worker.blocking_send(command(tell)).ok();
        answers.push(told);
    }
    answers.into_iter().try_for_each(answer)
}

/// Waits for a worker's answer.
///
/// # Errors
/// Why the worker could not carry out the command.
pub(super) fn answer(told: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    told.blocking_recv().unwrap_or_else(|_| Err(Ended.to_string()))
}
