//! The README's table of settings is `Config::default()`: all settings, their names, their defaults.
//!
//! A row is ``| `limits.max_sessions` | `0` | meaning |``; a setting that is unset by default says `none`.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Value;
use webws::Config;

/// What an option that is unset by default has in its second column.
const UNSET: &str = "none";
/// Serializing leaves unset options out, so these are known by name only.
const UNSET_OPTIONS: [&str; 16] = [
    "socket_group",
    "handoff_user",
    "control",
    "redis.username",
    "redis.password_file",
    "redis.sentinel_username",
    "redis.sentinel_password_file",
    "redis.ca_file",
    "redis.pinned_certificate_file",
    "redis.certificate_file",
    "redis.key_file",
    "redis.server_name",
    "endpoint.history",
    "endpoint.channel_keys_file",
    "endpoint.rate",
    "endpoint.token",
];

/// All settings and their defaults, as TOML values.
fn defaults() -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> =
        UNSET_OPTIONS.iter().map(|name| ((*name).to_owned(), UNSET.to_owned())).collect();
    for (name, value) in toml::Table::try_from(Config::default()).unwrap() {
        let table = match value {
            Value::Table(table) => table,
            Value::Array(mut tables) if name == "endpoint" => match tables.pop() {
                Some(Value::Table(table)) if tables.is_empty() => table,
                other => panic!("endpoint: {other:?} and {tables:?}"),
            },
            value => {
                settings.insert(name, value.to_string());
                continue;
            }
        };
        settings.extend(table.into_iter().map(|(key, value)| (format!("{name}.{key}"), value.to_string())));
    }
    settings
}

/// The rows of the table: name, default, meaning.
fn rows(readme: &str) -> Vec<(String, String, String)> {
    let code = |cell: &str| Some(cell.trim().strip_prefix('`')?.strip_suffix('`')?.to_owned());
    let row = |line: &str| {
        let mut cells = line.trim().strip_prefix('|')?.strip_suffix('|')?.splitn(3, '|');
        let (name, default, meaning) = (code(cells.next()?)?, code(cells.next()?)?, cells.next()?);
        let is_setting =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.".contains(&byte));
        is_setting.then(|| (name, default, meaning.trim().to_owned()))
    };
    readme.lines().filter_map(row).collect()
}

/// All differences between a table and the defaults, a line each.
fn differences(readme: &str) -> Vec<String> {
    let mut missing = defaults();
    let mut found = Vec::new();
    for (name, default, meaning) in rows(readme) {
        match missing.remove(&name) {
            None => found.push(format!("{name} is no setting, or has two rows")),
            Some(real) if real != default => found.push(format!("{name} has the default {real}, not {default}")),
            Some(_) if meaning.is_empty() => found.push(format!("{name} has no meaning")),
            Some(_) => {}
        }
    }
    found.extend(missing.into_iter().map(|(name, default)| format!("{name} (default {default}) has no row")));
    found
}

#[test]
fn the_readmes_settings_are_the_settings_and_their_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let differences = differences(&readme);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_difference_of_a_settings_table_is_found() {
    let table: String =
        defaults().iter().map(|(name, default)| format!("| `{name}` | `{default}` | what it means |\n")).collect();
    let heading = "| setting | default | meaning |\n|---|---|---|\n";
    assert_eq!(differences(&format!("# x\n{heading}{table}\ntext")), [""; 0]);
    let wrong = table
        .replace("| `workers` | `0` |", "| `workers` | `1` |")
        .replace("`redis.username`", "`redis.user`")
        .replace(
            "| `broker` | `\"redis://127.0.0.1:6379\"` | what it means |",
            "| `broker` | `\"redis://127.0.0.1:6379\"` | |",
        );
    let found = differences(&wrong);
    assert_eq!(found.len(), 4, "{found:#?}");
    for name in ["workers", "redis.user ", "redis.username", "broker"] {
        assert!(found.iter().any(|difference| difference.starts_with(name)), "{name}: {found:#?}");
    }
}

/// Keeps `UNSET_OPTIONS` whole: a new `Option` in the settings fails here first.
#[test]
fn options_that_are_unset_by_default_are_known_by_name() {
    let all = "broker = \"memory\"\nsocket_group = \"x\"\nhandoff_user = \"x\"\ncontrol = \"x\"\n[redis]\nusername = \"x\"\npassword_file = \"x\"\nsentinel_username = \"x\"\n\
               sentinel_password_file = \"x\"\nca_file = \"x\"\npinned_certificate_file = \"x\"\n\
               certificate_file = \"x\"\nkey_file = \"x\"\nserver_name = \"x\"\n[[endpoint]]\nhistory = {}\nchannel_keys_file = \"x\"\nrate = {}\ntoken = {}\n";
    let config = Config::read("all", all, []).unwrap();
    let debug = format!("{config:?}");
    assert!(
        !debug.replace("claims: None,", "").contains("None,") && !debug.contains("None }"),
        "an option that UNSET_OPTIONS lacks: {debug}"
    );
    assert_eq!(debug.matches("Some(").count(), UNSET_OPTIONS.len(), "{debug}");
}
