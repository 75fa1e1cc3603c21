//! Reads a configuration from TOML text and from `WEBWS_*` variables, and finds all faults at once. Each setting is
//! checked alone; the settings without a fault are then checked together. May not enter: the meaning of a setting.

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::check::{Origin, candidates, check, one_line};
use super::schema::{Kind, Schema, Setting, full_name};
use super::validate::is_about;
use super::{Config, ConfigError, ConfigFault, syntax};

/// Maximum of listed faults. A file with more is likely not a configuration of webws.
const MAX_FAULTS: usize = 50;

/// The variable by which the old process starts the new one in a hand-over. It has the prefix of settings, and is none.
const NO_SETTING: &str = "HANDOVER";

/// A configuration as far as it can be read, and the faults of the rest.
#[derive(Debug)]
#[non_exhaustive]
pub struct Reading {
    /// The settings. A setting with a fault has its default.
    pub config: Config,
    /// Likely mistakes that stop nothing, a sentence each.
    pub warnings: Vec<String>,
    /// `WEBWS_*` variables that are no settings and not close to one, a sentence each. Kubernetes sets some
    /// for a service named webws.
    pub unused: Vec<String>,
    pub(crate) faults: Vec<ConfigFault>,
}

impl Reading {
    /// The faults, in the order of the file.
    pub fn faults(&self) -> impl Iterator<Item = &ConfigFault> {
        self.faults.iter()
    }
}

impl Config {
    /// Reads settings from the TOML `text` of the file called `name` and then from the
    /// `WEBWS_*` variables in `environment`: `WEBWS_WORKERS=2`, `WEBWS_REDIS__USERNAME=web`
    /// (two underscores lead into a table). A setting in neither keeps its default. Empty variables and variables
    /// that are no setting are ignored.
    ///
    /// # Errors
    /// Every unknown setting, wrong type or unreadable value, each with its place.
    pub fn read(
        name: &str,
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let Reading { config, faults, .. } = examine(name, text, environment);
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::new(faults)) }
    }
}

/// Reads settings as [`Config::read`] does, but continues after a fault.
pub fn examine(name: &str, text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Reading {
    let mut reader = Reader::new(name, text);
    reader.read_file();
    // The environment has no order of its own.
    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.sort();
    for (variable, value) in environment {
        reader.read_variable(&variable, &value);
    }
    reader.finish()
}

struct Reader<'a> {
    schema: Schema,
    name: &'a str,
    text: &'a str,
    /// The settings without a fault.
    sound: Table,
    /// By place in the text.
    faults: Vec<(usize, String)>,
    /// The settings that have a fault.
    faulty: Vec<String>,
    warnings: Vec<String>,
    unused: Vec<String>,
    is_whole: bool,
}

/// A table's values and their places.
type Values<'a> = [(&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)];

impl<'a> Reader<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        // Some editors on Windows write a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (faults, faulty, warnings, unused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self {
            schema: Schema::new(),
            name,
            text,
            sound: Table::new(),
            faults,
            faulty,
            warnings,
            unused,
            is_whole: true,
        }
    }

    fn read_file(&mut self) {
        let parsed = syntax::parse(self.text);
        self.faults.extend(parsed.faults);
        self.faulty.extend(parsed.names);
        self.is_whole = parsed.text.is_some();
        let Some(text) = parsed.text else { return };
        let Ok(table) = DeTable::parse(&text) else { return };
        let values: Vec<_> = table.get_ref().iter().collect();
        let sound = self.read_table(None, &values);
        self.sound = sound;
        if parsed.is_in_tables {
            self.sound.retain(|name, _| self.schema.get(None, name).is_none_or(|setting| setting.kind != Kind::Tables));
        }
    }

    fn fault(&mut self, at: usize, name: String, what: &str) {
        self.faults.push((at, format!("{name}: {what}")));
        self.faulty.push(name);
    }

    /// The settings of a table that have no fault.
    fn read_table(&mut self, table: Option<&'static str>, values: &Values<'_>) -> Table {
        let mut sound = Table::new();
        for (key, value) in values {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            let Some(setting) = self.schema.get(table, name).cloned() else {
                let what = self.unknown(table, name, value.get_ref());
                self.fault(at, full_name(table, name), &what);
                continue;
            };
            let value = match (setting.kind, value.get_ref()) {
                (Kind::Table, DeValue::Table(inner)) => {
                    let inner: Vec<_> = inner.iter().collect();
                    Some(Value::Table(self.read_table(Some(setting.name), &inner)))
                }
                (Kind::Table, DeValue::Array(_)) => {
                    self.fault(at, name.to_owned(), &format!("this table may occur only once: write [{name}]"));
                    None
                }
                (Kind::Tables, DeValue::Array(all)) => self.read_tables(setting.name, all.iter()),
                (Kind::Tables, DeValue::Table(_)) => {
                    let what = format!("this table may be repeated: write [[{name}]]");
                    self.fault(at, name.to_owned(), &what);
                    self.read_tables(setting.name, [*value].into_iter());
                    None
                }
                (Kind::List, DeValue::Array(items)) => self.read_list(&setting, items.iter()),
                (_, value_here) => self.read_value(&setting, to_value(value_here), value.span().start),
            };
            if let Some(value) = value {
                sound.insert(name.to_owned(), value);
            }
        }
        sound
    }

    /// The tables without a fault; `None` when no such table is left.
    fn read_tables<'v>(
        &mut self,
        name: &'static str,
        all: impl Iterator<Item = &'v Spanned<DeValue<'v>>>,
    ) -> Option<Value> {
        let (mut sound, mut count, mut is_told) = (Vec::new(), 0, false);
        for one in all {
            count += 1;
            let before = self.faults.len();
            match one.get_ref() {
                DeValue::Table(values) => {
                    let values: Vec<_> = values.iter().collect();
                    let table = self.read_table(Some(name), &values);
                    // The default of a faulty setting may not fit the rest of the table.
                    if self.faults.len() == before {
                        sound.push(Value::Table(table));
                    }
                }
                _ if is_told => {}
                _ => {
                    is_told = true;
                    let what =
                        format!("write [[{name}]] on a line of its own and its settings below, as often as needed");
                    self.fault(one.span().start, name.to_owned(), &what);
                }
            }
        }
        (count == 0 || !sound.is_empty()).then_some(Value::Array(sound))
    }

    /// A list. Each item is checked alone.
    fn read_list<'v>(
        &mut self,
        setting: &Setting,
        items: impl Iterator<Item = &'v Spanned<DeValue<'v>>>,
    ) -> Option<Value> {
        let before = self.faults.len();
        let mut all = Vec::new();
        for item in items {
            match check(&self.schema, setting, Value::Array(vec![to_value(item.get_ref())]), Origin::File) {
                Ok(_) => all.push(to_value(item.get_ref())),
                Err(what) => self.fault(item.span().start, setting.full_name(), &what),
            }
        }
        (self.faults.len() == before).then_some(Value::Array(all))
    }

    fn read_value(&mut self, setting: &Setting, value: Value, at: usize) -> Option<Value> {
        // An empty text unsets a setting without a default: templates leave such texts behind.
        if setting.default.is_none() && value.as_str() == Some("") {
            return None;
        }
        match check(&self.schema, setting, value, Origin::File) {
            Ok(value) => Some(value),
            Err(what) => {
                self.fault(at, setting.full_name(), &what);
                None
            }
        }
    }

    fn read_variable(&mut self, variable: &str, text: &str) {
        let Some(path) = variable.strip_prefix("WEBWS_").filter(|path| *path != NO_SETTING) else { return };
        if text.is_empty() {
            return;
        }
        let path = path.to_ascii_lowercase();
        let (table, name) = path.split_once("__").map_or((None, path.as_str()), |(table, name)| (Some(table), name));
        let Some(setting) = self.schema.get(table, name).filter(|it| it.kind != Kind::Table).cloned() else {
            return self.unknown_variable(variable, &path);
        };
        if self.schema.get(None, table.unwrap_or_default()).is_some_and(|it| it.kind == Kind::Tables) {
            return self.unknown_variable(variable, &path);
        }
        let mut fault = None;
        for value in candidates(&setting, text) {
            let value = match check(&self.schema, &setting, value, Origin::Environment) {
                Ok(value) => value,
                Err(what) => {
                    fault = Some(what);
                    continue;
                }
            };
            let into = match setting.table {
                None => &mut self.sound,
                Some(table) => {
                    let inner = self.sound.entry(table).or_insert_with(|| Value::Table(Table::new()));
                    let Value::Table(inner) = inner else { return };
                    inner
                }
            };
            into.insert(setting.name.to_owned(), value);
            return;
        }
        let what = fault.filter(|_| !text.contains('\u{fffd}')).unwrap_or_else(|| "it is not UTF-8".to_owned());
        self.faults.push((usize::MAX, format!("environment variable {variable}: {what}")));
        self.faulty.push(setting.full_name());
    }

    fn unknown_variable(&mut self, variable: &str, path: &str) {
        let is_in_tables = |table| self.schema.get(None, table).is_some_and(|it| it.kind == Kind::Tables);
        if path.split_once("__").is_some_and(|(table, _)| is_in_tables(table)) {
            let what = "several endpoints can be configured, so their settings are in the file only";
            self.warnings.push(format!("environment variable {variable} is not used: {what}"));
            return;
        }
        match self.schema.nearest_variable(path) {
            Some(meant) => {
                let meant = meant.variable();
                self.warnings.push(format!("environment variable {variable} is not used: did you mean {meant}?"));
            }
            None if path.contains("__") => {
                self.warnings.push(format!("environment variable {variable} is not used: there is no such setting"));
            }
            None => self.unused.push(format!("environment variable {variable} is not a setting, and not used")),
        }
    }

    /// What is wrong with a name that is not known in `table`, and which name the user probably meant.
    fn unknown(&self, table: Option<&'static str>, name: &str, value: &DeValue<'_>) -> String {
        let is_table =
            value.is_table() || value.as_array().is_some_and(|all| all.iter().any(|it| it.get_ref().is_table()));
        let written = |setting: &Setting| match (setting.table, setting.kind) {
            (_, Kind::Tables) => format!("[[{}]]", setting.name),
            (_, Kind::Table) => format!("[{}]", setting.name),
            (inside, _) if inside == table => setting.name.to_owned(),
            (Some(other), _) => format!("{} below {}", setting.name, self.heading(other)),
            (None, _) => format!("{} at the top of the file, above the first table", setting.name),
        };
        let namesakes = self.schema.namesakes(name);
        let is_here = namesakes.iter().any(|setting| setting.table == table);
        let namesakes: Vec<_> = namesakes.into_iter().map(&written).collect();
        if !namesakes.is_empty() && !is_here && !is_table {
            let place =
                table.map_or("at the top of the file".to_owned(), |table| format!("below {}", self.heading(table)));
            return format!("there is no such setting {place}: write {}", namesakes.join(" or "));
        }
        match self.schema.nearest(table, name) {
            Some(meant) if !is_table || matches!(meant.kind, Kind::Table | Kind::Tables) => {
                format!(
                    "there is no such {}: did you mean {}?",
                    if is_table { "table" } else { "setting" },
                    written(meant)
                )
            }
            _ if is_table => format!(
                "there is no such table: there are {}",
                self.schema.tables().map(written).collect::<Vec<_>>().join(", ")
            ),
            _ => {
                let place =
                    table.map_or("at the top of the file".to_owned(), |table| format!("below {}", self.heading(table)));
                format!("there is no such setting {place}: there are {}", self.schema.names(table))
            }
        }
    }

    fn heading(&self, table: &str) -> String {
        match self.schema.get(None, table).map(|setting| setting.kind) {
            Some(Kind::Tables) => format!("[[{table}]]"),
            _ => format!("[{table}]"),
        }
    }

    fn finish(mut self) -> Reading {
        self.faults.sort_by_key(|(at, _)| *at);
        let left_out = self.faults.len().saturating_sub(MAX_FAULTS);
        self.faults.truncate(MAX_FAULTS);
        let mut faults: Vec<_> = self
            .faults
            .iter()
            .map(|(at, what)| match self.text.get(..*at) {
                Some(before) => format!("{}, {}: {what}", self.name, place(before)),
                None => what.clone(),
            })
            .map(ConfigFault::from)
            .collect();
        if left_out > 0 {
            faults.push(format!("{}: {left_out} more faults are not listed", self.name).into());
        }
        let config = Self::config(self.sound).unwrap_or_else(|error| {
            faults.push(format!("{}: {error}", self.name).into());
            Config::default()
        });
        // The settings without a fault are checked together now, so that one run shows all faults. A setting with a
        // fault is not checked by its default.
        if !faults.is_empty()
            && self.is_whole
            && let Err(error) = config.validate()
        {
            let is_known = |fault: &ConfigFault| self.faulty.iter().any(|name| is_about(fault.sentence(), name));
            faults.extend(error.into_faults().into_iter().filter(|fault| !is_known(fault)));
        }
        Reading { config, warnings: self.warnings, unused: self.unused, faults }
    }

    fn config(sound: Table) -> Result<Config, String> {
        Config::deserialize(sound).map_err(|error| one_line(error.message()))
    }
}

/// The line and the column behind `before`.
fn place(before: &str) -> String {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

fn to_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            // Too large for any setting: a float, which no setting takes.
            Err(_) => Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(date) => Value::Datetime(*date),
        DeValue::Array(all) => Value::Array(all.iter().map(|one| to_value(one.get_ref())).collect()),
        DeValue::Table(all) => {
            Value::Table(all.iter().map(|(key, one)| (key.get_ref().to_string(), to_value(one.get_ref()))).collect())
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
        let places = [
            "line 1, column 1: workerz:",
            "line 2, column 11: workers:",
            "line 4, column 21: limits.handshake_timeout:",
            "line 5, column 2: nonsense:",
            "line 9, column 8: endpoint.wire:",
        ];
        for (fault, place) in faults.iter().zip(places) {
            assert!(fault.sentence().starts_with(&format!("webws.toml, {place}")), "{place} {faults:#?}");
        }
    }

    #[test]
    fn faults_of_reading_and_of_checking_come_together_in_the_order_of_lines() {
        let error = read(
            "drain_time = 3\nworkers = 5000\n[redis]\nconnect_timeout = \"0s\"\n[[endpoint]]\npath = 1\n\
             ping_interval = \"soon\"\nidle_timeout = \"2s\"\n[[endpoint]]\n[limits]\nretry_after = 1\n",
            &[("WEBWS_PACE", "1")],
        )
        .unwrap_err();
        let faults: Vec<_> = error.faults().collect();
        let places = ["line 1,", "line 6,", "line 7,", "line 11,", "WEBWS_PACE", "workers", "redis.connect"];
        assert_eq!(faults.len(), places.len(), "{faults:#?}");
        for (fault, place) in faults.iter().zip(places) {
            assert!(fault.sentence().contains(place), "{place} {faults:#?}");
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
    fn a_wrong_variable_is_named_and_one_that_is_empty_or_no_setting_passed_over() {
        let error = read("", &[("WEBWS_WORKERS", "many"), ("WEBWS_PACE", "5")]).unwrap_err().to_string();
        assert!(error.contains("WEBWS_WORKERS: expected a whole number"), "{error}");
        assert!(error.contains("WEBWS_PACE: a duration needs a unit"), "{error}");
        let all = Schema::new();
        let all = all.tables().map(Setting::variable).chain(["WEBWS_WORKERS", "WEBWS_LISTEN"].map(str::to_owned));
        let empty: Vec<_> = all.map(|name| (name, String::new())).collect();
        assert_eq!(Config::read("", "", empty).unwrap(), Config::default());
        let kubernetes = [("WEBWS_PORT", "tcp://10.0.0.1:80"), ("WEBWS_SERVICE_HOST", "10.0.0.1")];
        let near = [("WEBWS_WORKERZ", "2"), ("WEBWS_HANDOVER", "7")];
        let environment = kubernetes.into_iter().chain(near).map(|(name, value)| (name.to_owned(), value.to_owned()));
        let reading = examine("", "", environment);
        assert_eq!((reading.config, reading.faults.len()), (Config::default(), 0));
        assert_eq!(
            (reading.unused.len(), reading.warnings.len()),
            (2, 1),
            "{:?} {:?}",
            reading.unused,
            reading.warnings
        );
    }

    #[test]
    fn a_byte_order_mark_and_line_ends_of_windows_change_nothing() {
        let text = "\u{feff}workers = 2\r\n[redis]\r\nusername = \"a\"\r\n";
        let config = read(text, &[]).unwrap();
        assert_eq!((config.workers, config.redis.username.as_deref()), (2, Some("a")));
        let error = read("\u{feff}workers = 2\r\npace = x\r\n", &[]).unwrap_err().to_string();
        assert!(error.starts_with("webws.toml, line 2, column 8: pace:"), "{error}");
    }

    #[test]
    fn a_variable_is_read_as_what_its_setting_takes() {
        let config = read(
            "[[endpoint]]\nmax_message_bytes = \"64KiB\"\nping_interval = 0\nidle_timeout = 0\n",
            &[
                ("WEBWS_REDIS__USERNAME", "5"),
                ("WEBWS_LIMITS__MAX_UNPUBLISHED_BYTES", "64kB"),
                ("WEBWS_CONTROL", "/run/true"),
                ("WEBWS_PACE", "0"),
                ("WEBWS_LISTEN", "unix:/a, tcp:127.0.0.1:1,"),
            ],
        )
        .unwrap();
        assert_eq!(config.redis.username.as_deref(), Some("5"));
        assert_eq!(config.limits.max_unpublished_bytes, 64_000);
        assert_eq!((config.pace, config.listen.len()), (Duration::ZERO, 2));
        assert_eq!(config.endpoints[0].max_message_bytes, 65_536);
        assert_eq!(config.endpoints[0].ping_interval, Duration::ZERO);
    }

    #[test]
    fn every_size_takes_a_unit_and_every_duration_says_that_it_needs_one() {
        for setting in Schema::new().settings() {
            let (table, name) = (setting.table.unwrap_or_default(), setting.name);
            let header = if table == "endpoint" { format!("[[{table}]]") } else { format!("[{table}]") };
            let text = |value: &str| match setting.table {
                None => format!("{name} = {value}\n"),
                Some(_) => format!("{header}\n{name} = {value}\n"),
            };
            match setting.kind {
                Kind::Bytes => drop(read(&text("\"64KiB\""), &[]).unwrap()),
                Kind::Duration => {
                    let error = read(&text("3"), &[]).unwrap_err().to_string();
                    assert!(error.contains("needs a unit: write \"3s\""), "{error}");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn effective_settings_can_be_read_again() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(read(&text, &[]).unwrap(), Config::default());
    }
}
