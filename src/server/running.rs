//! A server whose workers run, until the server drains or leaves its sessions to another process.
//!
//! May not enter: what connections say.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::error::ServerError;
use super::listener::Listener;
use crate::broker::redis;
use crate::config::Config;
use crate::front::acceptor::{Entrance, first};
use crate::front::handoff::{Handoffs, Trust};
use crate::handover::Site;
use crate::handover::protocol::ListenerSnapshot;
use crate::metrics::Shard;
use crate::notice;
use crate::os;
use crate::os::descriptors::Lent;
use crate::worker::{Command, Mailbox};

/// A server whose workers run.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) listeners: Vec<Listener>,
    pub(super) leftover: Vec<Listener>,
    pub(super) config: Arc<Config>,
    pub(super) deployment: Option<redis::Deployment>,
    pub(super) ends: Vec<End>,
    /// A worker ends when its sender is dropped.
    pub(super) mailboxes: Vec<mpsc::Sender<Command>>,
    pub(super) entrance: Arc<Entrance>,
}

/// How a worker ends.
#[derive(Debug)]
pub(super) struct End {
    pub(super) ended: oneshot::Receiver<io::Result<()>>,
    pub(super) thread: JoinHandle<()>,
}

/// How a server ends without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The server closes its sessions.
    Drain,
    /// Another process has the sessions.
    Leave,
}

impl End {
    fn result(told: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Result<()> {
        told.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    }
}

impl Running {
    /// Each worker's counts, for a watchdog.
    pub(crate) fn shards(&self) -> Vec<Arc<Shard>> {
        self.entrance.shards()
    }

    /// The path of the control socket: the setting `control`.
    pub(crate) fn control(&self) -> Option<&PathBuf> {
        self.config.control.as_ref()
    }

    /// Everything that a hand-over needs, valid while the server runs.
    pub(crate) fn site(&self) -> Site {
        let snapshot = |listener: &Listener| {
            let address = listener.listen.as_ref().map(ToString::to_string);
            let file = listener.file.as_ref().map(|(_, id)| (id.device, id.inode));
            (ListenerSnapshot { address, file }, Lent::from(&listener.socket))
        };
        Site {
            workers: self.mailboxes.iter().map(Mailbox::of).collect(),
            listeners: self.listeners.iter().map(snapshot).collect(),
            broker: self.config.broker.to_string(),
            control: self.config.control.clone(),
            deployment: self.deployment.clone(),
            entrance: self.entrance.clone(),
        }
    }

    /// Owns the listeners, because the old process has ended. Listeners that are no longer configured are closed.
    pub(crate) fn own_listeners(&mut self) {
        self.listeners.iter_mut().chain(&mut self.leftover).for_each(|listener| listener.owns_file = true);
        for (path, id) in self.listeners.iter().filter_map(|listener| listener.file.as_ref()) {
            let Config { socket_mode, socket_group, .. } = &*self.config;
            if let Err(error) = os::socket_file::grant(path, *id, socket_mode.0, socket_group.as_deref()) {
                let path = path.display();
                tracing::warn!(
                    %error,
                    %path,
                    "{path} keeps its old permissions and group: socket_mode and socket_group cannot be applied \
                     ({error})"
                );
            }
        }
        self.leftover.clear();
        self.entrance.set_open(true);
    }

    /// Serves until `shutdown` resolves, then drains or leaves.
    pub(crate) async fn run_until(mut self, shutdown: impl Future<Output = Ending>) -> Result<(), ServerError> {
        let sockets = self.listeners.iter().map(|listener| listener.socket.as_fd());
        let (handoffs, listeners): (Vec<_>, Vec<_>) = sockets.partition(|socket| os::handoff::is_handoff(*socket));
        let handoffs: Vec<_> = handoffs.into_iter().map(|socket| handoffs_on(socket, &self.config)).collect();
        let ending = tokio::select! {
            ending = shutdown => ending,
            (address, source) = self.entrance.accept(&listeners) => return Err(ServerError::Listen { address, source }),
            (address, source) = self.entrance.receive(&handoffs) => return Err(ServerError::Listen { address, source }),
            error = first_end(&mut self.ends) => return Err(error),
        };
        if ending == Ending::Leave {
            self.listeners.iter_mut().for_each(|listener| listener.owns_file = false);
        }
        // No new connection. One in the listener's queue waits for the next process when the socket is systemd's, and
        // is refused by the kernel otherwise.
        self.listeners.clear();
        for worker in &self.mailboxes {
            let command = if ending == Ending::Drain { Command::Drain } else { Command::Leave };
            // A worker that has ended is noticed below.
            drop(worker.send(command).await);
        }
        for (worker, End { ended, thread }) in self.ends.into_iter().enumerate() {
            let result = End::result(ended.await);
            // The thread has sent its result, so it ends now.
            drop(thread.join());
            result.map_err(|source| ServerError::Worker { worker, source })?;
        }
        notice::tell_all();
        Ok(())
    }
}

/// The socket, and whose clients it takes.
fn handoffs_on<'a>(socket: BorrowedFd<'a>, config: &Config) -> Handoffs<'a> {
    let user = config.handoff_user.as_deref().and_then(os::socket_file::user).map(Trust::User);
    let group = || os::socket::file(socket).and_then(|path| os::socket_file::group(&path).ok());
    // A group that does not exist leaves root and webws' own user.
    Handoffs { socket, trust: user.unwrap_or_else(|| Trust::Group(group().unwrap_or(u32::MAX))) }
}

async fn first_end(ends: &mut [End]) -> ServerError {
    let ended = ends.iter_mut().enumerate().map(|(worker, end)| {
        Box::pin(async move {
            let result = End::result((&mut end.ended).await);
            let source = result.err().unwrap_or_else(|| io::Error::other("the worker ended before the server"));
            ServerError::Worker { worker, source }
        })
    });
    first(ended.collect()).await
}
