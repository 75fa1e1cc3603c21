//! Publications in the model of the hub: appended to batches, and flushed to members.

use super::*;

impl Run<'_> {
    pub(super) fn append(&mut self) {
        let channel = self.channel();
        self.published += 1;
        let payload = match self.rng.u8(..60) {
            // A batch of which the size alone asks for a flush.
            0 => vec![b'x'; 64 << 10],
            1 => vec![0xff; 5],
            _ => self.published.to_string().into_bytes(),
        };
        let batching = self.hub.append(&channel, &payload);
        let is_large = payload.len() > 1_000;
        if let Some(entry) = self.entries.get_mut(&channel) {
            for (index, (waiting, frames)) in entry.waiting.iter_mut().enumerate() {
                if entry.members.iter().any(|(.., encoding)| *encoding == index) {
                    let mut frame = BytesMut::new();
                    ENCODINGS[index].encode(&channel, &payload, None, &mut frame);
                    waiting.extend(&frame);
                    *frames += 1;
                }
            }
            assert!(!is_large || entry.members.is_empty() || batching == Batching::Full);
        }
    }

    pub(super) fn flush(&mut self) {
        let all =
            self.entries.values().flat_map(|entry| entry.members.iter().map(|(_, key, _)| *key)).collect::<Vec<_>>();
        if self.rng.bool() {
            self.behind = all.iter().filter(|_| self.rng.bool()).copied().collect();
        }
        let now = self.started + Duration::from_millis(self.now);
        let mut served = Served { batches: Vec::new(), behind: self.behind.clone(), now: Some(now) };
        let flushed = self.hub.flush(&mut served);
        let mut of: BTreeMap<SessionKey, Vec<u8>> = BTreeMap::new();
        for (key, batch) in served.batches {
            assert!(of.insert(key, batch).is_none(), "each session has one batch");
        }
        let (mut frames_served, mut is_held) = (0, false);
        for entry in self.entries.values_mut() {
            for (index, (waiting, frames)) in entry.waiting.iter_mut().enumerate() {
                let members: Vec<_> =
                    entry.members.iter().filter(|(.., of)| *of == index).map(|(_, key, _)| *key).collect();
                let got = members.iter().filter(|key| of.contains_key(key)).count();
                if got == 0 && *frames > 0 && !members.is_empty() {
                    assert!(!self.pace.is_zero() && waiting.len() < 64 << 10, "only a paced audience collects");
                    is_held = true;
                    continue;
                }
                assert_eq!(got, if *frames > 0 { members.len() } else { 0 }, "all members or none");
                for key in members {
                    assert_eq!(of.remove(&key).unwrap_or_default(), *waiting, "each gets all that waits, in order");
                    frames_served += *frames;
                }
                (*waiting, *frames) = (Vec::new(), 0);
            }
        }
        assert!(of.is_empty(), "batches for sessions that are no members: {of:?}");
        assert_eq!(flushed.frames, frames_served);
        assert_eq!(flushed.next.is_some(), is_held);
        assert!(flushed.next.is_none_or(|next| next > now && next <= now + self.pace));
    }
}
