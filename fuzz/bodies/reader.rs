//! What a client sends: never a panic, and the same messages however the bytes arrive.

use webws::internals::Decoder;

pub(crate) fn run(input: &[u8]) {
    let mut whole = input.to_vec();
    let at_once = Decoder::default().feed(&mut whole);
    let mut decoder = Decoder::default();
    let mut bytewise = Some(Vec::new());
    for byte in input {
        let more = decoder.feed(&mut [*byte]);
        bytewise = bytewise.zip(more).map(|(texts, more)| [texts, more].concat());
        if bytewise.is_none() {
            break;
        }
    }
    assert_eq!(at_once, bytewise);
}
