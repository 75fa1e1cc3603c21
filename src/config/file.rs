//! Reads a configuration from TOML text and from `WEBWS_*` variables, and finds all
//! faults in one go: a fault's lines are blanked and the text is read again.

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, ConfigError};

/// More faults than this are not listed: the file is likely not ours.
const MAX_FAULTS: usize = 50;

impl Config {
    /// Reads settings from the TOML `text` of the file called `name` and then from the
    /// `WEBWS_*` variables in `environment`: `WEBWS_WORKERS=2`, `WEBWS_REDIS__USERNAME=web`
    /// (two underscores lead into a table). What neither sets keeps its default.
    ///
    /// # Errors
    /// Every unknown setting, wrong type or unreadable value, each with its place.
    pub fn read(
        name: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let (mut faults, mut table) = faults_in_text(name, text);
        for (variable, value) in environment {
            let Some(path) = variable.strip_prefix("WEBWS_") else { continue };
            if path == "HANDOVER" {
                // One process' word to the next.
                continue;
            }
            let path = path.to_ascii_lowercase();
            let keys: Vec<&str> = path.split("__").collect();
            let value = to_value(&keys, &value);
            // Alone first, so that the fault names the variable.
            match Self::deserialize(nested(&keys, value.clone())) {
                Ok(_) => merge(&mut table, nested(&keys, value)),
                Err(error) => faults.push(format!("environment variable {variable}: {}", one_line(error.message()))),
            }
        }
        let config = Self::deserialize(table)
            .map_err(|error| ConfigError::new(vec![format!("{name}: {}", one_line(error.message()))]));
        if faults.is_empty() {
            return config;
        }
        // What could be read is checked now, so that one look shows everything.
        if let Err(error) = config.and_then(|config| config.validate()) {
            faults.extend(error.faults);
        }
        Err(ConfigError::new(faults))
    }
}

/// The faults of a text in the order of its lines, and the settings that have none.
fn faults_in_text(name: &str, text: &str) -> (Vec<String>, Table) {
    let mut faults: Vec<(usize, String, String)> = Vec::new();
    let mut endpoints_are_whole = true;
    let mut lines: Vec<&str> = text.split('\n').collect();
    while faults.len() < MAX_FAULTS {
        let current = lines.join("\n");
        let Err(error) = toml::from_str::<Config>(&current) else { break };
        let Some(span) = error.span() else {
            faults.push((lines.len(), String::new(), one_line(error.message())));
            break;
        };
        let line = current.get(..span.start).unwrap_or_default().matches('\n').count();
        let key = lines.get(line).and_then(|text| text.split_once('=')).map_or("", |(key, _)| key.trim());
        faults.push((line + 1, key.to_owned(), one_line(error.message())));
        // Text that is no TOML has no further faults worth naming.
        if toml::from_str::<Table>(&current).is_err() {
            break;
        }
        let is_header = |line: &&str| line.trim_start().starts_with('[');
        let header = lines.iter().take(line + 1).rfind(|line| is_header(line));
        endpoints_are_whole &= header.is_none_or(|header| !header.trim_start().starts_with("[["));
        let mut rest = lines.iter_mut().skip(line);
        let Some(first) = rest.next() else { break };
        let whole_table = is_header(&&**first);
        *first = "";
        if whole_table {
            rest.take_while(|line| !is_header(&&***line)).for_each(|line| *line = "");
        }
    }
    let mut sound: Table = toml::from_str(&lines.join("\n")).unwrap_or_default();
    if !endpoints_are_whole {
        // A default in the place of a faulty line may not fit the rest of its endpoint.
        sound.remove("endpoint");
    }
    faults.sort();
    let sentence = |(line, key, what): (usize, String, String)| match key.as_str() {
        "" => format!("{name}, line {line}: {what}"),
        key => format!("{name}, line {line}, {key}: {what}"),
    };
    (faults.into_iter().map(sentence).collect(), sound)
}

fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    // serde names Rust's types; people who write settings need not know them.
    line.replace("expected usize", "expected a whole number").replace("expected a boolean", "expected true or false")
}

/// A variable's text as the type its setting wants: whole numbers, booleans and arrays are
/// read as TOML, lists may be written `a,b`, everything else is a string.
fn to_value(keys: &[&str], text: &str) -> Value {
    if keys == ["listen"] && !text.trim_start().starts_with('[') {
        return Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect());
    }
    match toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value")) {
        Some(value @ (Value::Integer(_) | Value::Boolean(_) | Value::Array(_))) if keys != ["socket_mode"] => value,
        _ => Value::String(text.to_owned()),
    }
}

fn nested(keys: &[&str], value: Value) -> Table {
    let (Some(first), rest) = (keys.first(), keys.get(1..).unwrap_or_default()) else { return Table::new() };
    let value = if rest.is_empty() { value } else { Value::Table(nested(rest, value)) };
    Table::from_iter([((*first).to_owned(), value)])
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read("webws.toml", text, environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(read("", &[]).unwrap(), Config::default());
    }

    #[test]
    fn all_faults_of_a_file_are_named_with_their_lines() {
        let error = read(
            "workerz = 1\nworkers = \"two\"\n[limits]\nhandshake_timeout = \"soon\"\n[nonsense]\na = 1\nb = 2\n\
             [[endpoint]]\nwire = \"perl\"\n",
            &[],
        )
        .unwrap_err();
        let faults: Vec<_> = error.faults().collect();
        assert_eq!(faults.len(), 5, "{faults:#?}");
        let places = ["line 1, workerz:", "line 2, workers:", "line 4, handshake_timeout:", "line 5:", "line 9, wire:"];
        for (fault, place) in faults.iter().zip(places) {
            assert!(fault.starts_with(&format!("webws.toml, {place}")), "{place} {faults:#?}");
        }
        assert!(faults[1].ends_with("expected a whole number"), "{faults:#?}");
    }

    #[test]
    fn faults_of_reading_and_of_checking_come_together_in_the_order_of_lines() {
        let error = read(
            "drain_time = 3\nworkers = 5000\n[redis]\nconnect_timeout = \"0s\"\n[[endpoint]]\npath = 1\n\
             ping_interval = \"soon\"\nidle_timeout = \"2s\"\n[[endpoint]]\n[limits]\nretry_after = 1\n",
            &[("WEBWS_NONSENSE", "1")],
        )
        .unwrap_err();
        let faults: Vec<_> = error.faults().collect();
        let places = ["line 1,", "line 6,", "line 7,", "line 11,", "WEBWS_NONSENSE", "workers", "redis.connect"];
        assert_eq!(faults.len(), places.len(), "{faults:#?}");
        for (fault, place) in faults.iter().zip(places) {
            assert!(fault.contains(place), "{place} {faults:#?}");
        }
    }

    #[test]
    fn broken_toml_is_one_fault_with_its_line() {
        let error = read("workers = 1\nlisten = [\n", &[]).unwrap_err();
        assert_eq!(error.faults().count(), 1, "{error}");
        assert!(error.to_string().starts_with("webws.toml, line "), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = read(
            "workers = 1\n[redis]\nusername = \"a\"\nconnect_timeout = \"1s\"\n",
            &[
                ("WEBWS_WORKERS", "2"),
                ("WEBWS_REDIS__USERNAME", "b"),
                ("WEBWS_LISTEN", "unix:/a,tcp:127.0.0.1:1"),
                ("WEBWS_SOCKET_MODE", "0600"),
                ("PATH", "/bin"),
            ],
        )
        .unwrap();
        assert_eq!(config.workers, 2);
        assert_eq!(config.redis.username.as_deref(), Some("b"));
        assert_eq!(config.redis.connect_timeout, Duration::from_secs(1));
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.socket_mode.0, 0o600);
    }

    #[test]
    fn a_wrong_variable_is_named() {
        let error = read("", &[("WEBWS_WORKERS", "many"), ("WEBWS_NONSENSE", "1")]).unwrap_err().to_string();
        assert!(error.contains("WEBWS_WORKERS") && error.contains("WEBWS_NONSENSE"), "{error}");
    }

    #[test]
    fn effective_settings_can_be_read_again() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(read(&text, &[]).unwrap(), Config::default());
    }
}
