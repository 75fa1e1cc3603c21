//! Checks one value against its setting: the value as the setting takes it, or the fault and the remedy. May not enter:
//! checks of several settings together (`validate.rs`).

use serde::Deserialize;
use toml::{Table, Value};

use super::schema::{Kind, Schema, Setting};
use super::{Config, size};

/// A message does not repeat a longer text: the text is likely no setting.
const MAX_REPEATED: usize = 60;

/// The source of a value: decides how a message writes the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    File,
    Environment,
}

/// The value as its setting takes it.
///
/// # Errors
/// The fault, as a sentence without its place.
pub(super) fn check(schema: &Schema, setting: &Setting, value: Value, origin: Origin) -> Result<Value, String> {
    let value = match (setting.kind, &value) {
        // 0 needs no unit.
        (Kind::Duration, Value::Integer(0)) => Value::String("0s".to_owned()),
        (Kind::Bytes, Value::String(text)) => size::parse(text).map_or(value, Value::Integer),
        _ => value,
    };
    let as_tables = schema.get(None, setting.table.unwrap_or_default()).is_some_and(|it| it.kind == Kind::Tables);
    match Config::deserialize(nested(setting, value.clone(), as_tables)) {
        Ok(_) => Ok(value),
        Err(error) => Err(explain(setting, &value, &one_line(error.message()), origin)),
    }
}

/// A configuration with nothing but this setting.
fn nested(setting: &Setting, value: Value, as_tables: bool) -> Table {
    let one = Table::from_iter([(setting.name.to_owned(), value)]);
    match setting.table {
        None => one,
        Some(table) if as_tables => Table::from_iter([(table.to_owned(), Value::Array(vec![Value::Table(one)]))]),
        Some(table) => Table::from_iter([(table.to_owned(), Value::Table(one))]),
    }
}

/// The values that a variable's text may stand for, the likeliest first.
pub(super) fn candidates(setting: &Setting, text: &str) -> Vec<Value> {
    let as_toml = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    let as_text = Value::String(text.to_owned());
    match (setting.kind, as_toml) {
        (Kind::List, Some(list @ Value::Array(_))) => vec![list],
        (Kind::List, _) => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            vec![Value::Array(items.map(|item| Value::String(item.to_owned())).collect())]
        }
        (_, Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_) | Value::Table(_)))) => {
            vec![as_text, value]
        }
        _ => vec![as_text],
    }
}

fn explain(setting: &Setting, value: &Value, said: &str, origin: Origin) -> String {
    let name = setting.name;
    let quotes = if origin == Origin::File { "\"" } else { "" };
    match (setting.kind, value) {
        (Kind::Duration, Value::Integer(n)) => {
            format!("a duration needs a unit: write {quotes}{n}s{quotes} or {quotes}{n}ms{quotes}")
        }
        (Kind::Count | Kind::Bytes, Value::Integer(n)) if *n < 0 => format!("{n} is negative: write 0 or more"),
        (Kind::Count, Value::String(text)) if origin == Origin::File && text.trim().parse::<u64>().is_ok() => {
            format!("a number takes no quotes: write {name} = {}", text.trim())
        }
        (Kind::Flag, Value::String(text)) if origin == Origin::File && ["true", "false"].contains(&text.as_str()) => {
            format!("true and false take no quotes: write {name} = {text}")
        }
        (Kind::List, Value::String(text)) => format!("a list needs brackets: write {name} = [\"{}\"]", repeated(text)),
        (Kind::Text | Kind::Duration, Value::String(_))
        | (Kind::List, Value::Array(_))
        | (Kind::Inline, Value::Table(_)) => said.to_owned(),
        (Kind::Table, _) if setting.name == "redis" && value.is_str() => {
            "[redis] is a table of settings; the address is written as broker = \"redis://HOST:PORT\"".to_owned()
        }
        _ => format!("expected {}, found {}", expected(setting, origin), found(setting, value)),
    }
}

/// What a setting takes, with an example.
fn expected(setting: &Setting, origin: Origin) -> String {
    let name = setting.name;
    let in_quotes = if origin == Origin::File { " in quotes" } else { "" };
    let example = |value: &Value| match value {
        // 0 often has a special meaning.
        Value::Integer(0) => "2".to_owned(),
        Value::String(text) if origin == Origin::Environment => text.clone(),
        value => value.to_string(),
    };
    let such_as = setting.default.as_ref().map(|value| format!(", such as {}", example(value))).unwrap_or_default();
    match setting.kind {
        Kind::Count => format!("a whole number{such_as}"),
        Kind::Bytes if origin == Origin::File => {
            format!("a size in bytes{such_as}, \"64kB\" (64,000) or \"64KiB\" (65,536)")
        }
        Kind::Bytes => format!("a size in bytes{such_as}, 64kB (64,000) or 64KiB (65,536)"),
        Kind::Flag => "true or false".to_owned(),
        Kind::Duration => format!("a duration{in_quotes}{such_as}"),
        Kind::Text => format!("a text{in_quotes}{such_as}"),
        Kind::List => format!("a list{such_as}"),
        Kind::Inline => format!("settings in braces, {name} = {{ … }}"),
        Kind::Table => format!("a table: [{name}] on a line of its own and its settings below"),
        Kind::Tables => format!("tables: [[{name}]] on a line of its own and its settings below, as often as needed"),
    }
}

fn found(setting: &Setting, value: &Value) -> String {
    match value {
        // It may hold a password.
        Value::String(_) if setting.name == "broker" => "another text".to_owned(),
        Value::String(text) => format!("the text \"{}\"", repeated(text)),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(_) => "a date".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

fn repeated(text: &str) -> String {
    if text.chars().count() <= MAX_REPEATED {
        return text.escape_debug().to_string();
    }
    let beginning: String = text.chars().take(MAX_REPEATED).collect();
    format!("{}…", beginning.escape_debug())
}

/// serde's sentence on one line, without Rust's types and code marks, which mean nothing in a settings file.
pub(super) fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some(rest) = line.strip_prefix("unknown variant `")
        && let Some((wrong, choices)) = rest.split_once('`')
    {
        let choices: Vec<_> = choices.split('`').skip(1).step_by(2).map(|choice| format!("\"{choice}\"")).collect();
        let choices = match choices.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => choices.join(""),
        };
        return format!("\"{}\" is not a valid choice: write {choices}", repeated(wrong));
    }
    let line = line.replace("expected usize", "expected a whole number");
    line.replace("expected a boolean", "expected true or false").replace("invalid type: ", "").replace('`', "")
}
