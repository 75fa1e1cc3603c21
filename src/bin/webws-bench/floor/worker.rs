//! One event loop of the floor: its connections, their channels, its two links to Redis. May not enter: what clients
//! send (`client`).

mod client;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::signalfd::SignalFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send, sockopt};

use crate::frame;
use crate::link::{Flushed, Link};
use crate::plan::Source;
use crate::poller::{self, Events, Flags, Poller};
use crate::resp::{Reply, reply};

use super::redis::{PREFIX, connect};
use super::{Fault, FaultKind, Shared};

const WAKER: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const SIGNALS: u64 = u64::MAX - 2;
const SUBSCRIBER: u64 = u64::MAX - 3;
const PUBLISHER: u64 = u64::MAX - 4;

/// Bytes read at a time. Chosen: more than a link or a client sends in one turn.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes kept for a client that does not read. Beyond, the client is dropped, so that the memory lasts.
const MAX_KEPT_BYTES: usize = 4 << 20;

/// A worker's counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) connections: u64,
    pub(super) messages: u64,
    pub(super) deliveries: u64,
    pub(super) sends: u64,
    pub(super) published: u64,
    /// Sends that a socket did not take whole.
    pub(super) kept: u64,
    pub(super) dropped: u64,
}

/// An event loop.
#[derive(Debug)]
pub(super) struct Worker {
    place: usize,
    shared: Arc<Shared>,
    fault: Option<Fault>,
    poller: Poller,
    /// Only in the first worker, which accepts connections and handles signals.
    door: Option<(OwnedFd, SignalFd)>,
    connections: Vec<(u32, Option<Connection>)>,
    free: Vec<u32>,
    names: HashMap<Vec<u8>, usize>,
    channels: Vec<Channel>,
    /// Channels with a batch to send.
    touched: Vec<usize>,
    subscriber: Link,
    publisher: Link,
    buffer: Vec<u8>,
    counts: Counts,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    channel: Option<usize>,
    /// The client's index among the channel's subscribers.
    place: usize,
    input: Vec<u8>,
    output: Vec<u8>,
}

#[derive(Debug, Default)]
struct Channel {
    name: Vec<u8>,
    subscribers: Vec<u32>,
    /// Clients that wait for the subscription, with the 101 for each.
    waiting: Vec<(u32, Vec<u8>)>,
    /// SUBSCRIBE commands without a reply.
    asked: u32,
    subscribed: bool,
    batch: Vec<u8>,
    frames: u64,
    /// A frame held back by a fault.
    held: Vec<u8>,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.sends += other.sends;
        self.published += other.published;
        self.kept += other.kept;
        self.dropped += other.dropped;
    }
}

impl Worker {
    pub(super) fn new(place: usize, shared: Arc<Shared>, redis: &Source, fault: Option<Fault>) -> Result<Self, String> {
        let system = |error: io::Error| format!("epoll: {error}");
        let poller = Poller::new().map_err(system)?;
        let (subscriber, publisher) = (connect(redis)?, connect(redis)?);
        poller.add(&subscriber, SUBSCRIBER, poller::READ).map_err(system)?;
        poller.add(&publisher, PUBLISHER, poller::READ).map_err(system)?;
        if let Some((_, waker)) = shared.inboxes.get(place) {
            poller.add(waker, WAKER, poller::READ).map_err(system)?;
        }
        Ok(Self {
            place,
            shared,
            fault,
            poller,
            door: None,
            connections: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            channels: Vec::new(),
            touched: Vec::new(),
            subscriber,
            publisher,
            buffer: vec![0; BUFFER_BYTES],
            counts: Counts::default(),
        })
    }

    /// Accepts connections for all workers, and ends them all at a signal.
    pub(super) fn accept_on(&mut self, listener: OwnedFd, signals: SignalFd) -> io::Result<()> {
        self.poller.add(&listener, LISTENER, poller::READ)?;
        self.poller.add(&signals, SIGNALS, poller::READ)?;
        self.door = Some((listener, signals));
        Ok(())
    }

    /// Serves until told to stop.
    pub(super) fn run(mut self) -> Result<Counts, String> {
        let mut ready = Events::new();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let events = self.poller.wait(&mut ready, None).map_err(|error| format!("epoll: {error}"))?;
            for index in 0..events {
                let Some((token, flags)) = ready.get(index) else { break };
                self.on_event(token, flags).map_err(|error| format!("the floor's link to Redis: {error}"))?;
            }
            // All SUBSCRIBE commands of this turn leave together.
            for (link, token) in [(&mut self.subscriber, SUBSCRIBER), (&mut self.publisher, PUBLISHER)] {
                let rest =
                    link.unsent() > 0 && link.flush().map_err(|error| format!("Redis: {error}"))? == Flushed::Rest;
                if rest {
                    self.poller.change(&*link, token, poller::READ_WRITE).map_err(|error| format!("epoll: {error}"))?;
                }
            }
        }
        Ok(self.counts)
    }

    fn on_event(&mut self, token: u64, flags: Flags) -> io::Result<()> {
        match token {
            SUBSCRIBER => {
                if flags.contains(Flags::OUT) && self.subscriber.flush()? == Flushed::All {
                    self.poller.change(&self.subscriber, SUBSCRIBER, poller::READ)?;
                }
                self.on_publications()?;
            }
            PUBLISHER => {
                if flags.contains(Flags::OUT) && self.publisher.flush()? == Flushed::All {
                    self.poller.change(&self.publisher, PUBLISHER, poller::READ)?;
                }
                // The reply's number of receivers does not matter here.
                self.publisher.fill()?;
                self.publisher.consume(usize::MAX);
            }
            LISTENER => {
                while let Some((listener, _)) = &self.door {
                    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                        Ok(socket) if self.shared.inboxes.len() == 1 => self.adopt(socket)?,
                        Ok(socket) => self.shared.hand_over(socket),
                        // After any error, the next event tries again.
                        Err(_) => break,
                    }
                }
            }
            WAKER => {
                if let Some((_, waker)) = self.shared.inboxes.get(self.place) {
                    // The waker's count does not matter, only the wake-up.
                    rustix::io::read(waker, &mut [0_u8; 8][..]).ok();
                }
                for socket in self.shared.take(self.place) {
                    self.adopt(socket)?;
                }
            }
            SIGNALS => {
                self.shared.stop.store(true, Ordering::Relaxed);
                (0..self.shared.inboxes.len()).for_each(|worker| self.shared.wake(worker));
            }
            _ => self.on_connection(token, flags),
        }
        Ok(())
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<()> {
        // Fails on a Unix socket, which has no such delay.
        sockopt::set_tcp_nodelay(&socket, true).ok();
        self.counts.connections += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.connections.push((0, None));
            u32::try_from(self.connections.len() - 1).unwrap_or(u32::MAX)
        });
        let Some(entry) = self.connections.get_mut(place as usize) else { return Ok(()) };
        entry.0 = entry.0.wrapping_add(1) & 0x7fff_ffff;
        self.poller.add(&socket, u64::from(entry.0) << 32 | u64::from(place), poller::READ)?;
        entry.1 = Some(Connection { socket, channel: None, place: 0, input: Vec::new(), output: Vec::new() });
        Ok(())
    }

    /// Reads everything from Redis, then sends each channel's batch.
    fn on_publications(&mut self) -> io::Result<()> {
        loop {
            let received = self.subscriber.fill()?;
            let replies = self.subscriber.take_input();
            let consumed = self.take_replies(&replies)?;
            self.subscriber.put_back(replies, consumed);
            if received < BUFFER_BYTES {
                break;
            }
        }
        while let Some(place) = self.touched.pop() {
            let Some(channel) = self.channels.get_mut(place) else { continue };
            let batch = std::mem::take(&mut channel.batch);
            let frames = std::mem::take(&mut channel.frames);
            let subscribers = std::mem::take(&mut channel.subscribers);
            for subscriber in &subscribers {
                self.send(*subscriber, &batch);
            }
            self.counts.deliveries += frames * subscribers.len() as u64;
            self.counts.sends += subscribers.len() as u64;
            if let Some(channel) = self.channels.get_mut(place) {
                channel.subscribers = subscribers;
                channel.batch = batch;
                channel.batch.clear();
            }
        }
        Ok(())
    }

    fn take_replies(&mut self, replies: &[u8]) -> io::Result<usize> {
        let broken = || io::Error::other("an unexpected reply");
        let mut at = 0;
        while let Some((found, step)) = reply(replies.get(at..).unwrap_or_default()).map_err(|_| broken())? {
            at += step;
            match found {
                Reply::Message { channel, payload } => self.on_message(channel, payload),
                Reply::Subscribed { channel } => self.on_subscribed(channel),
                Reply::Unsubscribed { .. } => {}
                _ => return Err(broken()),
            }
        }
        Ok(at)
    }

    fn on_message(&mut self, name: &[u8], payload: &[u8]) {
        self.counts.messages += 1;
        let Some(place) = self.names.get(name.strip_prefix(PREFIX).unwrap_or_default()).copied() else { return };
        let Some(channel) = self.channels.get_mut(place) else { return };
        let hit = self.fault.filter(|fault| self.counts.messages.is_multiple_of(fault.every)).map(|fault| fault.kind);
        if hit == Some(FaultKind::Lose) {
            return;
        }
        if hit == Some(FaultKind::Reorder) && channel.held.is_empty() {
            frame::put_plain(frame::TEXT, payload, &channel.name, &mut channel.held);
            return;
        }
        if channel.batch.is_empty() {
            self.touched.push(place);
        }
        for _ in 0..if hit == Some(FaultKind::Duplicate) { 2 } else { 1 } {
            frame::put_plain(frame::TEXT, payload, &channel.name, &mut channel.batch);
            channel.frames += 1;
        }
        if !channel.held.is_empty() {
            channel.batch.append(&mut channel.held);
            channel.frames += 1;
        }
    }

    fn on_subscribed(&mut self, name: &[u8]) {
        let Some(place) = self.names.get(name.strip_prefix(PREFIX).unwrap_or_default()).copied() else { return };
        let Some(channel) = self.channels.get_mut(place) else { return };
        channel.asked -= 1;
        if channel.asked > 0 {
            return;
        }
        channel.subscribed = true;
        for (waiting, switching) in std::mem::take(&mut channel.waiting) {
            self.admit(waiting, place, &switching);
        }
    }

    /// Makes a connection a subscriber, then sends its 101.
    fn admit(&mut self, place: u32, channel: usize, switching: &[u8]) {
        let (Some((_, Some(connection))), Some(entry)) =
            (self.connections.get_mut(place as usize), self.channels.get_mut(channel))
        else {
            return;
        };
        connection.channel = Some(channel);
        connection.place = entry.subscribers.len();
        entry.subscribers.push(place);
        self.send(place, switching);
    }

    /// Sends once, and keeps the bytes that the socket does not take.
    fn send(&mut self, place: u32, bytes: &[u8]) {
        let Some((generation, Some(connection))) = self.connections.get_mut(place as usize) else { return };
        let taken = if connection.output.is_empty() {
            match send(&connection.socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(taken) if taken == bytes.len() => return,
                Ok(taken) => taken,
                Err(Errno::AGAIN) => 0,
                // The client's FIN or reset is another event.
                Err(_) => return,
            }
        } else {
            0
        };
        self.counts.kept += 1;
        if connection.output.is_empty() {
            let token = u64::from(*generation) << 32 | u64::from(place);
            drop(self.poller.change(&connection.socket, token, poller::READ_WRITE));
        }
        connection.output.extend_from_slice(bytes.get(taken..).unwrap_or_default());
        if connection.output.len() > MAX_KEPT_BYTES {
            self.counts.dropped += 1;
            // The event that follows removes the client.
            rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both).ok();
            connection.output = Vec::new();
        }
    }
}
