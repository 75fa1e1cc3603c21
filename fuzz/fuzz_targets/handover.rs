//! What a process hears that takes over from another: never a panic, whatever it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use webws::internals::adopt;

fuzz_target!(|input: &[u8]| {
    adopt(input);
});
