//! The receiving side: the 101, frames, the end. May not enter: how a connection is opened (`dial`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::args::Answer as Pong;
use crate::frame;
use crate::payload::Header;
use crate::run::load;

use super::Client;
use super::session::{Answer, Session, State, answer};

/// The result of reading the frames in a buffer.
#[derive(Debug)]
enum Frames {
    /// So many bytes were whole frames.
    Consumed(usize),
    /// The connection is over, and why.
    Ended(String),
}

impl Client {
    /// A session has bytes to read, or is gone.
    pub(super) fn on_readable(&mut self, place: u32) {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.read(place, &mut buffer);
        self.buffer = buffer;
    }

    fn read(&mut self, place: u32, buffer: &mut Vec<u8>) {
        let Some(session) = self.session(place) else { return };
        if session.state == State::Slow {
            self.end(place, "a slow reader".to_owned());
            return;
        }
        let there = match session.receive(buffer) {
            Ok(None) => return,
            Ok(Some(there)) => there,
            Err(error) => return self.end(place, format!("reading: {error}")),
        };
        let state = session.state;
        let Some(bytes) = buffer.get_mut(..there).filter(|bytes| !bytes.is_empty()) else {
            return self.end(place, "the server's FIN without a Close".to_owned());
        };
        let mut start = 0;
        if matches!(state, State::Asked | State::Connecting) {
            match answer(bytes) {
                Answer::Incomplete => {
                    session.input.extend_from_slice(bytes);
                    return;
                }
                Answer::Refused(reason) => return self.fail(place, reason),
                Answer::Accepted(end) => start = end,
            }
            self.on_open(place);
            // A slow connection reads no further, not even bytes that came with the 101.
            if self.session(place).is_none_or(|session| session.state == State::Slow) {
                return;
            }
        }
        let Some(frames) = bytes.get_mut(start..) else { return };
        match self.frames(place, frames) {
            Frames::Consumed(consumed) => {
                let rest = frames.get(consumed..).unwrap_or_default();
                if let Some(session) = self.session(place)
                    && !rest.is_empty()
                {
                    session.input.extend_from_slice(rest);
                }
            }
            Frames::Ended(reason) => self.end(place, reason),
        }
        self.note_whole(place);
    }

    /// Notes when a client that came back with a position has got what it missed.
    fn note_whole(&mut self, place: u32) {
        let run = Arc::clone(&self.run);
        let Some(resume) = run.resume.get() else { return };
        let Some((_, Some(session))) = self.sessions.get_mut(place as usize) else { return };
        // One sender publishes on a channel.
        if session.is_whole || !self.book.ledger.is_whole(session.receiver, 0, resume.missed + 1) {
            return;
        }
        session.is_whole = true;
        let now = run.clock.micros();
        self.book.recoveries.record(now - session.since).ok();
        run.last_whole.fetch_max(now, Ordering::AcqRel);
        run.whole.fetch_add(1, Ordering::AcqRel);
    }

    fn frames(&mut self, place: u32, bytes: &mut [u8]) -> Frames {
        let run = Arc::clone(&self.run);
        let now = run.clock.micros();
        let mut at = 0;
        let mut rest_to_send = false;
        let Some((_, Some(session))) = self.sessions.get_mut(place as usize) else { return Frames::Consumed(0) };
        let open = session.state == State::Open && session.fragment.is_none();
        if open && self.book.on_known(&run, session.receiver, session.channel, bytes, now) {
            return Frames::Consumed(bytes.len());
        }
        self.headers.clear();
        let mut only_payloads = open;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let head = match frame::head(rest) {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(malformed) => return Frames::Ended(malformed.reason().to_owned()),
            };
            if head.mask.is_some() {
                return Frames::Ended("a masked frame from the server".to_owned());
            }
            let Some(payload) = rest.get(head.start..head.total()) else { break };
            at += head.total();
            match head.opcode {
                _ if session.state == State::Closing && head.opcode != frame::CLOSE => {}
                frame::TEXT | frame::BINARY if head.fin => {
                    match self.book.on_payload(&run, session.receiver, session.channel, payload, now) {
                        Some(header) => self.headers.push(header),
                        None => only_payloads = false,
                    }
                    continue;
                }
                frame::TEXT | frame::BINARY => {
                    // The header has to be in the first fragment.
                    session.fragment = Some(Header::find(payload).filter(|header| header.run == run.tag));
                }
                frame::CONTINUATION if head.fin => match session.fragment.take() {
                    Some(Some(header)) => {
                        self.book.on_header(&run, session.receiver, session.channel, &header, now);
                    }
                    Some(None) => self.book.counts.foreign += 1,
                    None => return Frames::Ended("a continuation without a start".to_owned()),
                },
                frame::PING => {
                    self.book.counts.pings += 1;
                    if run.plan.answer_pings == Pong::Yes {
                        match session.send_frame(frame::PONG, payload) {
                            Ok(rest) => rest_to_send |= rest,
                            Err(error) => return Frames::Ended(format!("a send failed: {error}")),
                        }
                    }
                }
                frame::CLOSE => return Frames::Ended(on_close(session, payload)),
                _ => {}
            }
            only_payloads = false;
        }
        if only_payloads && at == bytes.len() && load(&run.live, session.channel) > 1 {
            self.book.learn(&run, session.channel, bytes, &self.headers);
        }
        self.want_writable(place, rest_to_send);
        Frames::Consumed(at)
    }

    /// A session has ended, and this program did not close it.
    pub(super) fn end(&mut self, place: u32, reason: String) {
        let Some(session) = self.session(place) else { return };
        match session.state {
            State::Connecting | State::Asked => return self.fail(place, reason),
            State::Slow => self.book.counts.slow_ended += 1,
            State::Closing => {}
            State::Open => {
                self.leave(place);
                *self.book.endings.entry(reason).or_default() += 1;
            }
        }
        self.remove(place);
    }
}

/// The server closes: answers the close frame, and returns the reason.
fn on_close(session: &mut Session, payload: &[u8]) -> String {
    if session.state == State::Open {
        // The server may be gone already.
        drop(session.send_frame(frame::CLOSE, payload));
    }
    match payload.split_first_chunk::<2>() {
        Some((code, [])) => format!("closed by the server with {}", u16::from_be_bytes(*code)),
        Some((code, text)) => {
            format!("closed by the server with {} ({})", u16::from_be_bytes(*code), String::from_utf8_lossy(text))
        }
        None => "closed by the server without a code".to_owned(),
    }
}
