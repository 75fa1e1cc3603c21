//! Commands to a worker, and the mailbox in which they wait. The server, a hand-over and publishers send them,
//! handshakes and the status line ask for the worker's state, and workers ask each other for histories.
//!
//! May not enter: how a worker carries out a command.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::read_back::ReadBack;
use super::snapshot::{Adopted, Collected};
use crate::broker::Seal;
use crate::channel::Channel;
use crate::message::NotPublished;
use crate::position::MilestoneId;
use crate::protocol::hub::{HistoriesSnapshot, HistoryCursor};

/// Commands that may wait in a mailbox. When the mailbox is full, senders wait in their order of arrival, each with its
/// message in its own memory. Chosen: far more than a worker gets during one turn.
const MAX_COMMANDS: usize = 1_024;

/// The result of a command.
pub(crate) type Answer = oneshot::Sender<Result<(), String>>;

/// A command to a worker.
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
    /// To report the channels of its sessions.
    Channels(oneshot::Sender<Vec<Channel>>),
    /// To give a part of its histories, and where the next part begins; `None` behind the last.
    Histories { from: HistoryCursor, tell: oneshot::Sender<(HistoriesSnapshot, Option<HistoryCursor>)> },
    /// To put the histories of another worker in front of its own.
    AdoptHistories(HistoriesSnapshot, Answer),
    /// To report when it has heard a milestone.
    Hear { milestone: MilestoneId, within: Duration, tell: Answer },
    /// To give the history of one channel to another worker.
    HistoryOf { channel: Channel, tell: oneshot::Sender<HistoriesSnapshot> },
    /// To recover a client with what other workers keep.
    ReadBack { client: ReadBack, parts: Vec<HistoriesSnapshot> },
    /// To connect to the broker.
    Connect { within: Duration, tell: Answer },
    /// To subscribe the channels of sessions that will be adopted.
    Reserve { channels: Vec<Channel>, within: Duration, tell: Answer },
    /// To make its streams stop at a marker.
    SetMarker { name: String, seal: Option<Seal>, within: Duration, tell: Answer },
    /// To finish its handshakes; no further connections come.
    FinishHandshakes { within: Duration, tell: Answer },
    /// To quiesce, and to report when the broker has answered for all messages that it took.
    Quiesce { within: Duration, tell: Answer },
    /// To publish the marker.
    PublishMarker,
    /// To report when its streams have reached the marker.
    AwaitMarker { within: Duration, tell: Answer },
    /// To become a snapshot; the sockets stay open until the worker resumes or ends.
    Collect(oneshot::Sender<Collected>),
    /// To adopt the snapshot of another worker.
    Adopt(Adopted, Answer),
    /// To report a gap of this length for the adopted sessions: no process was subscribed.
    Lose(Duration, Missing),
    /// To resume.
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
    /// Connections in their handshake, or queued for it.
    pub(crate) handshakes: usize,
    /// Why the worker is not ready, if so.
    pub(crate) fault: Option<String>,
}

/// Why no process was subscribed for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No process ran: an operator restarted the service.
    Restart,
    /// The new process uses another broker.
    OtherBroker,
}

/// A mailbox: the server's end, which keeps the worker running, and the worker's end.
pub(crate) fn mailbox() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(MAX_COMMANDS)
}

/// A worker's mailbox for everything but the server: this end does not keep the worker running.
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

    /// Sends a command; waits while the mailbox is full.
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

    /// As [`Mailbox::send`]. Blocks; not for async code.
    ///
    /// # Errors
    /// When the worker has ended.
    pub(crate) fn blocking_send(&self, command: Command) -> Result<(), Ended> {
        let sender = self.0.upgrade().ok_or(Ended)?;
        sender.blocking_send(command).map_err(|_| Ended)
    }

    /// As [`Mailbox::ask`]. Blocks; not for async code.
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
