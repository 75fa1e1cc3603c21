//! Each fuzz target's body (`fuzz/bodies`) on its committed seeds, and for two seconds on random mutations of them.
//!
//! `cargo fuzz` follows coverage and finds more, but needs a nightly compiler. This test runs everywhere, keeps the
//! bodies compiling, and finds what a change breaks near the seeds. WEBWS_FUZZ_SECONDS=600 runs each body longer;
//! WEBWS_FUZZ_SEED=N repeats a run.

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// One test per body. The name is also that of its directory in `fuzz/seeds`.
macro_rules! bodies {
    ($($name:ident in $file:literal;)*) => {$(
        #[path = $file]
        mod $name;

        #[test]
        fn $name() {
            fuzz(stringify!($name), $name::run);
        }
    )*};
}

bodies! {
    config in "../../fuzz/bodies/config.rs";
    handover in "../../fuzz/bodies/handover.rs";
    head in "../../fuzz/bodies/head.rs";
    query in "../../fuzz/bodies/query.rs";
    reader in "../../fuzz/bodies/reader.rs";
    replay in "../../fuzz/bodies/replay.rs";
    resp in "../../fuzz/bodies/resp.rs";
}

/// Longer inputs only slow the run down: no parser here treats byte 5,000 unlike byte 500.
const MAX_BYTES: usize = 4_096;

/// Bytes at which the parsers branch: frame lengths, RESP types, separators.
const TELLING: &[u8] =
    &[0, 1, 0x7d, 0x7e, 0x7f, 0x80, 0x81, 0x88, 0xfe, 0xff, b'\r', b'\n', b'"', b'%', b'$', b'>', b'*'];

fn fuzz(name: &str, body: fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("WEBWS_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let time = Duration::from_secs(number("WEBWS_FUZZ_SECONDS").unwrap_or(2));
    let inputs = seeds(name);
    let mut random = Rng::with_seed(seed);
    let run = |input: &[u8]| {
        // The body's own message is above this one.
        let outcome = catch_unwind(|| body(input));
        assert!(outcome.is_ok(), "{name}, WEBWS_FUZZ_SEED={seed}: failed on b\"{}\"", input.escape_ascii());
    };
    inputs.iter().for_each(|input| run(input));
    run(b"");
    let began = Instant::now();
    while began.elapsed() < time {
        run(&mutated(&inputs, &mut random));
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no seeds");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn mutated(inputs: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut bytes = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..random.usize(1..=8) {
        let at = random.usize(..=bytes.len());
        let until = random.usize(at..=bytes.len().min(at + 32));
        match random.u8(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 if at < bytes.len() => bytes[at] = TELLING[random.usize(..TELLING.len())],
            2 => bytes.insert(at, TELLING[random.usize(..TELLING.len())]),
            3 => bytes.insert(at, random.u8(..)),
            4 => drop(bytes.drain(at..until)),
            5 => bytes.extend_from_within(at..until),
            _ => {
                let other = &inputs[random.usize(..inputs.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}
