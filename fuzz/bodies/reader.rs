//! What a client sends: never a panic, and the same messages however the bytes arrive.

use webws::internals::Judge;

pub(crate) fn run(input: &[u8]) {
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
}
