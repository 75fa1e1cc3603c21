//! A model of a server's replication log: what it keeps of the commands that it executed, and under which names.
//!
//! As `replication.c` of Redis 7: an offset for each byte, a bounded backlog, the history of a former master, PSYNC. May
//! not enter: Pub/Sub, how bytes travel.

use std::collections::VecDeque;
use std::fmt::Write as _;

/// Points at which a replica may have been promoted that are remembered.
const MAX_ENDS: usize = 40;

/// The log of a server.
#[derive(Debug, Clone)]
pub(crate) struct ReplicationLog {
    replid: String,
    /// The history that this one continues, and the first offset that is not in it.
    former: Option<(String, u64)>,
    /// Of the last byte written.
    pub(crate) offset: u64,
    /// What is kept, up to `offset`; nothing while the log is not active.
    kept: VecDeque<u8>,
    is_active: bool,
    size: usize,
    /// Whether SELECT is in the log.
    has_selected: bool,
    is_in_transaction: bool,
    /// Offsets between two commands, outside of transactions.
    ends: VecDeque<u64>,
}

impl ReplicationLog {
    /// The log of a server that has just begun.
    pub(crate) fn new(size: usize, is_active: bool, rng: &mut fastrand::Rng) -> Self {
        let mut log = Self {
            replid: replid(rng),
            former: None,
            offset: 0,
            kept: VecDeque::new(),
            is_active: false,
            size,
            has_selected: false,
            is_in_transaction: false,
            ends: VecDeque::new(),
        };
        if is_active {
            log.make(rng);
        }
        log
    }

    /// Makes a log where none is, as for a first replica.
    pub(crate) fn make(&mut self, rng: &mut fastrand::Rng) {
        if !self.is_active {
            (self.replid, self.former, self.is_active) = (replid(rng), None, true);
            // So that nobody continues what was not kept.
            self.offset += 1;
            self.has_selected = false;
        }
    }

    /// Appends a command. Returns what is sent to those that follow.
    pub(crate) fn append(&mut self, command: &[&[u8]]) -> Vec<u8> {
        if !self.is_active {
            self.offset += 1;
            self.note_end();
            return Vec::new();
        }
        let mut bytes = Vec::new();
        if !std::mem::replace(&mut self.has_selected, true) {
            bytes.extend_from_slice(&encoded(&[b"SELECT", b"0"]));
        }
        bytes.extend_from_slice(&encoded(command));
        self.offset += bytes.len() as u64;
        self.kept.extend(&bytes);
        let surplus = self.kept.len().saturating_sub(self.size);
        self.kept.drain(..surplus);
        self.note_end();
        bytes
    }

    /// Begins a transaction, or ends it.
    pub(crate) fn transact(&mut self, begins: bool) -> Vec<u8> {
        self.is_in_transaction = begins;
        self.append(&[if begins { b"MULTI" } else { b"EXEC" }])
    }

    fn note_end(&mut self) {
        if !self.is_in_transaction {
            self.ends.push_back(self.offset);
            if self.ends.len() > MAX_ENDS {
                self.ends.pop_front();
            }
        }
    }

    /// The log of a replica that is promoted now, and has all but the last `behind` commands or transactions.
    pub(crate) fn promoted(&self, behind: usize, rng: &mut fastrand::Rng) -> Self {
        let mut log = self.clone();
        let end = self.ends.iter().rev().nth(behind).or(self.ends.front()).copied().unwrap_or(self.offset);
        let lost = usize::try_from(self.offset - end).expect("as many as are remembered");
        log.kept.truncate(log.kept.len().saturating_sub(lost));
        log.offset = end;
        log.ends.retain(|known| *known <= end);
        log.begin_history(rng);
        log
    }

    /// The server was restarted, and knows from its last snapshot of data where its log was then; `behind` commands
    /// before it ended.
    pub(crate) fn restarted(&mut self, behind: usize, rng: &mut fastrand::Rng) {
        let end = self.ends.iter().rev().nth(behind).or(self.ends.front()).copied().unwrap_or(self.offset);
        self.offset = end;
        self.kept.clear();
        self.ends.clear();
        (self.is_in_transaction, self.has_selected) = (false, false);
        self.begin_history(rng);
    }

    fn begin_history(&mut self, rng: &mut fastrand::Rng) {
        let former = std::mem::replace(&mut self.replid, replid(rng));
        self.former = self.is_active.then_some((former, self.offset + 1));
        self.has_selected = false;
    }

    /// The offset of the first byte that is kept.
    fn first(&self) -> u64 {
        self.offset + 1 - self.kept.len() as u64
    }

    /// As `INFO replication` has it.
    pub(crate) fn info(&self, role: &str) -> String {
        let mut info =
            format!("# Replication\r\nrole:{role}\r\nconnected_slaves:0\r\nmaster_replid:{}\r\n", self.replid);
        let none = ("0".repeat(40), None);
        let (former, foreign) = self.former.clone().map_or(none, |(former, foreign)| (former, Some(foreign)));
        let foreign = foreign.map_or("-1".to_owned(), |foreign| foreign.to_string());
        write!(
            info,
            "master_replid2:{former}\r\nmaster_repl_offset:{}\r\nsecond_repl_offset:{foreign}\r\n\
             repl_backlog_active:{}\r\nrepl_backlog_size:{}\r\nrepl_backlog_first_byte_offset:{}\r\n\
             repl_backlog_histlen:{}\r\n",
            self.offset,
            u8::from(self.is_active),
            self.size,
            if self.is_active { self.first() } else { 0 },
            self.kept.len()
        )
        .expect("a string takes everything");
        info
    }

    /// What PSYNC is answered that asks for the byte at `next`; `None` for a full resynchronisation.
    pub(crate) fn continued(&self, replid: &str, next: u64) -> Option<Vec<u8>> {
        let is_own = replid == self.replid;
        let is_former = self.former.as_ref().is_some_and(|(former, foreign)| replid == former && next <= *foreign);
        if !self.is_active || !(is_own || is_former) || next < self.first() || next > self.offset + 1 {
            return None;
        }
        let from = usize::try_from(next - self.first()).expect("it is kept");
        Some(self.kept.range(from..).copied().collect())
    }
}

fn replid(rng: &mut fastrand::Rng) -> String {
    (0..5).map(|_| format!("{:08x}", rng.u32(..))).collect()
}

fn encoded(command: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}
