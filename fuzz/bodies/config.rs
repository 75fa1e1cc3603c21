//! A configuration file: never a panic, never an endless search for faults.

pub(crate) fn run(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        webws::internals::is_config(text);
    }
}
