//! A request's head, taken apart: never a panic, and what is behind it stays as it came.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some((target, rest)) = webws::internals::take_apart(input) {
        assert!(target.starts_with(b"/"));
        assert!(rest.len() <= input.len());
        assert!(rest.windows(2).any(|pair| pair == b" /"));
        let behind = rest.iter().rev().zip(input.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(behind >= 2, "the empty line at least");
    }
});
