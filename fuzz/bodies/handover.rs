//! A message of a process that claims to hand over: never a panic, whatever it says.

pub(crate) fn run(input: &[u8]) {
    std::hint::black_box(webws::internals::adopt(input));
}
