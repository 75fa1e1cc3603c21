//! A configuration file: never a panic, never an endless search for faults.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    webws::internals::is_config(text);
});
