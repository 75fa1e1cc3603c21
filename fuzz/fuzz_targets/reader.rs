//! `bodies/reader.rs` with libFuzzer's input.
#![no_main]

#[path = "../bodies/reader.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
