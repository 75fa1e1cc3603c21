//! Checks what types alone cannot express, and reports all faults at once. May not enter: the form of a value
//! (`check.rs`), the system's state.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::{
    BinaryPolicy, BrokerConfig, ChannelRule, ClaimsSource, Config, ConfigError, EndpointConfig, HistoryConfig, Limits,
    Listen, NoOriginPolicy, NotUtf8Policy, RateConfig, RedisAddress, RedisUrl, WireName, channel_names,
    could_become_reserved, reserved,
};

/// `sockaddr_un.sun_path` holds 108 bytes with its NUL, unix(7).
const MAX_UNIX_PATH_BYTES: usize = 107;

/// Less than that, and handshakes alone would use up the budget.
const MIN_MEMORY: usize = 16_000_000;
const MAX_MEMORY: usize = 1_000_000_000_000;

/// Shorter than `proxy_read_timeout` in the shipped nginx location.
const MAX_POLL: Duration = Duration::from_secs(60);

impl Config {
    /// Checks the settings against each other. A fault begins with the setting it is about, or with two settings and
    /// "and" between them, or with an endpoint; then comes ": " or " = " (`is_about` reads that).
    ///
    /// # Errors
    /// All faults, one sentence each.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let unix = self.listen.iter().filter_map(|listen| match listen {
            Listen::Unix(path) | Listen::Handoff(path) => Some(("listen", path)),
            Listen::Tcp(_) => None,
        });
        for (setting, path) in unix.chain(self.control.as_ref().map(|path| ("control", path))) {
            check_socket_path(&mut faults, setting, path);
        }
        if self.workers > 1024 {
            faults.push(format!("workers = {} is out of range: write 0 (one per core) to 1024", self.workers));
        }
        if self.pace > Duration::from_secs(1) {
            faults.push(format!(
                "pace = \"{}\" is out of range: write at most 1s",
                humantime::format_duration(self.pace)
            ));
        }
        check_broker(&mut faults, self);
        check_sharded(&mut faults, self);
        let redis = &self.redis;
        for (name, value) in [
            ("redis.connect_timeout", redis.connect_timeout),
            ("redis.response_timeout", redis.response_timeout),
            ("redis.subscribe_timeout", redis.subscribe_timeout),
            ("redis.max_reconnect_delay", redis.max_reconnect_delay),
            ("limits.handshake_timeout", self.limits.handshake_timeout),
        ] {
            needs_time(&mut faults, name, value);
        }
        if redis.certificate_file.is_some() != redis.key_file.is_some() {
            faults.push("redis.certificate_file and redis.key_file: set both or neither".to_owned());
        }
        if redis.pinned_certificate_file.is_some() && redis.ca_file.is_some() {
            faults.push("redis.pinned_certificate_file and redis.ca_file: write one of the two".to_owned());
        }
        check_limits(&mut faults, &self.limits);
        let mut addresses = HashSet::new();
        for listen in self.listen.iter().map(ToString::to_string) {
            // One file is one socket.
            if !addresses.insert(listen.replacen("handoff:", "unix:", 1)) {
                faults.push(format!("listen: {listen} occurs twice"));
            }
        }
        if self.endpoints.is_empty() {
            faults.push("no endpoint is configured: leave [[endpoint]] out for /webws, or write one".to_owned());
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            for earlier in self.endpoints.iter().take(index) {
                if earlier.path == endpoint.path {
                    faults.push(format!("endpoint {}: two endpoints have this path", endpoint.path));
                }
            }
            check_endpoint(&mut faults, endpoint);
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new(faults)) }
    }
}

/// Whether a fault that [`Config::validate`] found is about that setting, outside of endpoints.
pub(super) fn is_about(fault: &str, setting: &str) -> bool {
    let end = [": ", " = "].iter().filter_map(|mark| fault.find(mark)).min();
    let subject = end.and_then(|end| fault.get(..end)).unwrap_or_default();
    // An endpoint's path may read as anything. A table with a fault is left out, so none of its settings is checked.
    !subject.starts_with("endpoint ") && subject.split(" and ").any(|name| name == setting)
}

fn check_limits(faults: &mut Vec<String>, limits: &Limits) {
    needs_bytes(faults, "limits.max_unpublished_bytes", limits.max_unpublished_bytes);
    needs_bytes(faults, "limits.max_history_bytes", limits.max_history_bytes);
    if !(limits.memory == 0 || (MIN_MEMORY..=MAX_MEMORY).contains(&limits.memory)) {
        faults.push(format!(
            "limits.memory = {} is out of range: write \"16MB\" to \"1000GB\", or 0 for half of what the machine has",
            limits.memory
        ));
    }
    match limits.max_handshakes {
        1..=1_000_000 => {}
        other => faults.push(format!("limits.max_handshakes = {other} is out of range: write 1 to 1000000")),
    }
}

fn check_socket_path(faults: &mut Vec<String>, setting: &str, path: &Path) {
    let (length, path) = (path.as_os_str().len(), path.display());
    if length > MAX_UNIX_PATH_BYTES {
        faults.push(format!(
            "{setting}: the path {path} has {length} bytes, and a Unix socket's at most {MAX_UNIX_PATH_BYTES}: choose \
             a shorter one, as /run/webws/webws.sock"
        ));
    }
}

fn check_broker(faults: &mut Vec<String>, config: &Config) {
    let servers = match &config.broker {
        BrokerConfig::Memory => return,
        BrokerConfig::Redis(servers) => servers,
    };
    if servers.is_empty() {
        faults.push("broker: no server is named".to_owned());
    }
    if is_cluster(&config.broker) && servers.len() > 1 {
        faults.push("broker: a cluster spreads the channels itself, so write no second address".to_owned());
    }
}

fn is_cluster(broker: &BrokerConfig) -> bool {
    let is_cluster = |server: &RedisUrl| matches!(server.address, RedisAddress::Cluster { .. });
    matches!(broker, BrokerConfig::Redis(servers) if servers.iter().any(is_cluster))
}

/// A channel's name decides whether it is sharded, because publishers know only the name.
fn check_sharded(faults: &mut Vec<String>, config: &Config) {
    let (sharded, plain): (Vec<_>, Vec<_>) = config.endpoints.iter().partition(|endpoint| endpoint.sharded);
    for EndpointConfig { path, prefix, .. } in sharded {
        if !is_cluster(&config.broker) {
            faults.push(format!(
                "broker: endpoint {path} has sharded = true, which needs redis+cluster:// or rediss+cluster://"
            ));
        }
        let overlaps = |other: &&&EndpointConfig| other.prefix.starts_with(prefix) || prefix.starts_with(&other.prefix);
        if let Some(other) = plain.iter().find(overlaps) {
            faults.push(format!(
                "endpoint {path}: it is sharded and endpoint {} is not, but channels could belong to both: give them \
                 prefixes of which none begins with the other",
                other.path
            ));
        }
    }
}

fn check_endpoint(faults: &mut Vec<String>, endpoint: &EndpointConfig) {
    let at = |setting: &str| format!("endpoint {}: {setting}", endpoint.path);
    let path = endpoint.path.as_str();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"?#%".contains(&byte);
    if !path.starts_with('/') || !path.bytes().all(is_plain) {
        faults.push(at("path must start with '/' and have no blanks, '?', '#' or '%', as in path = \"/webws\""));
    }
    check_names(faults, endpoint);
    check_plain_only(faults, endpoint);
    let has_claims = endpoint.claims != ClaimsSource::None;
    if endpoint.no_origin == NoOriginPolicy::Refuse && endpoint.origins.is_empty() && !has_claims {
        faults.push(at("no_origin = \"refuse\" needs origins: write the origins of your pages"));
    }
    if let Some(rate) = &endpoint.rate {
        check_rate(faults, &at("rate"), rate, endpoint.max_message_bytes);
    }
    check_token(faults, endpoint);
    if let Some(history) = &endpoint.history {
        check_history(faults, &at("history"), history);
    }
    if !endpoint.subscribe && endpoint.wire == WireName::Sse {
        faults.push(at("wire = \"sse\" needs subscribe = true: its clients only receive"));
    }
    if !endpoint.subscribe && !endpoint.publish {
        faults.push(at("neither subscribe nor publish is set, so its clients could do nothing"));
    }
    for (name, value) in [
        ("max_message_bytes", endpoint.max_message_bytes),
        ("max_queue_bytes", endpoint.max_queue_bytes),
        ("max_unpublished_bytes", endpoint.max_unpublished_bytes),
    ] {
        needs_bytes(faults, &at(name), value);
    }
    for (name, value) in [("stall_timeout", endpoint.stall_timeout), ("publish_timeout", endpoint.publish_timeout)] {
        needs_time(faults, &at(name), value);
    }
    if endpoint.poll_timeout.is_zero() || endpoint.poll_timeout > MAX_POLL {
        let value = humantime::format_duration(endpoint.poll_timeout);
        faults.push(at(&format!(
            "poll_timeout = \"{value}\" is out of range: write more than 0s and at most 60s, because nginx as shipped ends \
             a request that is silent for 65s"
        )));
    }
    let (ping, idle) = (endpoint.ping_interval, endpoint.idle_timeout);
    if !idle.is_zero() && (ping.is_zero() || idle <= ping) {
        faults.push(at(
            "idle_timeout must be longer than ping_interval; without pings (0s) it must be 0s as well, because a silent \
             client may be alive",
        ));
    }
}

fn check_rate(faults: &mut Vec<String>, at: &str, rate: &RateConfig, longest: usize) {
    let RateConfig { messages, bytes, .. } = rate;
    if !(1..=1_000_000).contains(messages) {
        faults.push(format!("{at}: messages = {messages} is out of range: write 1 to 1000000"));
    }
    if *bytes < longest {
        faults.push(format!(
            "{at}: bytes = {bytes} is less than the longest message, max_message_bytes = {longest}: write that or more"
        ));
    }
}

fn check_token(faults: &mut Vec<String>, endpoint: &EndpointConfig) {
    let mut fault = |text: &str| faults.push(format!("endpoint {}: {text}", endpoint.path));
    let token = match (endpoint.claims, &endpoint.token) {
        (ClaimsSource::Token, Some(token)) => token,
        (ClaimsSource::Token, None) => {
            return fault("claims = \"token\" needs token = { keys = [\"/etc/webws/token-keys\"] }");
        }
        (_, Some(_)) => return fault("token is of no use without claims = \"token\""),
        (_, None) => return,
    };
    if token.keys.is_empty() {
        fault("token: keys is empty: write a file with a key at least");
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !token.cookie.bytes().all(is_token) {
        fault("token: cookie is no name of a cookie (letters, digits, '-', '.', '_')");
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !token.query.bytes().all(is_plain) || (token.query == endpoint.argument && !token.query.is_empty()) {
        fault("token: query is no name of an argument of its own (letters, digits, '-', '.', '_')");
    }
}

fn check_history(faults: &mut Vec<String>, at: &str, history: &HistoryConfig) {
    let HistoryConfig { messages, age, bytes } = history;
    if !(1..=1_000_000).contains(messages) {
        faults.push(format!("{at}: messages = {messages} is out of range: write 1 to 1000000"));
    }
    if *age < Duration::from_secs(1) || *age > Duration::from_secs(86_400) {
        let age = humantime::format_duration(*age);
        faults.push(format!("{at}: age = \"{age}\" is out of range: write 1s to one day"));
    }
    if !(1_000..=1 << 30).contains(bytes) {
        faults.push(format!("{at}: bytes = {bytes} is out of range: write \"1kB\" to \"1GiB\""));
    }
}

/// The rules for names of channels.
fn check_names(faults: &mut Vec<String>, endpoint: &EndpointConfig) {
    let path = endpoint.path.as_str();
    let at = |what: &str| format!("endpoint {path}: {what}");
    if endpoint.prefix.is_empty() && !endpoint.allow_empty_prefix {
        faults.push(at("prefix is empty, so that clients could name every channel of this Redis: write one, or \
             allow_empty_prefix = true if that is meant"));
    }
    if let Some((beginning, whose)) = reserved(endpoint.prefix.as_bytes()) {
        faults.push(at(&format!("prefix begins with \"{beginning}\", and these channels are {whose}: choose another")));
    }
    if let Some((beginning, whose)) = could_become_reserved(&endpoint.prefix) {
        faults.push(at(&format!(
            "prefix {:?} is the beginning of \"{beginning}\", and these channels are {whose}: choose another",
            endpoint.prefix
        )));
    }
    if let Some(fault) = channel_names::fault(&endpoint.channel_characters) {
        faults.push(at(&format!("channel_characters: {fault}")));
    }
    if endpoint.channel == ChannelRule::Path && path.ends_with('/') {
        faults.push(at("path must not end with '/' when channel = \"path\": '/NAME' is added"));
    }
    if endpoint.channel != ChannelRule::Path && endpoint.argument.is_empty() {
        faults.push(at("argument is empty"));
    }
    // A name comes in the request's head, which has at most 32 kB.
    if !(1..=32 << 10).contains(&endpoint.max_channel_bytes) {
        let setting = format!("max_channel_bytes = {}", endpoint.max_channel_bytes);
        faults.push(at(&format!("{setting} is out of range: write 1 to 32768")));
    }
}

/// Settings that the contract of the `lua` wire fixes, or that mean nothing without WebSockets.
fn check_plain_only(faults: &mut Vec<String>, endpoint: &EndpointConfig) {
    let EndpointConfig { path, subprotocols, .. } = endpoint;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    for (index, name) in subprotocols.iter().enumerate() {
        if name.is_empty() || !name.bytes().all(is_token) {
            faults.push(format!(
                "endpoint {path}: subprotocols: '{name}' is not a token (letters, digits, '-', '.', '_')"
            ));
        } else if subprotocols.iter().take(index).any(|earlier| earlier == name) {
            faults.push(format!("endpoint {path}: subprotocols: '{name}' is listed twice"));
        }
    }
    let why = match endpoint.wire {
        WireName::Plain => return,
        WireName::Lua => "the lua wire does as the Lua handler did",
        WireName::Sse => "there are no WebSockets here",
    };
    for (setting, is_default) in [
        ("subprotocols", subprotocols.is_empty()),
        ("binary = \"publish\"", endpoint.binary == BinaryPolicy::Close),
        ("not_utf8 = \"replace\"", endpoint.not_utf8 == NotUtf8Policy::Binary || endpoint.wire == WireName::Sse),
    ] {
        if !is_default {
            faults.push(format!("endpoint {path}: {setting} needs wire = \"plain\": {why}"));
        }
    }
}

fn needs_time(faults: &mut Vec<String>, name: &str, value: Duration) {
    if value.is_zero() || value > Duration::from_secs(86_400) {
        let value = humantime::format_duration(value);
        faults.push(format!("{name} = \"{value}\" is out of range: write more than 0s and at most one day"));
    }
}

fn needs_bytes(faults: &mut Vec<String>, name: &str, value: usize) {
    if value == 0 || value > 1 << 30 {
        faults.push(format!("{name} = {value} is out of range: write 1 byte to \"1GiB\""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_fault_is_about_the_settings_that_it_begins_with() {
        for (fault, setting, expected) in [
            ("pace = \"2s\" is out of range: write at most 1s", "pace", true),
            ("listen: the path /run/pace/workers = 3: x has 108 bytes", "pace", false),
            ("listen: the path /run/pace/workers = 3: x has 108 bytes", "listen", true),
            ("redis.pinned_certificate_file and redis.ca_file: write one of the two", "redis.ca_file", true),
            ("redis.pinned_certificate_file and redis.ca_file: write one of the two", "redis.certificate_file", false),
            ("endpoint and pace: two endpoints have this path", "pace", false),
            ("limits.max_handshakes = 0 is out of range: write 1 to 1000000", "max_handshakes", false),
        ] {
            assert_eq!(is_about(fault, setting), expected, "{setting} in {fault}");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let mut config = Config { workers: 5000, ..Config::default() };
        config.listen = vec![Listen::Unix(format!("/{}", "x".repeat(120)).into())];
        config.limits.handshake_timeout = Duration::ZERO;
        let first = config.endpoints.first_mut().unwrap();
        first.idle_timeout = Duration::from_secs(1);
        first.max_message_bytes = 0;
        config.endpoints.push(EndpointConfig { publish: false, subscribe: false, ..EndpointConfig::default() });
        let error = config.validate().unwrap_err();
        assert_eq!(error.faults().count(), 7, "{error}");
    }

    #[test]
    fn sharded_channels_need_a_cluster_and_a_prefix_of_their_own() {
        let live = EndpointConfig { path: "/live".to_owned(), sharded: true, ..EndpointConfig::default() };
        let mut config = Config { endpoints: vec![live], ..Config::default() };
        assert_eq!(config.validate().unwrap_err().faults().count(), 1);
        config.broker = "redis+cluster://a:1".parse().unwrap();
        config.validate().unwrap();
        config.endpoints.push(EndpointConfig::default());
        assert!(config.validate().unwrap_err().to_string().contains("could belong to both"));
        config.endpoints.first_mut().unwrap().prefix = "live:".to_owned();
        config.validate().unwrap();
        config.broker = "redis+cluster://a:1 redis://b:1".parse().unwrap();
        assert_eq!(config.validate().unwrap_err().faults().count(), 1);
    }

    #[test]
    fn an_empty_prefix_is_asked_for_by_name_and_service_channels_are_refused() {
        let mut config = Config::default();
        let mut faults = |prefix: &str, allowed| {
            let first = config.endpoints.first_mut().unwrap();
            (first.prefix, first.allow_empty_prefix) = (prefix.to_owned(), allowed);
            config.validate().map_err(|error| error.to_string()).err().unwrap_or_default()
        };
        assert_eq!(faults("chat:", false), "");
        assert!(faults("", false).contains("allow_empty_prefix = true"));
        assert_eq!(faults("", true), "");
        for prefix in [
            "webws:",
            "webws:probe:",
            "__keyspace@0__:",
            "__keyevent@",
            "__redis__:",
            "__sentinel__:",
            "w",
            "webws",
            "__",
            "__key",
        ] {
            assert!(faults(prefix, true).contains("choose another"), "{prefix}");
        }
    }

    #[test]
    fn a_path_that_no_unix_socket_can_have_is_refused_for_each_socket() {
        let long = format!("/{}", "x".repeat(107));
        let config =
            Config { listen: vec![Listen::Unix(long.clone().into())], control: Some(long.into()), ..Config::default() };
        let error = config.validate().unwrap_err();
        let settings: Vec<_> = error.faults().map(|fault| fault.sentence().split(':').next().unwrap()).collect();
        assert_eq!(settings, ["listen", "control"], "{error}");
        assert!(error.to_string().contains("has 108 bytes"), "{error}");
    }

    #[test]
    fn a_pinned_certificate_takes_the_place_of_authorities() {
        let mut config = Config::default();
        config.redis.pinned_certificate_file = Some("/a.pem".into());
        config.validate().unwrap();
        config.redis.ca_file = Some("/b.pem".into());
        assert!(config.validate().unwrap_err().to_string().contains("write one of the two"));
    }

    #[test]
    fn what_would_hide_or_fail_later_is_named() {
        let mut config = Config::default();
        config.limits.max_handshakes = usize::MAX;
        config.listen = vec!["unix:/a".parse().unwrap(), "unix:/a".parse().unwrap()];
        let news = |path: &str, channel| EndpointConfig { path: path.to_owned(), channel, ..EndpointConfig::default() };
        config.endpoints = vec![news("/n", ChannelRule::Path), news("/n", ChannelRule::Json)];
        assert_eq!(config.validate().unwrap_err().faults().count(), 3);
    }

    #[test]
    fn what_the_lua_wire_decides_cannot_be_set_there() {
        let mut endpoint = EndpointConfig {
            subprotocols: vec!["a".to_owned(), "a".to_owned(), "b,c".to_owned(), String::new()],
            binary: BinaryPolicy::Publish,
            not_utf8: NotUtf8Policy::Replace,
            max_channel_bytes: 0,
            ..EndpointConfig::default()
        };
        let faults = |endpoint: &EndpointConfig| {
            let config = Config { endpoints: vec![endpoint.clone()], ..Config::default() };
            config.validate().map_or_else(|error| error.faults().count(), |()| 0)
        };
        assert_eq!(faults(&endpoint), 7);
        endpoint.wire = WireName::Sse;
        assert_eq!(faults(&endpoint), 6);
        endpoint.wire = WireName::Plain;
        assert_eq!(faults(&endpoint), 4);
        endpoint.subprotocols.truncate(1);
        endpoint.max_channel_bytes = 32 << 10;
        assert_eq!(faults(&endpoint), 0);
        endpoint =
            EndpointConfig { wire: WireName::Sse, not_utf8: NotUtf8Policy::Replace, ..EndpointConfig::default() };
        assert_eq!(faults(&endpoint), 0);
        endpoint.subscribe = false;
        assert_eq!(faults(&endpoint), 1);
    }

    #[test]
    fn origins_are_checked_one_by_one_and_without_them_no_origin_is_required() {
        let read = |settings: &str| {
            let config = Config::read("f", &format!("[[endpoint]]\n{settings}"), [])?;
            config.validate().map(|()| config.endpoints[0].clone())
        };
        let all = "origins = [\"https://a.example\", \"https://*.b.example\", \"same-host\"]\nno_origin = \"refuse\"";
        let endpoint = read(all).unwrap();
        let config = Config { endpoints: vec![endpoint], ..Config::default() };
        assert_eq!((config.endpoints[0].origins.len(), config.endpoints[0].no_origin), (3, NoOriginPolicy::Refuse));
        let shown = toml::to_string(&config).unwrap();
        assert_eq!(Config::read("shown", &shown, []).unwrap(), config, "{shown}");
        for (wrong, why) in [
            (
                "origins = [\"same-host\", \"a.example\"]",
                "line 2, column 25: endpoint.origins: 'a.example' is not an origin",
            ),
            ("origins = \"same-host\"", "a list needs brackets"),
            ("no_origin = \"refuse\"", "needs origins"),
            ("origins = [\"same-host\"]\nno_origin = \"deny\"", "write \"auto\", \"allow\" or \"refuse\""),
        ] {
            let said = read(wrong).unwrap_err().to_string();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_history_has_bounds() {
        let read = |history: &str| {
            let config = Config::read("f", &format!("[[endpoint]]\nhistory = {history}"), [])?;
            config.validate().map(|()| config.endpoints[0].history.clone().unwrap())
        };
        let all = HistoryConfig { messages: 7, age: Duration::from_secs(60), bytes: 64_000 };
        assert_eq!(read("{ messages = 7, age = \"1m\", bytes = \"64kB\" }"), Ok(all.clone()));
        assert_eq!(read("{ bytes = 1000 }"), Ok(HistoryConfig { bytes: 1_000, ..HistoryConfig::default() }));
        assert_eq!(read("{}"), Ok(HistoryConfig::default()));
        let as_table = Config::read("f", "[[endpoint]]\n[endpoint.history]\nmessages = 7\nage = \"1m\"", []).unwrap();
        assert_eq!(as_table.endpoints[0].history, Some(all));
        let shown = toml::to_string(&as_table).unwrap();
        assert_eq!(Config::read("shown", &shown, []).unwrap(), as_table, "{shown}");
        for (wrong, why) in [
            ("{ messages = 0 }", "messages = 0 is out of range"),
            ("{ messages = 1000001 }", "out of range"),
            ("{ messages = -1 }", "-1"),
            ("{ age = \"500ms\" }", "age = \"500ms\" is out of range"),
            ("{ age = 5 }", "integer 5, expected a string"),
            ("{ bytes = \"999B\" }", "bytes = 999 is out of range"),
            ("{ bytes = \"64k\" }", "'64k' is not a size"),
            ("{ bytes = -5 }", "-5 is negative"),
            ("{ size = 5 }", "unknown field size"),
            ("200", "expected settings in braces, history = { … }, found the number 200"),
        ] {
            let said = read(wrong).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains("endpoint"), "{wrong}: {said}");
        }
    }
}
