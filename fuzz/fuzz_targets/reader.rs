//! What a client sends: never a panic, and the same texts however the bytes arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use webws::internals::Judge;

fuzz_target!(|input: &[u8]| {
    let mut whole = input.to_vec();
    let at_once = Judge::default().feed(&mut whole);
    let mut judge = Judge::default();
    let mut bytewise = Some(Vec::new());
    for byte in input {
        let more = judge.feed(&mut [*byte]);
        bytewise = bytewise.zip(more).map(|(texts, more)| [texts, more].concat());
        if bytewise.is_none() {
            break;
        }
    }
    assert_eq!(at_once, bytewise);
});
