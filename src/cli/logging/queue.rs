//! A bounded queue of log lines for a reader that may hang, and one thread that writes.
//!
//! `push` never waits: when the queue is full, it drops and counts the line. Only the writer's thread blocks, in
//! write(2) or sendto(2). The output stays in blocking mode, because other processes share it.
//! May not enter: what a line looks like.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Maximum bytes in the queue. Chosen: some 4,000 lines, enough for the burst of a short stall.
const MAX_QUEUE_BYTES: usize = 1 << 20;

/// The overhead of a waiting line: its place in the queue and its allocation.
const LINE_OVERHEAD_BYTES: usize = 48;

/// Where the lines go.
pub(super) trait Sink: Send + 'static {
    /// Writes one line; may block.
    ///
    /// # Errors
    /// When the line is lost.
    fn write(&mut self, line: &[u8]) -> io::Result<()>;
}

/// The lines that wait.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signals that a line was pushed or written.
    changed: Condvar,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    is_writing: bool,
    /// Lines lost since the last report.
    dropped: u64,
}

impl Queue {
    /// A queue with its writer. `report` runs on the writer's thread when lines were dropped and the sink
    /// takes lines again; what it logs goes through the queue.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(sink: impl Sink, report: impl Fn(u64) + Send + 'static) -> io::Result<Arc<Self>> {
        Self::start_bounded(sink, report, MAX_QUEUE_BYTES)
    }

    fn start_bounded(
        sink: impl Sink,
        report: impl Fn(u64) + Send + 'static,
        max_bytes: usize,
    ) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), max_bytes });
        let writer = queue.clone();
        // Nothing waits for this thread's end: a sink that hangs would delay the end of the process.
        std::thread::Builder::new().name("webws-log".to_owned()).spawn(move || writer.write_on(sink, report))?;
        Ok(queue)
    }

    /// Queues a line, or drops and counts it. Never waits for the sink.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let bytes = line.len() + LINE_OVERHEAD_BYTES;
        if state.bytes + bytes > self.max_bytes {
            return drop_line(&mut state);
        }
        state.bytes += bytes;
        state.lines.push_back(line.into());
        self.changed.notify_all();
    }

    /// Waits until everything queued is written, at most for `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let has_some = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // After the deadline the rest is lost, and no log is left to report the loss.
        drop(self.changed.wait_timeout_while(self.lock(), patience, has_some));
    }

    fn write_on(&self, mut sink: impl Sink, report: impl Fn(u64)) {
        loop {
            let line = self.next();
            let written = sink.write(&line);
            let mut state = self.lock();
            state.is_writing = false;
            self.changed.notify_all();
            if written.is_err() {
                drop_line(&mut state);
                continue;
            }
            // Only with room for the report itself.
            let dropped = if state.bytes <= self.max_bytes / 2 { std::mem::take(&mut state.dropped) } else { 0 };
            drop(state);
            if dropped > 0 {
                report(dropped);
            }
        }
    }

    fn next(&self) -> Box<[u8]> {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_line(state: &mut State) {
    state.dropped += 1;
    webws::binary::count_dropped_log_line();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Blocks in each write until it is told to go on, then shows the line.
    struct Gate {
        opened: mpsc::Receiver<io::Result<()>>,
        written: mpsc::SyncSender<String>,
    }

    impl Sink for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<()> {
            self.opened.recv().map_err(io::Error::other)??;
            self.written.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)
        }
    }

    struct Stage {
        queue: Arc<Queue>,
        open: mpsc::SyncSender<io::Result<()>>,
        written: mpsc::Receiver<String>,
        reported: mpsc::Receiver<u64>,
    }

    fn stage(max_bytes: usize) -> Stage {
        let (open, opened) = mpsc::sync_channel(64);
        let (write, written) = mpsc::sync_channel(64);
        let (report, reported) = mpsc::sync_channel(64);
        let report = move |dropped| report.send(dropped).unwrap();
        let queue = Queue::start_bounded(Gate { opened, written: write }, report, max_bytes).unwrap();
        Stage { queue, open, written, reported }
    }

    /// The test ends at all only because no push waits.
    #[test]
    fn a_sink_that_hangs_costs_lines_and_a_report_but_no_time() {
        let room = 8;
        let stage = stage(room * (4 + LINE_OVERHEAD_BYTES));
        stage.queue.push(b"0000");
        // The writer has that one in its hands.
        while !stage.queue.lock().is_writing {
            std::thread::yield_now();
        }
        for number in 1..=20 {
            stage.queue.push(format!("{number:04}").as_bytes());
        }
        for _ in 0..=room {
            stage.open.send(Ok(())).unwrap();
        }
        let written: Vec<_> = (0..=room).map(|_| stage.written.recv_timeout(SOON).unwrap()).collect();
        let expected: Vec<_> = (0..=room).map(|number| format!("{number:04}")).collect();
        assert_eq!(written, expected, "the oldest are kept, in order");
        assert_eq!(stage.reported.recv_timeout(SOON), Ok(20 - room as u64), "one report of all that were dropped");
        assert!(stage.reported.try_recv().is_err());
    }

    #[test]
    fn a_line_that_the_sink_loses_is_reported_when_it_takes_lines_again() {
        let stage = stage(MAX_QUEUE_BYTES);
        stage.queue.push(b"lost");
        stage.queue.push(b"kept");
        stage.open.send(Err(io::ErrorKind::ConnectionRefused.into())).unwrap();
        stage.open.send(Ok(())).unwrap();
        assert_eq!(stage.written.recv_timeout(SOON).unwrap(), "kept");
        assert_eq!(stage.reported.recv_timeout(SOON), Ok(1));
    }

    #[test]
    fn a_flush_waits_for_what_is_queued_and_not_longer_than_it_may() {
        let stage = stage(MAX_QUEUE_BYTES);
        stage.queue.push(b"one");
        stage.queue.push(b"two");
        stage.queue.flush(Duration::from_millis(10));
        assert!(stage.written.try_recv().is_err(), "the sink still hangs");
        stage.open.send(Ok(())).unwrap();
        stage.open.send(Ok(())).unwrap();
        stage.queue.flush(SOON);
        assert_eq!(stage.written.try_iter().count(), 2);
    }
}
