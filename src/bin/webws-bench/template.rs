//! Texts with `{channel}` and `{connection}` in them. May not enter: what a text is for.

use std::str::FromStr;

/// A text that is different for each channel or connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Channel,
    Connection,
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            parts.push(Part::Text(before.to_owned()));
            let word = after.split_once('}').filter(|(word, _)| word.chars().all(|c| c.is_ascii_alphabetic()));
            rest = match word {
                Some(("channel", rest)) => {
                    parts.push(Part::Channel);
                    rest
                }
                Some(("connection", rest)) => {
                    parts.push(Part::Connection);
                    rest
                }
                Some((word, _)) if !word.is_empty() => {
                    return Err(format!("'{{{word}}}' is unknown: {{channel}} and {{connection}} can be filled in"));
                }
                // A brace of its own, as in JSON.
                _ => {
                    parts.push(Part::Text("{".to_owned()));
                    after
                }
            };
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }
}

impl Template {
    pub(crate) fn fill(&self, channel: u32, connection: u32) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Channel => out.push_str(&channel.to_string()),
                Part::Connection => out.push_str(&connection.to_string()),
            }
        }
        out
    }

    /// The same, with `prefix` before each channel.
    pub(crate) fn prefixed(&self, prefix: &str) -> Self {
        let parts = self.0.iter().flat_map(|part| {
            let before = (*part == Part::Channel).then(|| Part::Text(prefix.to_owned()));
            before.into_iter().chain([part.clone()])
        });
        Self(parts.collect())
    }

    pub(crate) fn names_channel(&self) -> bool {
        self.0.contains(&Part::Channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        text.parse::<Template>().unwrap().fill(7, 4711)
    }

    #[test]
    fn channel_and_connection_are_filled_in() {
        assert_eq!(filled("/webws?channel=%22c{channel}%22&me={connection}"), "/webws?channel=%22c7%22&me=4711");
        assert_eq!(filled("{channel}{channel}"), "77");
        assert_eq!(filled("plain"), "plain");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn a_prefix_precedes_the_channel_only() {
        let template = "/c{channel}?{connection}".parse::<Template>().unwrap();
        assert_eq!(template.prefixed("by").fill(7, 4711), "/cby7?4711");
    }

    #[test]
    fn other_braces_stay() {
        assert_eq!(filled(r#"{"to":{channel},"x":{}}"#), r#"{"to":7,"x":{}}"#);
        assert_eq!(filled("a{b"), "a{b");
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = "/x?c={chanel}".parse::<Template>().unwrap_err();
        assert!(error.contains("{chanel}") && error.contains("{connection}"), "{error}");
    }
}
