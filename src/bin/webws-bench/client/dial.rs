//! Opening connections, and closing and reopening them. May not enter: what a client receives.

use std::io;
use std::sync::atomic::Ordering;

use crate::address::Dialed;
use crate::clock::{Micros, whole};
use crate::frame;
use crate::plan::Ramp;
use crate::poller;
use crate::run::load;

use super::session::{Session, State, request, resumed};
use super::{Client, Phase};

/// How long to wait after a full backlog. Chosen: a server accepts thousands of connections in that time.
const BACKLOG_PAUSE: Micros = 1000;

impl Client {
    /// Opens the connections that are due.
    pub(super) fn dial(&mut self, now: Micros) {
        let plan = &self.run.plan;
        // Reopening after a close is not held back: its rate is the churn's.
        let due = match plan.ramp {
            Ramp::PerSecond(rate) if self.run.phase() == Phase::Connect => {
                whole(crate::clock::seconds(now) * rate / f64::from(plan.threads)) + 1
            }
            _ => u64::MAX,
        };
        // At least one per thread.
        let at_a_time = plan.handshakes.div_ceil(plan.threads);
        while self.under_way < at_a_time && self.dialed < due && self.dial_after <= now {
            let Some(connection) = self.to_dial.pop_front() else { return };
            self.dial_one(connection);
        }
    }

    fn dial_one(&mut self, connection: u32) {
        let run = std::sync::Arc::clone(&self.run);
        let plan = &run.plan;
        let now = run.clock.micros();
        let Some(target) = plan.target(connection) else { return };
        let (socket, state) = match dial_from(plan, target, connection) {
            Ok(Dialed::Connected(socket)) => (socket, State::Asked),
            Ok(Dialed::UnderWay(socket)) => (socket, State::Connecting),
            Ok(Dialed::Full) => {
                self.to_dial.push_front(connection);
                self.dial_after = now + BACKLOG_PAUSE;
                return;
            }
            Err(error) => {
                self.dialed += 1;
                run.failed.fetch_add(1, Ordering::Relaxed);
                let hint = if error.raw_os_error() == Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error()) {
                    " (no port left: give more addresses, --source-address 127.0.0.1,127.0.0.2)"
                } else {
                    ""
                };
                *self.book.failures.entry(format!("connecting to {}: {error}{hint}", target.address)).or_default() += 1;
                return;
            }
        };
        self.dialed += 1;
        self.under_way += 1;
        let place = self.insert(Session {
            socket,
            state,
            connection,
            receiver: connection as usize / plan.threads as usize,
            channel: connection % plan.channels,
            since: now,
            input: Vec::new(),
            output: Vec::new(),
            is_whole: false,
            fragment: None,
        });
        let token = self.token(place);
        let wants = if state == State::Connecting { poller::READ_WRITE } else { poller::READ };
        let added = match self.sessions.get(place as usize) {
            Some((_, Some(session))) => self.poller.add(&session.socket, token, wants),
            _ => Ok(()),
        };
        match added {
            Ok(()) if state == State::Asked => self.ask(place),
            Ok(()) => {}
            Err(error) => self.fail(place, format!("epoll: {error}")),
        }
    }

    /// Sends the request.
    fn ask(&mut self, place: u32) {
        let run = std::sync::Arc::clone(&self.run);
        let Some(session) = self.session(place) else { return };
        session.state = State::Asked;
        let Some(target) = run.plan.target(session.connection) else { return };
        let mut path = target.path.fill(session.channel, session.connection);
        let resume = run.resume.get();
        if let Some((resume, token)) = resume.and_then(|of| Some((of, of.tokens.get(session.channel as usize)?))) {
            path = resumed(&path, &resume.argument, token);
        }
        let bytes = request(&path, &target.host, run.plan.subprotocol.as_deref());
        match session.send(&bytes) {
            Ok(rest) => self.want_writable(place, rest),
            Err(error) => self.fail(place, format!("sending the request: {error}")),
        }
    }

    /// A socket connected, or takes more bytes.
    pub(super) fn on_writable(&mut self, place: u32) {
        let Some(session) = self.session(place) else { return };
        if session.state == State::Connecting {
            let connected = rustix::net::sockopt::socket_error(&session.socket).and_then(|state| state);
            match connected {
                Ok(()) => {
                    self.change(place, poller::READ);
                    self.ask(place);
                }
                Err(error) => self.fail(place, format!("connecting: {}", io::Error::from(error))),
            }
            return;
        }
        match session.flush() {
            Ok(rest) => {
                if !rest {
                    self.change(place, poller::READ);
                }
            }
            Err(error) => self.end(place, format!("a send failed: {error}")),
        }
    }

    pub(super) fn want_writable(&mut self, place: u32, rest: bool) {
        if rest {
            self.change(place, poller::READ_WRITE);
        }
    }

    pub(super) fn change(&mut self, place: u32, wants: poller::Flags) {
        let token = self.token(place);
        if let Some((_, Some(session))) = self.sessions.get(place as usize)
            && let Err(error) = self.poller.change(&session.socket, token, wants)
        {
            self.run.fail(format!("epoll: {error}"));
        }
    }

    /// The 101 has arrived.
    pub(super) fn on_open(&mut self, place: u32) {
        let run = std::sync::Arc::clone(&self.run);
        let plan = &run.plan;
        let now = run.clock.micros();
        let Some(session) = self.session(place) else { return };
        let (connection, receiver, channel) = (session.connection, session.receiver, session.channel);
        let slow = plan.is_slow(connection);
        session.state = if slow { State::Slow } else { State::Open };
        let took = now - session.since;
        let greeting = plan.first_message.as_ref().map(|text| text.fill(channel, connection));
        let sent = greeting.map_or(Ok(false), |text| session.send_frame(frame::TEXT, text.as_bytes()));
        self.under_way -= 1;
        self.book.connects.record(took).ok();
        if slow {
            self.book.counts.slow += 1;
            self.change(place, poller::GONE);
        } else {
            if let Some(entry) = self.places.get_mut(receiver) {
                *entry = Some(place);
            }
            for sender in plan.senders_of(channel) {
                let place = (sender / plan.channels) as usize;
                match run.resume.get() {
                    Some(_) => self.book.ledger.resume(receiver, place, 1),
                    None => self.book.ledger.join(receiver, place, load(&run.sent, sender)),
                }
            }
            if let Some(live) = run.live.get(channel as usize) {
                live.fetch_add(1, Ordering::AcqRel);
            }
        }
        run.last_opened.fetch_max(now, Ordering::Relaxed);
        run.opened.fetch_add(1, Ordering::AcqRel);
        match sent {
            Ok(rest) => {
                if !slow {
                    self.want_writable(place, rest);
                }
            }
            Err(error) => self.end(place, format!("a send failed: {error}")),
        }
    }

    /// Closes some connections and has them opened again.
    pub(super) fn churn(&mut self, now: Micros) {
        let plan = &self.run.plan;
        if plan.churn <= 0.0 {
            return;
        }
        let rate = plan.churn / f64::from(plan.threads);
        let begun = *self.churn_begun.get_or_insert(now);
        let due = whole(crate::clock::seconds(now - begun) * rate);
        while self.closed_for_churn < due {
            self.closed_for_churn += 1;
            let Some(place) = self.next_churned() else { return };
            let Some(session) = self.session(place) else { return };
            let connection = session.connection;
            session.since = now;
            // 1000, a normal closure.
            let sent = session.send_frame(frame::CLOSE, &1000_u16.to_be_bytes());
            self.leave(place);
            match sent {
                Ok(rest) => {
                    if let Some(session) = self.session(place) {
                        session.state = State::Closing;
                    }
                    self.want_writable(place, rest);
                }
                Err(_) => self.remove(place),
            }
            self.book.counts.churned += 1;
            self.to_dial.push_back(connection);
        }
    }

    /// The next receiver's session that is open, in turn.
    fn next_churned(&mut self) -> Option<u32> {
        for _ in 0..self.places.len() {
            self.next_to_churn = (self.next_to_churn + 1) % self.places.len();
            let place = self.places.get(self.next_to_churn).copied().flatten();
            if let Some(place) = place
                && self.session(place).is_some_and(|session| session.state == State::Open)
            {
                return Some(place);
            }
        }
        None
    }

    /// A receiver leaves: no publication waits for it, and none is owed.
    pub(super) fn leave(&mut self, place: u32) {
        let run = std::sync::Arc::clone(&self.run);
        let plan = &run.plan;
        let Some(session) = self.session(place) else { return };
        let (receiver, channel) = (session.receiver, session.channel);
        if let Some(entry) = self.places.get_mut(receiver) {
            *entry = None;
        }
        if let Some(live) = run.live.get(channel as usize) {
            live.fetch_sub(1, Ordering::AcqRel);
        }
        for flight in &run.flights {
            for waiting in flight.waiting().filter(|waiting| plan.channel_of_sender(waiting.sender) == channel) {
                if self.book.ledger.is_owed(receiver, (waiting.sender / plan.channels) as usize, waiting.sequence) {
                    flight.on_landed(waiting.number, 1);
                }
            }
        }
        for sender in plan.senders_of(channel) {
            self.book.ledger.leave(receiver, (sender / plan.channels) as usize);
        }
    }

    /// A connection could not be opened.
    pub(super) fn fail(&mut self, place: u32, reason: String) {
        self.remove(place);
        self.under_way -= 1;
        self.run.failed.fetch_add(1, Ordering::AcqRel);
        *self.book.failures.entry(reason).or_default() += 1;
    }
}

/// Starts a connection; from the next source address when one has no port left.
fn dial_from(plan: &crate::plan::Plan, target: &crate::address::Target, connection: u32) -> io::Result<Dialed> {
    let sources = plan.sources.len();
    let mut result = Err(io::ErrorKind::AddrNotAvailable.into());
    for attempt in 0..sources.max(1) {
        let source = plan.sources.get((connection as usize + attempt) % sources.max(1)).copied();
        result = target.address.dial(source);
        match &result {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            _ => break,
        }
    }
    result
}
