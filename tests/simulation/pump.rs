//! A worker does all that it can at one moment: its links and its core take turns until nothing is left, and the world
//! learns what came of that. May not enter: time, faults.

use std::sync::Arc;

use super::client::State;
use super::node_links::Step;
use super::world::{Happening, Node1, World};
use crate::broker::Request;

impl World {
    /// Everything that a worker can do now.
    pub(crate) fn pump(&mut self, index: usize) {
        let (now, instant) = (self.millis(), self.instant());
        let stopped_until = self.stopped_until(index);
        if stopped_until > self.now {
            return self.at(stopped_until, Happening::Wake(index));
        }
        for turn in 0.. {
            assert!(turn < 10_000, "worker {index} comes to no end");
            let Some(node) = self.workers[index].as_mut() else { return };
            let requests = std::mem::take(&mut node.worker.requests);
            let has_requests = requests.iter().any(|request| !matches!(request, Request::MessagesWait));
            requests.into_iter().for_each(|request| node.links.request(request, instant));
            let mut outcome = None;
            let (Node1 { worker, links, .. }, is_told) = (node, self.is_told);
            let has_stepped = links.step(instant, |step| match step {
                Step::Event(event) => {
                    if is_told {
                        eprintln!("{} worker {index} gets {event:?}", self.now);
                    }
                    worker.on_event(event, now);
                }
                Step::Connect(which) => outcome = Some((Some(which), None)),
                Step::Drop(stream, unread) => outcome = Some((None, Some((stream, unread)))),
            });
            let has_more = worker.turn(now);
            let read_backs = worker.take_read_backs();
            let asks = !read_backs.is_empty();
            read_backs.into_iter().for_each(|client| self.ask_others(index, client));
            match outcome {
                Some((Some(which), _)) => self.begin_to_connect(index, which),
                Some((_, Some((stream, unread)))) => {
                    if !unread.is_empty() {
                        // The server may have told its role in it.
                        self.cut.insert(stream);
                    }
                    self.close_stream(stream);
                }
                _ => {}
            }
            self.send_links(index);
            if !has_requests && !has_stepped && !has_more && !asks {
                break;
            }
        }
        self.after_pump(index);
    }

    fn after_pump(&mut self, index: usize) {
        let now = self.now;
        let Some(node) = self.workers[index].as_mut() else { return };
        let told = std::mem::take(&mut node.worker.gaps);
        for told in told {
            let length = u64::try_from(told.length.as_micros()).unwrap_or(u64::MAX);
            self.say(|| format!("worker {index} tells of a gap of {length} µs"));
            // Of those as well that have ended: what they missed before is told here.
            let clients = self.clients.iter_mut().filter(|client| client.worker == index);
            clients.for_each(|client| client.gaps.push((now.saturating_sub(length), now)));
        }
        let Some(node) = self.workers[index].as_mut() else { return };
        let answers = node.worker.take_answers();
        let next = node.links.next_timeout();
        let are_all_complete = node.health.are_all_complete();
        let has_changed = std::mem::replace(&mut node.were_all_complete, are_all_complete) != are_all_complete;
        if let Some(next) = next {
            let at = u64::try_from((next - self.base).as_micros()).unwrap_or(u64::MAX) + 1;
            let node = self.workers[index].as_mut().expect("it was just there");
            if node.wakes_at <= now || at < node.wakes_at {
                node.wakes_at = at;
                self.at(at, Happening::Wake(index));
            }
        }
        if has_changed {
            let health = self.workers[index].as_ref().expect("it was just there").health.clone();
            let others = self.workers.iter().enumerate().filter(|(other, node)| {
                *other != index && node.as_ref().is_some_and(|node| Arc::ptr_eq(&node.health, &health))
            });
            let others: Vec<_> = others.map(|(other, _)| other).collect();
            others.into_iter().for_each(|other| self.at(now, Happening::Wake(other)));
        }
        for (key, answer) in answers {
            let client =
                self.clients.iter_mut().find(|client| client.worker == index && client.state == State::Handshake(key));
            let Some(client) = client else { continue };
            if answer.is_ok() {
                client.state = State::Answered(key);
                let (id, delay) = (client.id, self.delay());
                self.at(self.now + delay, Happening::Attach(id));
            } else {
                client.state = State::Refused;
                client.refusals += 1;
            }
        }
        self.follow_sockets(index);
    }

    /// Sockets with room are told, and those whose session is over end.
    pub(crate) fn follow_sockets(&mut self, index: usize) {
        for id in 0..self.clients.len() {
            let client = &mut self.clients[id];
            let State::Open(key) = client.state else { continue };
            if client.worker != index {
                continue;
            }
            let Some(node) = self.workers[index].as_mut() else { continue };
            if !node.worker.has(key) {
                client.state = State::Ended;
                if !client.has_history || !client.has_vanished {
                    client.read(usize::MAX);
                }
                if let Some(since) = node.links.node.lost_since {
                    // It ends before the gap does.
                    let since = u64::try_from((since - self.base).as_micros()).unwrap_or(u64::MAX);
                    client.gaps.push((since, self.now));
                }
                let code = client.close_code;
                self.say(|| format!("client {id} ends: {code:?}"));
            } else if node.worker.has_unsent(key) && client.socket.0.borrow().room > 0 && !client.is_told_of_room {
                client.is_told_of_room = true;
                let delay = self.delay();
                self.at(self.now + delay, Happening::Writable(id));
            }
        }
    }
}
