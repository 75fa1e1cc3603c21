//! The settings `channels` and `channel_characters` of an endpoint: which names of channels it has. May not enter: where
//! a request has the name, prefixes.

/// Whether one of the patterns allows `name`; without patterns, every name is allowed.
pub(crate) fn are_allowed(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()))
}

/// Whether `name` has only characters of `class`; an empty class has all characters.
pub(crate) fn has_only(class: &str, name: &str) -> bool {
    class.is_empty() || name.chars().all(|character| is_in(class, character))
}

/// What is wrong with a class.
pub(super) fn fault(class: &str) -> Option<String> {
    let backwards = ranges(class).find(|(first, last)| first > last);
    backwards.map(|(first, last)| format!("'{first}-{last}' is no range: its first character comes after its last"))
}

/// A `*` stands for any bytes, none as well; everything else for itself. Without recursion: a pattern with many stars
/// costs its length times the name's.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut retry) = (0, 0, None);
    loop {
        match (pattern.get(p), name.get(n)) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, n));
                p += 1;
            }
            (Some(expected), Some(found)) if expected == found => (p, n) = (p + 1, n + 1),
            (None, None) => return true,
            // The last star takes one byte more.
            _ => match retry {
                Some((after, from)) if from < name.len() => {
                    retry = Some((after, from + 1));
                    (p, n) = (after, from + 1);
                }
                _ => return false,
            },
        }
    }
}

fn is_in(class: &str, character: char) -> bool {
    ranges(class).any(|(first, last)| (first..=last).contains(&character))
}

/// The class as ranges; a `-` at the end stands for itself.
fn ranges(class: &str) -> impl Iterator<Item = (char, char)> {
    let mut rest = class.chars();
    std::iter::from_fn(move || {
        let first = rest.next()?;
        let mut ahead = rest.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(last)) => {
                rest = ahead;
                Some((first, last))
            }
            _ => Some((first, first)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_characters_and_all_else_for_itself() {
        for (pattern, yes, no) in [
            ("news", &["news"][..], &["", "new", "newss", "News"][..]),
            ("news/*", &["news/", "news/a", "news/a/b"], &["news", "xnews/", "newss/"]),
            ("*", &["", "a", "m\u{fc}ller"], &[]),
            ("*-room", &["-room", "a-room", "a-room-room"], &["room", "a-room-"]),
            ("u*:*x", &["u:x", "u1:ax", "u::xx"], &["u:", "ux", "u:xy"]),
            ("[ab]?", &["[ab]?"], &["ac", "a?"]),
            ("m\u{fc}*", &["m\u{fc}ller"], &["muller", "m\u{c3}"]),
        ] {
            for name in yes {
                assert!(are_allowed(&[pattern.to_owned()], name), "{pattern} {name}");
            }
            for name in no {
                assert!(!are_allowed(&[pattern.to_owned()], name), "{pattern} {name}");
            }
        }
        assert!(are_allowed(&[], "any"));
        assert!(are_allowed(&["a".to_owned(), "b".to_owned()], "b"));
        let stars = "*a".repeat(200);
        assert!(!are_allowed(&[stars], &"a".repeat(199)));
    }

    #[test]
    fn a_class_has_characters_and_ranges() {
        for (class, yes, no) in [
            ("", "any\0", None),
            ("a-z", "abz", Some("A")),
            ("a-z0-9_-", "a_0-", Some("a b")),
            ("-a", "-a", Some("b")),
            ("\u{e0}-\u{ff}x", "\u{fc}x", Some("u")),
            ("---", "-", Some("a")),
        ] {
            assert!(has_only(class, yes), "{class} {yes}");
            assert!(no.is_none_or(|no| !has_only(class, no)), "{class} {no:?}");
            assert_eq!(fault(class), None, "{class}");
        }
        assert!(fault("a-zz-a").unwrap().contains("'z-a'"));
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_an_expression_does(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            fn slow(pattern: &[u8], name: &[u8]) -> bool {
                match pattern {
                    [] => name.is_empty(),
                    [b'*', rest @ ..] => (0..=name.len()).any(|n| slow(rest, &name[n..])),
                    [first, rest @ ..] => name.first() == Some(first) && slow(rest, &name[1..]),
                }
            }
            prop_assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), slow(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
