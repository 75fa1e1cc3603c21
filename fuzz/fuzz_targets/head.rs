//! `bodies/head.rs` with libFuzzer's input.
#![no_main]

#[path = "../bodies/head.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
