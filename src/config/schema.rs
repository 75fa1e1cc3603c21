//! The settings, the kind of value that each takes, the variable of each, and the setting that a wrong name may have
//! meant.
//!
//! Names and kinds come from [`Config`] itself: serde tells the names of the fields, the defaults tell the kinds. A new
//! setting needs no line here. Names that other programs use are listed, to guess what was meant. May not enter: a list
//! of settings.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor, value};
use toml::Value;

use super::Config;

/// The kind of value that a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Count,
    Bytes,
    Flag,
    Duration,
    Text,
    List,
    /// Settings of a setting, in braces: `history = { … }`.
    Inline,
    /// A table of settings, `[limits]`.
    Table,
    /// Several tables of settings, `[[endpoint]]`.
    Tables,
}

/// A setting or a table of settings.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The setting's table; none at the top of the file.
    pub(super) table: Option<&'static str>,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// None when it is unset by default.
    pub(super) default: Option<Value>,
}

impl Setting {
    /// The setting's name with its table's, as in `limits.max_sessions`.
    pub(super) fn full_name(&self) -> String {
        full_name(self.table, self.name)
    }

    /// The environment variable for the setting.
    pub(super) fn variable(&self) -> String {
        format!("WEBWS_{}", self.full_name().replace('.', "__").to_ascii_uppercase())
    }
}

pub(super) fn full_name(table: Option<&str>, name: &str) -> String {
    table.map_or_else(|| name.to_owned(), |table| format!("{table}.{name}"))
}

/// All settings.
#[derive(Debug)]
pub(super) struct Schema(Vec<Setting>);

/// Names that other programs use for our settings.
const ALIASES: [(&str, &str); 27] = [
    ("url", "broker"),
    ("redis_url", "broker"),
    ("broker_url", "broker"),
    ("redis", "broker"),
    ("server", "broker"),
    ("host", "listen"),
    ("bind", "listen"),
    ("port", "listen"),
    ("address", "listen"),
    ("socket", "listen"),
    ("threads", "workers"),
    ("worker_processes", "workers"),
    ("group", "socket_group"),
    ("mode", "socket_mode"),
    ("control_socket", "control"),
    ("user", "redis.username"),
    ("password", "redis.password_file"),
    ("redis_password", "redis.password_file"),
    ("cafile", "redis.ca_file"),
    ("cert_file", "redis.certificate_file"),
    ("timeout", "redis.connect_timeout"),
    ("max_connections", "limits.max_sessions"),
    ("max_clients", "limits.max_sessions"),
    ("channel_prefix", "endpoint.prefix"),
    ("location", "endpoint.path"),
    ("max_message_size", "endpoint.max_message_bytes"),
    ("max_payload", "endpoint.max_message_bytes"),
];

impl Schema {
    pub(super) fn new() -> Self {
        let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
        let mut all = Vec::new();
        for name in fields(&[]) {
            let below = fields(&[name]);
            let default = defaults.get(*name);
            let (kind, inner) = match default {
                _ if below.is_empty() => (kind_of(name, default), None),
                Some(Value::Array(tables)) => (Kind::Tables, tables.first()),
                default => (Kind::Table, default),
            };
            all.push(Setting { table: None, name, kind, default: default.cloned() });
            for inner_name in below {
                let default = inner.and_then(|table| table.get(inner_name));
                let is_inline = !fields(&[name, inner_name]).is_empty();
                let kind = if is_inline { Kind::Inline } else { kind_of(inner_name, default) };
                all.push(Setting { table: Some(name), name: inner_name, kind, default: default.cloned() });
            }
        }
        Self(all)
    }

    pub(super) fn get(&self, table: Option<&str>, name: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.table == table && setting.name == name)
    }

    /// The names in a table, separated by commas.
    pub(super) fn names(&self, table: Option<&str>) -> String {
        let names: Vec<_> = self.0.iter().filter(|setting| setting.table == table).map(|it| it.name).collect();
        names.join(", ")
    }

    #[cfg(test)]
    pub(super) fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter()
    }

    /// The tables of settings.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter().filter(|setting| matches!(setting.kind, Kind::Table | Kind::Tables))
    }

    /// The settings called `name` in any table: the setting may be in the wrong place.
    pub(super) fn namesakes(&self, name: &str) -> Vec<&Setting> {
        self.0.iter().filter(|setting| plain(setting.name) == plain(name)).collect()
    }

    /// What `name` in `table` may have meant.
    pub(super) fn nearest(&self, table: Option<&str>, name: &str) -> Option<&Setting> {
        let wanted = plain(name);
        let near = |setting: &&Setting| {
            let distance = distance(&wanted, &plain(setting.name));
            (distance <= tolerance(&wanted)).then_some(distance)
        };
        let nearest = |of: &dyn Fn(&&Setting) -> bool| {
            let candidates = self.0.iter().filter(of).filter_map(|it| near(&it).map(|distance| (distance, it)));
            candidates.min_by_key(|(distance, _)| *distance)
        };
        if let Some((_, setting)) = nearest(&|setting| setting.table == table) {
            return Some(setting);
        }
        let alias = ALIASES.iter().find(|(alias, _)| plain(alias) == wanted);
        let meant = alias.and_then(|(_, meant)| self.0.iter().find(|setting| setting.full_name() == *meant));
        meant.or_else(|| nearest(&|_| true).map(|(_, setting)| setting))
    }

    /// The setting whose variable `WEBWS_…` is close to this one.
    pub(super) fn nearest_variable(&self, variable: &str) -> Option<&Setting> {
        let wanted = plain(variable);
        let tables = |table| self.get(None, table).is_some_and(|it| it.kind == Kind::Tables);
        let settings = || self.0.iter().filter(move |it| it.kind != Kind::Table && !it.table.is_some_and(tables));
        let near = settings().map(|it| (distance(&wanted, &plain(&it.full_name())), it));
        let near = near.filter(|(distance, _)| *distance <= tolerance(&wanted)).min_by_key(|(distance, _)| *distance);
        if let Some((_, setting)) = near {
            return Some(setting);
        }
        let only =
            |mut found: Vec<&'_ Setting>| if found.len() == 1 { found.pop().map(Setting::full_name) } else { None };
        let namesake = only(settings().filter(|it| plain(it.name) == wanted).collect());
        // Kubernetes sets WEBWS_PORT for a service named webws: no user made that mistake.
        let alias = ALIASES.iter().find(|(alias, _)| plain(alias) == wanted && !["port", "host"].contains(alias));
        let meant = namesake.or_else(|| alias.map(|(_, meant)| (*meant).to_owned()))?;
        settings().find(|setting| setting.full_name() == meant)
    }
}

fn kind_of(name: &str, default: Option<&Value>) -> Kind {
    match default {
        Some(Value::Integer(_)) if name.ends_with("_bytes") || name == "memory" => Kind::Bytes,
        Some(Value::Integer(_)) => Kind::Count,
        Some(Value::Boolean(_)) => Kind::Flag,
        Some(Value::Array(_)) => Kind::List,
        Some(Value::String(text)) if humantime::parse_duration(text).is_ok() => Kind::Duration,
        _ => Kind::Text,
    }
}

/// The name without separators and capitals, which people write differently: `drain-time`, `drainTime`.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-' | '.' | ' ')).map(|c| c.to_ascii_lowercase()).collect()
}

/// The maximum of mistakes in a name of that length.
fn tolerance(name: &str) -> usize {
    match name.len() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    }
}

/// The number of insertions, deletions, replacements and swaps of neighbours between `a` and `b` (optimal
/// string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut rows: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            let at = |i: usize, j: usize| rows.get(&(i, j)).copied().unwrap_or(usize::MAX / 2);
            let (Some(before_i), Some(before_j)) = (i.checked_sub(1), j.checked_sub(1)) else {
                rows.insert((i, j), i + j);
                continue;
            };
            let differs = usize::from(a.get(before_i) != b.get(before_j));
            let mut least = (at(before_i, j) + 1).min(at(i, before_j) + 1).min(at(before_i, before_j) + differs);
            if let (Some(i2), Some(j2)) = (i.checked_sub(2), j.checked_sub(2))
                && a.get(before_i) == b.get(j2)
                && a.get(i2) == b.get(before_j)
            {
                least = least.min(at(i2, j2) + 1);
            }
            rows.insert((i, j), least);
        }
    }
    rows.get(&(a.len(), b.len())).copied().unwrap_or(usize::MAX)
}

/// The names of the settings in `path`; none when `path` is no table.
fn fields(path: &[&'static str]) -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // Deserialization always fails: `Ask` has no values.
    drop(Config::deserialize(Ask { path, found: &mut found }));
    found
}

/// A deserializer without values. It records the fields that serde asks for.
struct Ask<'a> {
    path: &'a [&'static str],
    found: &'a mut &'static [&'static str],
}

impl<'de> Deserializer<'de> for Ask<'_> {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.path.is_empty() {
            *self.found = fields;
            return Err(Self::Error::custom("no value"));
        }
        visitor.visit_map(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_seq(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Ask<'_> {
    type Error = value::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some((first, rest)) = self.path.split_first() else { return Ok(None) };
        self.path = rest;
        let key: value::StrDeserializer<'_, Self::Error> = (*first).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(Ask { path: self.path, found: self.found })
    }
}

impl<'de> SeqAccess<'de> for Ask<'_> {
    type Error = value::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Self::Error> {
        seed.deserialize(Ask { path: self.path, found: self.found }).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_what_they_take_come_from_the_types() {
        let schema = Schema::new();
        for (table, name, kind) in [
            (None, "listen", Kind::List),
            (None, "workers", Kind::Count),
            (None, "socket_mode", Kind::Text),
            (None, "broker", Kind::Text),
            (None, "pace", Kind::Duration),
            (None, "control", Kind::Text),
            (None, "redis", Kind::Table),
            (None, "endpoint", Kind::Tables),
            (Some("redis"), "ca_file", Kind::Text),
            (Some("redis"), "connect_timeout", Kind::Duration),
            (Some("limits"), "max_sessions", Kind::Count),
            (Some("limits"), "max_unpublished_bytes", Kind::Bytes),
            (Some("endpoint"), "publish", Kind::Flag),
            (Some("endpoint"), "wire", Kind::Text),
            (Some("endpoint"), "history", Kind::Inline),
            (Some("endpoint"), "rate", Kind::Inline),
        ] {
            assert_eq!(schema.get(table, name).map(|setting| setting.kind), Some(kind), "{table:?} {name}");
        }
        assert!(schema.get(None, "max_sessions").is_none());
    }

    #[test]
    fn a_wrong_name_has_the_right_one_suggested() {
        let schema = Schema::new();
        for (table, wrong, right) in [
            (None, "workerz", Some("workers")),
            (None, "drain-time", Some("drain_time")),
            (None, "drainTime", Some("drain_time")),
            (None, "brokre", Some("broker")),
            (None, "endpoints", Some("endpoint")),
            (None, "url", Some("broker")),
            (Some("redis"), "password", Some("redis.password_file")),
            (Some("endpoint"), "max_message_size", Some("endpoint.max_message_bytes")),
            (Some("endpoint"), "nonsense", None),
            (None, "zzz", None),
        ] {
            assert_eq!(schema.nearest(table, wrong).map(Setting::full_name).as_deref(), right, "{wrong}");
        }
    }

    #[test]
    fn variables_of_kubernetes_are_near_to_nothing() {
        let schema = Schema::new();
        for (wrong, right) in [
            ("workerz", Some("WEBWS_WORKERS")),
            ("redis_username", Some("WEBWS_REDIS__USERNAME")),
            ("max_sessions", Some("WEBWS_LIMITS__MAX_SESSIONS")),
            ("redis_url", Some("WEBWS_BROKER")),
            ("port", None),
            ("host", None),
            ("service_host", None),
            ("service_port", None),
            ("service_port_http", None),
            ("port_80_tcp", None),
            ("port_80_tcp_addr", None),
            ("port_80_tcp_proto", None),
            ("redis_service_host", None),
            ("redis_port_6379_tcp_port", None),
        ] {
            assert_eq!(schema.nearest_variable(wrong).map(Setting::variable).as_deref(), right, "{wrong}");
        }
    }

    #[test]
    fn distances_count_mistakes() {
        for (a, b, mistakes) in
            [("", "", 0), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), mistakes, "{a} {b}");
        }
    }
}
