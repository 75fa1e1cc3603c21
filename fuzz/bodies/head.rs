//! A request's head, taken apart: never a panic, and every byte behind the target stays as it came.

pub(crate) fn run(input: &[u8]) {
    if let Some((target, rest)) = webws::internals::take_apart(input) {
        assert!(target.starts_with(b"/"));
        assert!(rest.len() <= input.len());
        assert!(rest.windows(2).any(|pair| pair == b" /"));
        let behind = rest.iter().rev().zip(input.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(behind >= 2, "the empty line at least");
    }
}
