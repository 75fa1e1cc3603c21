//! What a hand-over's thread tells all workers at once. It blocks; not for async code.
//!
//! May not enter: the other process.

use tokio::sync::oneshot;

use crate::worker::{Answer, Command, Ended, Mailbox};

/// Tells all workers the same, and waits for all of their answers.
///
/// # Errors
/// Why one of them could not obey.
pub(super) fn tell_all(workers: &[Mailbox], command: impl Fn(Answer) -> Command) -> Result<(), String> {
    tell_each(workers, workers.iter().map(|_| &command))
}

/// Tells each worker its own, and waits for all of their answers.
///
/// # Errors
/// Why one of them could not obey.
pub(super) fn tell_each<C: FnOnce(Answer) -> Command>(
    workers: &[Mailbox],
    commands: impl IntoIterator<Item = C>,
) -> Result<(), String> {
    let mut answers = Vec::new();
    for (worker, command) in workers.iter().zip(commands) {
        let (tell, told) = oneshot::channel();
        // One that has ended does not answer either.
        worker.blocking_send(command(tell)).ok();
        answers.push(told);
    }
    answers.into_iter().try_for_each(answer)
}

/// Waits for a worker's answer.
///
/// # Errors
/// Why it could not obey.
pub(super) fn answer(told: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    told.blocking_recv().unwrap_or_else(|_| Err(Ended.to_string()))
}
