//! What server, admin, hand-over and publishers tell a worker: its one mailbox.
//!
//! May not enter: what a worker does about a command.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::snapshot::{Adopted, Collected};
use crate::broker::Seal;
use crate::channel::Channel;
use crate::message::NotPublished;

/// Commands that may wait for their worker. When so many do, the sender waits: its message stays in its own memory,
/// and commands are taken in the order in which their senders came. Chosen: far more than a worker is told while it
/// has one turn.
const MAX_COMMANDS: usize = 1_024;

/// What came of a command.
pub(crate) type Answer = oneshot::Sender<Result<(), String>>;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// To close all sessions, spread over `drain_time`, and to end.
    Drain,
    /// To end at once, without a close frame: another process has the sessions.
    Leave,
    /// To publish a message.
    Publish(PublishRequest),
    /// To report its state.
    State(oneshot::Sender<State>),
    /// To report why it has no links to the broker.
    LinkFault(oneshot::Sender<Option<String>>),
    /// To report the channels that its sessions hear.
    Channels(oneshot::Sender<Vec<Channel>>),
    /// To have its links to the broker.
    Connect { within: Duration, tell: Answer },
    /// To subscribe channels whose sessions are to come.
    Reserve { channels: Vec<Channel>, within: Duration, tell: Answer },
    /// To let its streams stop at a marker.
    SetMarker { name: String, seal: Option<Seal>, within: Duration, tell: Answer },
    /// To finish its handshakes: no connections come any more.
    FinishHandshakes { within: Duration, tell: Answer },
    /// To be quiesced, and to report when the broker has answered for the messages that it has.
    Quiesce { within: Duration, tell: Answer },
    /// To publish the marker.
    PublishMarker,
    /// To report when its streams have come to the marker.
    AwaitMarker { within: Duration, tell: Answer },
    /// To become a snapshot; the sockets stay open until the worker resumes or ends.
    Collect(oneshot::Sender<Collected>),
    /// To be what another worker was.
    Adopt(Adopted, Answer),
    /// To note that no process has listened for so long for the sessions that it has adopted.
    Lose(Duration, Missing),
    /// To serve again.
    Resume(Answer),
}

/// A message from [`crate::Publisher`].
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) channel: Channel,
    pub(crate) payload: Bytes,
    pub(crate) tell: oneshot::Sender<Result<(), NotPublished>>,
}

/// A worker's state.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Connections that wait to be answered, or are being answered.
    pub(crate) handshakes: usize,
    /// Why it is not ready, if it is not.
    pub(crate) fault: Option<String>,
}

/// Why no process listened for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// There was no process, as an operator wanted.
    Restart,
    /// The new process listens to another broker.
    OtherBroker,
}

/// A mailbox: the server's end, for as long as which the worker runs, and the worker's.
pub(crate) fn mailbox() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(MAX_COMMANDS)
}

/// A worker's mailbox, for all but its server: it does not keep the worker running.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox(mpsc::WeakSender<Command>);

/// The worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker has ended")]
pub(crate) struct Ended;

impl Mailbox {
    pub(crate) fn of(sender: &mpsc::Sender<Command>) -> Self {
        Self(sender.downgrade())
    }

    /// Sends a command; waits while too many wait.
    ///
    /// # Errors
    /// When the worker has ended.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Ended> {
        let sender = self.0.upgrade().ok_or(Ended)?;
        sender.send(command).await.map_err(|_| Ended)
    }

    /// Sends a command and awaits its answer.
    ///
    /// # Errors
    /// When the worker has ended.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ended> {
        let (tell, told) = oneshot::channel();
        self.send(command(tell)).await?;
        told.await.map_err(|_| Ended)
    }

    /// As [`Mailbox::send`], on a thread that may block.
    ///
    /// # Errors
    /// When the worker has ended.
    pub(crate) fn blocking_send(&self, command: Command) -> Result<(), Ended> {
        let sender = self.0.upgrade().ok_or(Ended)?;
        sender.blocking_send(command).map_err(|_| Ended)
    }

    /// As [`Mailbox::ask`], on a thread that may block.
    ///
    /// # Errors
    /// When the worker has ended.
    pub(crate) fn blocking_ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Ended> {
        let (tell, told) = oneshot::channel();
        self.blocking_send(command(tell))?;
        told.blocking_recv().map_err(|_| Ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_full_mailbox_makes_its_sender_wait_and_loses_nothing() {
        let (sender, mut receiver) = mailbox();
        let mailbox = Mailbox::of(&sender);
        for _ in 0..MAX_COMMANDS {
            sender.try_send(Command::PublishMarker).unwrap();
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = pin!(mailbox.send(Command::Drain));
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Pending);
        let mut behind = pin!(mailbox.send(Command::Leave));
        assert_eq!(behind.as_mut().poll(&mut cx), Poll::Pending);
        assert!(matches!(receiver.try_recv(), Ok(Command::PublishMarker)));
        assert_eq!(behind.as_mut().poll(&mut cx), Poll::Pending, "the first that waited is the first");
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        receiver.try_recv().unwrap();
        assert_eq!(behind.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        let rest: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert!(matches!(rest.as_slice(), [.., Command::Drain, Command::Leave]));
    }

    #[tokio::test]
    async fn a_mailbox_does_not_keep_its_worker_running() {
        let (sender, mut receiver) = mailbox();
        let mailbox = Mailbox::of(&sender);
        drop(sender);
        assert!(receiver.recv().await.is_none());
        assert_eq!(mailbox.send(Command::Drain).await, Err(Ended));
        assert!(mailbox.ask(Command::State).await.is_err());
    }
}
