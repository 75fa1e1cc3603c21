//! Finds invalid TOML: where, and what the user probably meant.
//!
//! One run finds all faults of a text. Lines with a fault are then blanked, so that the settings on the other lines can
//! be checked too. A message repeats no value, because a value may be a password. May not enter: the names of settings
//! (`schema.rs`).

use std::collections::BTreeMap;

use toml::de::DeTable;

/// The text without faulty lines, and the faults.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The text with each faulty line blanked; `None` when the rest cannot be read.
    pub(super) text: Option<String>,
    /// Each fault by its place in the text.
    pub(super) faults: BTreeMap<usize, String>,
    /// The settings that the blanked lines would have set.
    pub(super) names: Vec<String>,
    /// Whether one of these settings is below a `[[…]]`.
    pub(super) is_in_tables: bool,
}

pub(super) fn parse(text: &str) -> Parsed {
    let (_, errors) = DeTable::parse_recoverable(text);
    let mut parsed = Parsed { text: None, faults: BTreeMap::new(), names: Vec::new(), is_in_tables: false };
    if errors.is_empty() {
        parsed.text = Some(text.to_owned());
        return parsed;
    }
    let mut rest = text.as_bytes().to_vec();
    let mut is_readable = true;
    let mut last_line = None;
    let mut doubled = Vec::new();
    let mut errors: Vec<_> =
        errors.iter().map(|error| (error.span().map_or(text.len(), |at| at.start), error)).collect();
    errors.sort_by_key(|(at, _)| *at);
    for (at, error) in errors {
        let at = text.floor_char_boundary(at.min(text.len()));
        let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let end = text.get(at..).and_then(|behind| behind.find('\n')).map_or(text.len(), |newline| at + newline);
        // Further faults on a line mostly follow from the first one.
        if last_line == Some(start) {
            continue;
        }
        last_line = Some(start);
        let line = text.get(start..end).unwrap_or_default();
        let header = header(text.get(..start).unwrap_or_default());
        let is_double = error.message().contains("duplicate key");
        if is_double && line.trim_start().starts_with('[') {
            doubled.push(line);
        } else if is_double && header.is_some_and(|header| doubled.contains(&header.line)) {
            continue;
        }
        let is_list = error.message().contains("array");
        let name = key(line)
            .filter(|_| !is_list)
            .map(|key| header.map_or_else(|| key.to_owned(), |header| format!("{}.{key}", header.name)));
        let what = meaning(line, error.message());
        parsed.faults.insert(at, name.as_ref().map_or_else(|| what.clone(), |name| format!("{name}: {what}")));
        parsed.is_in_tables |= header.is_some_and(|header| header.is_list);
        parsed.names.extend(name);
        is_readable &= !line.trim_start().starts_with('[');
        rest.iter_mut().take(end).skip(start).for_each(|byte| *byte = b' ');
    }
    parsed.text = String::from_utf8(rest).ok().filter(|rest| is_readable && DeTable::parse(rest).is_ok());
    parsed
}

/// The table that a line below `before` belongs to.
#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    line: &'a str,
    name: &'a str,
    is_list: bool,
}

fn header(before: &str) -> Option<Header<'_>> {
    let line = before.lines().rfind(|line| line.trim_start().starts_with('['))?;
    let name = line.split('#').next()?.trim().trim_matches(['[', ']']).trim();
    Some(Header { line, name, is_list: line.trim_start().starts_with("[[") })
}

/// The setting on a line.
fn key(line: &str) -> Option<&str> {
    let key = line.split(['=', ':']).next()?.trim();
    let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    is_key.then_some(key)
}

/// What is wrong with a line and what to write instead; if unknown, the parser's message.
fn meaning(line: &str, said: &str) -> String {
    let name = key(line).unwrap_or("NAME");
    let (_, value) = line.split_once('=').unwrap_or((line, ""));
    let value = value.trim();
    if said.contains("duplicate key") {
        return match line.trim().strip_prefix('[') {
            Some(_) => format!("{} occurs twice: put its settings together", line.trim()),
            None => "it is set twice: keep one of the two lines".to_owned(),
        };
    }
    if said.contains("array") {
        return format!("a list has no end or lacks a comma: write NAME = [\"…\", \"…\"] ({said})");
    }
    if line.contains(['“', '”', '„', '‘', '’', '«', '»']) {
        return format!("these are typographic quotes: use straight ones, {name} = \"…\"");
    }
    if line.trim_start().starts_with('[') {
        return "a table's name is in brackets, [limits] or [[endpoint]], and nothing follows on its line".to_owned();
    }
    if !line.contains('=') {
        return match line.split_once(':') {
            Some(_) => format!("a setting is written with an equals sign: {name} = …"),
            None => format!("this is not a setting: write NAME = VALUE ({said})"),
        };
    }
    if value.is_empty() {
        return "the value is missing".to_owned();
    }
    let is_text = value.starts_with(|c: char| c.is_alphabetic() || "/~$.".contains(c));
    if is_text && !["true", "false", "inf", "nan"].contains(&value) {
        return match value.to_ascii_lowercase().as_str() {
            flag @ ("yes" | "on" | "no" | "off" | "true" | "false") => {
                let flag = ["yes", "on", "true"].contains(&flag);
                format!("this setting is true or false: write {name} = {flag}")
            }
            _ => format!("a text needs quotes: write {name} = \"…\""),
        };
    }
    let has_unit =
        value.starts_with(|c: char| c.is_ascii_digit()) && value.ends_with(|c: char| c.is_ascii_alphabetic());
    if has_unit {
        return format!("a value with a unit needs quotes: write {name} = \"{value}\"");
    }
    if value.ends_with([';', ',']) && !value.starts_with(['[', '{']) {
        return format!(
            "nothing follows a value: leave out the '{}' at the end",
            value.get(value.len() - 1..).unwrap_or_default()
        );
    }
    if value.matches('"').count() == 1 {
        return "a quote is missing".to_owned();
    }
    format!("this is not TOML: {said}")
}
