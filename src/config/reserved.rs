//! Channel names that Redis and webws use themselves. No client may subscribe or publish there. May not enter: what
//! these channels are for.

/// The prefixes of such names, and their owners.
const RESERVED: [(&str, &str); 6] = [
    ("webws:", "webws' own"),
    // Keyspace notifications: `__keyspace@0__:key`, `__keyevent@0__:del`.
    ("__keyspace@", "Redis' notifications"),
    ("__keyevent@", "Redis' notifications"),
    // The same for fields of hashes, since Redis 8: `__subkeyspace@0__:`, `__subkeyevent@0__:` and more.
    ("__subkey", "Redis' notifications"),
    // `__redis__:invalidate`, CLIENT TRACKING.
    ("__redis__:", "Redis' invalidations"),
    // `__sentinel__:hello`: a publication there moves masters.
    ("__sentinel__:", "the Sentinels'"),
];

/// The prefix that reserves `name`, and its owner.
pub(crate) fn reserved(name: &[u8]) -> Option<(&'static str, &'static str)> {
    RESERVED.into_iter().find(|(beginning, _)| name.starts_with(beginning.as_bytes()))
}

/// What a client could reach by a name behind `prefix`, although the prefix itself is not reserved. An empty prefix
/// reaches everything, and is asked for by name; then only [`reserved`] is in the way.
pub(super) fn could_become_reserved(prefix: &str) -> Option<(&'static str, &'static str)> {
    let is_beginning =
        |beginning: &str| !prefix.is_empty() && prefix.len() < beginning.len() && beginning.starts_with(prefix);
    RESERVED.into_iter().find(|(beginning, _)| is_beginning(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_channels_are_reserved_and_nothing_else_is() {
        for name in [
            "webws:probe:0123456789abcdef",
            "__keyspace@0__:chat",
            "__keyevent@15__:expired",
            "__subkeyspace@0__:h",
            "__redis__:invalidate",
            "__sentinel__:hello",
        ] {
            assert!(reserved(name.as_bytes()).is_some(), "{name}");
        }
        for name in
            ["", "chat:webws:probe:1", "chat:__sentinel__:hello", "webws", "Webws:a", "__k", "_webws:", "__keys"]
        {
            assert!(reserved(name.as_bytes()).is_none(), "{name}");
        }
    }
}
