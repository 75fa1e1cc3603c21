//! The floor's clients: their requests, their frames, their end. May not enter: the order of events (the worker).

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::floor::handshake::request;
use crate::floor::redis::put;
use crate::frame;
use crate::poller::{self, Flags};

use super::{Channel, Connection, Worker};

impl Worker {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart as they were put together")]
    pub(super) fn on_connection(&mut self, token: u64, flags: Flags) {
        let place = token as u32;
        let Some((generation, Some(connection))) = self.connections.get_mut(place as usize) else { return };
        if u64::from(*generation) != token >> 32 {
            return;
        }
        if flags.contains(Flags::OUT) {
            let rest = std::mem::take(&mut connection.output);
            if send_rest(connection, &rest) {
                drop(self.poller.change(&connection.socket, token, poller::READ));
            }
        }
        if flags.intersects(Flags::IN | Flags::HUP | Flags::ERR | Flags::RDHUP) {
            let mut buffer = std::mem::take(&mut self.buffer);
            if !self.read(place, &mut buffer) {
                self.remove(place);
            }
            self.buffer = buffer;
        }
    }

    /// Reads what a client sent; false when it is gone.
    fn read(&mut self, place: u32, buffer: &mut [u8]) -> bool {
        let Some((_, Some(connection))) = self.connections.get_mut(place as usize) else { return true };
        let kept = connection.input.len();
        let Some((start, room)) = buffer.split_at_mut_checked(kept).filter(|(_, room)| !room.is_empty()) else {
            return false;
        };
        start.copy_from_slice(&connection.input);
        let there = match recv(&connection.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok((received, _)) => kept + received,
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        };
        connection.input.clear();
        let Some(bytes) = buffer.get_mut(..there) else { return false };
        let consumed = match connection.channel {
            Some(channel) => self.frames(place, channel, bytes),
            None => self.ask(place, bytes),
        };
        let (Some(consumed), Some((_, Some(connection)))) = (consumed, self.connections.get_mut(place as usize)) else {
            return false;
        };
        connection.input.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
        true
    }

    /// Reads a request; bytes after it wait until the 101 is sent. `None` when the floor does not serve the request.
    fn ask(&mut self, place: u32, bytes: &[u8]) -> Option<usize> {
        let Some(request) = request(bytes).ok()? else { return Some(0) };
        let channel = self.names.get(&request.channel).copied().unwrap_or_else(|| {
            self.names.insert(request.channel.clone(), self.channels.len());
            self.channels.push(Channel { name: request.channel, ..Channel::default() });
            self.channels.len() - 1
        });
        let entry = self.channels.get_mut(channel)?;
        if entry.subscribed {
            self.admit(place, channel, &request.switching);
        } else {
            entry.waiting.push((place, request.switching));
            if entry.asked == 0 {
                entry.asked = 1;
                put(b"SUBSCRIBE", &entry.name, None, &mut self.subscriber);
            }
        }
        Some(request.len)
    }

    /// Reads frames: texts are published, one write each. `None` when the client closes or errs.
    fn frames(&mut self, place: u32, channel: usize, bytes: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(head) = frame::head(bytes.get(at..)?).ok()? {
            let Some(payload) = bytes.get_mut(at + head.start..at + head.total()) else { break };
            at += head.total();
            frame::unmask(payload, head.mask?);
            match head.opcode {
                frame::TEXT => {
                    put(b"PUBLISH", &self.channels.get(channel)?.name, Some(payload), &mut self.publisher);
                    self.counts.published += 1;
                    // The next turn's flush sends the bytes that the socket does not take.
                    self.publisher.flush().ok()?;
                }
                frame::PING => {
                    let mut pong = Vec::new();
                    frame::put_plain(frame::PONG, payload, b"", &mut pong);
                    self.send(place, &pong);
                }
                frame::CLOSE => {
                    self.send(place, &[0x88, 0]);
                    return None;
                }
                _ => {}
            }
        }
        Some(at)
    }

    pub(super) fn remove(&mut self, place: u32) {
        let Some(connection) = self.connections.get_mut(place as usize).and_then(|entry| entry.1.take()) else {
            return;
        };
        self.free.push(place);
        let Some(channel) = connection.channel.and_then(|channel| self.channels.get_mut(channel)) else {
            self.channels.iter_mut().for_each(|channel| channel.waiting.retain(|(waiting, _)| *waiting != place));
            return;
        };
        channel.subscribers.swap_remove(connection.place);
        if let Some(moved) = channel.subscribers.get(connection.place)
            && let Some((_, Some(moved))) = self.connections.get_mut(*moved as usize)
        {
            moved.place = connection.place;
        }
        if channel.subscribers.is_empty() && channel.waiting.is_empty() {
            channel.subscribed = false;
            put(b"UNSUBSCRIBE", &channel.name, None, &mut self.subscriber);
        }
    }
}

/// Sends the bytes that were kept; true when all have left.
fn send_rest(connection: &mut Connection, rest: &[u8]) -> bool {
    let taken = send(&connection.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).unwrap_or(0);
    connection.output.extend_from_slice(rest.get(taken..).unwrap_or_default());
    connection.output.is_empty()
}
