//! The embedded broker: one process, all its workers, nothing to install.
//!
//! The one thing workers share: a bus with a bounded inbox per worker. A publisher waits
//! for room in every inbox, so a slow worker slows publishing and loses nothing.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, Notify, mpsc};

use super::Sink;
use crate::channel::Channel;
use crate::placement::Node;

/// Publications that may wait for a worker. Chosen: at the largest client message 16 MiB.
const INBOX: usize = 256;

/// Publications handed on before the worker's other tasks have their turn. Chosen: a batch worth its system calls.
const TURN: usize = 64;

/// Bytes of texts taken from the worker at a time.
const TAKE_BYTES: usize = 64 << 10;

type Publication = (Channel, Bytes);

/// A worker's place on the bus.
#[derive(Debug)]
pub(crate) struct Port {
    bus: Arc<[mpsc::Sender<Publication>]>,
    /// Its place on it.
    own: usize,
    inbox: Mutex<mpsc::Receiver<Publication>>,
    /// Channels to confirm at the next turn.
    asked: RefCell<Vec<Channel>>,
    is_asked: Notify,
    texts_wait: Notify,
}

/// A bus for `workers` workers.
pub(crate) fn bus(workers: usize) -> Vec<PortSeed> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel(INBOX)).unzip();
    let bus: Arc<[_]> = senders.into();
    receivers.into_iter().enumerate().map(|(own, inbox)| PortSeed { bus: bus.clone(), own, inbox }).collect()
}

/// A [`Port`] on its way to its worker's thread.
#[derive(Debug)]
pub(crate) struct PortSeed {
    bus: Arc<[mpsc::Sender<Publication>]>,
    own: usize,
    inbox: mpsc::Receiver<Publication>,
}

impl Port {
    pub(crate) fn new(seed: PortSeed) -> Self {
        Self {
            bus: seed.bus,
            own: seed.own,
            inbox: Mutex::new(seed.inbox),
            asked: RefCell::default(),
            is_asked: Notify::new(),
            texts_wait: Notify::new(),
        }
    }

    pub(super) fn subscribe(&self, channel: Channel) {
        self.asked.borrow_mut().push(channel);
        self.is_asked.notify_one();
    }

    /// Whether everything that was published has been heard.
    pub(super) fn is_idle(&self) -> bool {
        self.bus.get(self.own).is_some_and(|inbox| inbox.capacity() == INBOX)
    }

    pub(super) fn wake_publisher(&self) {
        self.texts_wait.notify_one();
    }

    pub(super) async fn run(&self, sink: Rc<dyn Sink>) {
        // A port runs once, so its inbox is never contended.
        let mut inbox = self.inbox.lock().await;
        tokio::join!(self.confirm(&*sink), self.publish(&*sink), async {
            let mut received = Vec::new();
            while inbox.recv_many(&mut received, TURN).await > 0 {
                for (channel, payload) in received.drain(..) {
                    sink.on_publication(&channel, &payload);
                }
                sink.on_pause();
                // Publishers that never pause must not keep the worker's other tasks waiting.
                tokio::task::yield_now().await;
            }
        });
    }

    /// Every worker hears everything, so a subscription holds as soon as it is asked for.
    async fn confirm(&self, sink: &dyn Sink) {
        loop {
            self.is_asked.notified().await;
            for channel in self.asked.take() {
                sink.on_subscribed(Node(0), &channel);
            }
        }
    }

    async fn publish(&self, sink: &dyn Sink) {
        loop {
            self.texts_wait.notified().await;
            loop {
                let texts = sink.take_texts(Node(0), TAKE_BYTES);
                if texts.is_empty() {
                    break;
                }
                for text in texts {
                    let bytes = text.cost();
                    for inbox in self.bus.iter() {
                        // A worker that has ended needs no publications.
                        drop(inbox.send((text.channel.clone(), text.payload.clone())).await);
                    }
                    sink.on_published(text.origin, bytes, Ok(()));
                }
            }
        }
    }
}
