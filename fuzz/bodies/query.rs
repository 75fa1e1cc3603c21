//! The channel that a query names: never a panic, always within its prefix.

pub(crate) fn run(query: &[u8]) {
    if let Some(channel) = webws::internals::channel(query) {
        assert!(channel.starts_with(b"chat:"));
        assert!(std::str::from_utf8(&channel).is_ok());
    }
}
