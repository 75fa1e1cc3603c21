//! The hot rooms, one by one: `cargo bench --features internals`.
//!
//! Figures of one machine say little; compare two versions on the same one.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::{BufMut, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use webws::internals::{Decoder, Fanout, channel, encode, replay};

fn main() {
    divan::main();
}

#[divan::bench(args = ["channel=%22zhang%22", "channel=12345", "a=1&b=2&channel=%22%E4%B8%AD%E6%96%87+x%22"])]
fn channel_of_a_query(bencher: Bencher<'_, '_>, query: &str) {
    bencher.bench(|| channel(black_box(query.as_bytes())).unwrap());
}

#[divan::bench(args = [16, 128, 4096, 65_536])]
fn frame_of_a_publication(bencher: Bencher<'_, '_>, size: usize) {
    let payload = vec![b'x'; size];
    let mut out = BytesMut::with_capacity(2 * size);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        out.clear();
        encode(black_box(b"chat:zhang"), black_box(&payload), &mut out);
    });
}

/// A masked text frame of `size` bytes.
fn client_frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u8::try_from(size) {
        Ok(short @ ..=125) => frame.put_u8(0x80 | short),
        _ => {
            frame.put_u8(0x80 | 126);
            frame.put_u16(u16::try_from(size).unwrap());
        }
    }
    frame.extend_from_slice(&[1, 2, 3, 4]);
    // Not masked, but ASCII all the same once the mask is applied: letters XOR 1 to 4.
    frame.resize(frame.len() + size, b'h');
    frame
}

#[divan::bench(args = [16, 128, 4096, 65_535])]
fn decode_a_text(bencher: Bencher<'_, '_>, size: usize) {
    let frame = client_frame(size);
    let mut decoder = Decoder::default();
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| frame.clone())
        .bench_local_values(|mut bytes| decoder.feed(&mut bytes).unwrap().len());
}

/// A replication log of publications of `size` bytes, between which the other half is a value of another application.
#[divan::bench(args = [16, 128, 4096, 65_536])]
fn decode_a_replication_log(bencher: Bencher<'_, '_>, size: usize) {
    let (mut log, payload) = (Vec::new(), "p".repeat(size));
    while log.len() < 4 << 20 {
        log.extend_from_slice(
            format!("*3\r\n$7\r\nPUBLISH\r\n$10\r\nchat:zhang\r\n${size}\r\n{payload}\r\n").as_bytes(),
        );
        log.extend_from_slice(format!("*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n${size}\r\n{payload}\r\n").as_bytes());
    }
    bencher.counter(BytesCount::new(log.len())).bench_local(|| replay::decode(black_box(&log), 64 << 10));
}

#[divan::bench]
fn decode_a_pong(bencher: Bencher<'_, '_>) {
    let mut decoder = Decoder::default();
    bencher.bench_local(|| decoder.feed(&mut [0x8a, 0x80, 0, 0, 0, 0]).unwrap().len());
}

#[divan::bench(args = [1, 1_000, 100_000])]
fn publication_to_one_of_many_channels(bencher: Bencher<'_, '_>, channels: u32) {
    let mut fanout = Fanout::new(channels, 1);
    let names: Vec<_> = (0..channels).map(|n| format!("chat:c{n}")).collect();
    let mut turn = names.iter().cycle();
    bencher.bench_local(|| {
        fanout.append(turn.next().unwrap().as_bytes(), b"payload");
        fanout.flush_to_sockets()
    });
}

#[divan::bench(args = [1, 16, 64])]
fn messages_to_a_thousand_queues(bencher: Bencher<'_, '_>, batch: usize) {
    let mut fanout = Fanout::new(1, 1_000);
    let payload = [b'x'; 128];
    bencher.counter(ItemsCount::new(1_000 * batch)).bench_local(|| {
        for _ in 0..batch {
            fanout.append(b"chat:c0", &payload);
        }
        fanout.flush();
        fanout.drain();
    });
}
