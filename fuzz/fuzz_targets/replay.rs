//! `bodies/replay.rs` with libFuzzer's input.
#![no_main]

#[path = "../bodies/replay.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
