//! Where the broker is: `memory`, `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `rediss+sentinel://`,
//! `redis+cluster://` or `rediss+cluster://`. May not enter: connections.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{ConfigError, address_fault};

/// The default ports of Redis and Sentinel.
const REDIS_PORT: u16 = 6_379;
const SENTINEL_PORT: u16 = 26_379;

/// Which broker joins the sessions. Parsed from `memory` or one or more URLs.
///
/// ```
/// use webws::{BrokerConfig, RedisAddress};
///
/// let broker: BrokerConfig = "redis://web:secret@10.0.0.7 redis://10.0.0.8:6380".parse()?;
/// let BrokerConfig::Redis(servers) = &broker else { panic!("not Redis") };
/// assert_eq!(servers[1].address(), &RedisAddress::Tcp("10.0.0.8".to_owned(), 6380));
/// assert!(!broker.to_string().contains("secret"));
/// # Ok::<(), webws::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum BrokerConfig {
    /// The embedded broker: this process only, nothing to install.
    Memory,
    /// Redis, or a server that speaks its protocol: one server, or several independent ones that share the
    /// channels. Producers must place channels by the same rule, which is in the README.
    Redis(Vec<RedisUrl>),
}

/// The address of a Redis server, and the login. Parsed as a part of [`BrokerConfig`]. `Display` and `Debug` mask the
/// user as well, because a password without its colon looks like a user.
#[derive(Clone)]
pub struct RedisUrl {
    pub(crate) address: RedisAddress,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<SecretString>,
    pub(crate) database: Option<String>,
}

impl RedisUrl {
    /// The server's address; for Sentinels and clusters, the addresses that tell the server's.
    pub fn address(&self) -> &RedisAddress {
        &self.address
    }
}

/// The address of a Redis server, of Sentinels, or of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedisAddress {
    /// `redis://HOST:PORT`
    Tcp(String, u16),
    /// `rediss://HOST:PORT`
    Tls(String, u16),
    /// `unix:///PATH`
    Unix(PathBuf),
    /// `redis+sentinel://HOST:PORT,HOST:PORT/MASTER` or `rediss+sentinel://…`.
    Sentinel {
        /// The Sentinels.
        sentinels: Vec<(String, u16)>,
        /// The name of the master that they watch.
        master: String,
        /// Whether links to Sentinels and master use TLS.
        tls: bool,
    },
    /// `redis+cluster://HOST:PORT,HOST:PORT` or `rediss+cluster://…`: some of a cluster's nodes, which
    /// name all others.
    Cluster {
        /// Some of its nodes.
        nodes: Vec<(String, u16)>,
        /// Whether links to the nodes use TLS.
        tls: bool,
    },
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self::Redis(vec![RedisUrl::default()])
    }
}

impl Default for RedisUrl {
    /// The Redis of this machine.
    fn default() -> Self {
        let address = RedisAddress::Tcp("127.0.0.1".to_owned(), REDIS_PORT);
        Self { address, username: None, password: None, database: None }
    }
}

impl FromStr for BrokerConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let read = |part| parse(part).map_err(|what| address_fault::explain(text, part, &what));
        let urls: Result<Vec<_>, _> = text.split_whitespace().map(read).collect();
        let urls =
            urls.and_then(|urls| if urls.is_empty() { Err(address_fault::explain(text, "", "")) } else { Ok(urls) });
        urls.map(Self::Redis).map_err(|what| {
            // The message does not repeat the text, which may hold a password.
            ConfigError::new(vec![format!(
                "the broker's address is wrong: {what} (addresses are \"memory\", redis://HOST:PORT, \
                 rediss://HOST:PORT, unix:///PATH or redis+sentinel://HOST:PORT,HOST:PORT/MASTER (rediss+sentinel:// \
                 for TLS), with USER:PASSWORD@ before HOST, several of these separated by blanks; or \
                 redis+cluster://HOST:PORT,HOST:PORT, rediss+cluster:// for TLS)"
            )])
        })
    }
}

fn parse_sentinel(rest: &str, tls: bool) -> Result<RedisUrl, String> {
    let (sentinels, master, url) = parse_several(rest, SENTINEL_PORT)?;
    if master.is_empty() || master.contains('/') {
        return Err("it does not name the master, as in redis+sentinel://HOST:26379/mymaster".to_owned());
    }
    Ok(RedisUrl { address: RedisAddress::Sentinel { sentinels, master, tls }, ..url })
}

fn parse_cluster(rest: &str, tls: bool) -> Result<RedisUrl, String> {
    let (nodes, path, url) = parse_several(rest, REDIS_PORT)?;
    if !path.is_empty() {
        return Err("nothing may follow the nodes of a cluster, which has no databases".to_owned());
    }
    Ok(RedisUrl { address: RedisAddress::Cluster { nodes, tls }, ..url })
}

/// Several hosts, the path after them, and the URL of the first host for login and database.
type Several = (Vec<(String, u16)>, String, RedisUrl);

/// Reads `USER:PASSWORD@HOST:PORT,HOST:PORT/PATH`.
fn parse_several(rest: &str, default_port: u16) -> Result<Several, String> {
    let (login, rest) = rest.rsplit_once('@').map_or(("", rest), |(login, rest)| (login, rest));
    let (places, path) = rest.split_once('/').unwrap_or((rest, ""));
    let at = if login.is_empty() { String::new() } else { format!("{login}@") };
    let mut all = Vec::new();
    let mut first = None;
    for place in places.split(',') {
        if place.is_empty() {
            return Err("an address is empty: HOST:PORT,HOST:PORT".to_owned());
        }
        let url = parse(&format!("redis://{at}{place}"))?;
        let has_port = place.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':');
        match &url.address {
            RedisAddress::Tcp(host, port) => all.push((host.clone(), if has_port { *port } else { default_port })),
            _ => return Err(format!("'{place}' is not HOST:PORT")),
        }
        first.get_or_insert(url);
    }
    Ok((all, path.to_owned(), first.ok_or("it names no host")?))
}

fn parse(text: &str) -> Result<RedisUrl, String> {
    for (scheme, tls) in [("redis", false), ("rediss", true)] {
        let Some(rest) = text.strip_prefix(scheme) else { continue };
        if let Some(rest) = rest.strip_prefix("+sentinel://") {
            return parse_sentinel(rest, tls);
        }
        if let Some(rest) = rest.strip_prefix("+cluster://") {
            return parse_cluster(rest, tls);
        }
    }
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    if !["redis", "rediss", "unix", "redis+unix"].contains(&scheme) {
        return Err("its scheme is not known".to_owned());
    }
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let decoded = |text: &str| {
        percent_decode_str(text).decode_utf8().map(Into::<String>::into).map_err(|_| "it is not UTF-8".to_owned())
    };
    let argument = |names: [&str; 2]| {
        url.query_pairs().find(|(name, _)| names.contains(&name.as_ref())).map(|(_, value)| value.into_owned())
    };
    let path = decoded(url.path())?;
    let host = || {
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        Ok::<_, String>((host.trim_matches(['[', ']']).to_owned(), url.port().unwrap_or(REDIS_PORT)))
    };
    let (address, database) = match url.scheme() {
        scheme @ ("redis" | "rediss") => {
            let (host, port) = host()?;
            let address =
                if scheme == "rediss" { RedisAddress::Tls(host, port) } else { RedisAddress::Tcp(host, port) };
            (address, Some(path.trim_start_matches('/').to_owned()))
        }
        "unix" | "redis+unix" => {
            if !path.starts_with('/') || path.len() < 2 {
                return Err("a Unix socket needs its full path, as unix:///run/redis/redis.sock".to_owned());
            }
            (RedisAddress::Unix(path.into()), argument(["db", "database"]))
        }
        _ => return Err("its scheme is not known".to_owned()),
    };
    let username =
        Some(decoded(url.username())?).filter(|name| !name.is_empty()).or_else(|| argument(["user", "username"]));
    let password = url.password().map(decoded).transpose()?.or_else(|| argument(["pass", "password"]));
    if [&username, &password].into_iter().flatten().any(|part| address_fault::is_mask(part)) {
        return Err("its password is the mask that webws shows instead: write the password itself".to_owned());
    }
    Ok(RedisUrl {
        address,
        username,
        password: password.filter(|password| !password.is_empty()).map(Into::into),
        database: database.filter(|database| !database.is_empty()),
    })
}

impl fmt::Display for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(urls) => {
                let urls: Vec<_> = urls.iter().map(ToString::to_string).collect();
                f.write_str(&urls.join(" "))
            }
        }
    }
}

impl RedisUrl {
    /// The server's name in the marker's channel of a hand-over. Never logged, because the name contains the user. Two
    /// versions must make the same name, or a hand-over between them fails.
    pub(crate) fn mark_name(&self) -> String {
        let masked = if self.password.is_some() { ":***" } else { "" };
        let login = match &self.username {
            Some(username) => format!("{username}{masked}@"),
            None if self.password.is_some() => format!("{masked}@"),
            None => String::new(),
        };
        self.shown(&login)
    }

    /// The address with `login` in it.
    fn shown(&self, login: &str) -> String {
        let s = |tls: bool| if tls { "s" } else { "" };
        match &self.address {
            RedisAddress::Tcp(host, port) => format!("redis://{login}{}", place(host, *port)),
            RedisAddress::Tls(host, port) => format!("rediss://{login}{}", place(host, *port)),
            RedisAddress::Unix(path) => format!("unix://{login}{}", path.display()),
            RedisAddress::Sentinel { sentinels, master, tls } => {
                format!("redis{}+sentinel://{login}{}/{master}", s(*tls), places(sentinels))
            }
            RedisAddress::Cluster { nodes, tls } => format!("redis{}+cluster://{login}{}", s(*tls), places(nodes)),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = if self.username.is_some() || self.password.is_some() { "<hidden>@" } else { "" };
        f.write_str(&self.shown(login))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn places(all: &[(String, u16)]) -> String {
    let all: Vec<_> = all.iter().map(|(host, port)| place(host, *port)).collect();
    all.join(",")
}

impl PartialEq for RedisUrl {
    fn eq(&self, other: &Self) -> bool {
        let secret = |url: &Self| url.password.as_ref().map(|password| password.expose_secret().to_owned());
        self.address == other.address
            && self.username == other.username
            && self.database == other.database
            && secret(self) == secret(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RedisUrl {
        match text.parse() {
            Ok(BrokerConfig::Redis(mut urls)) if urls.len() == 1 => urls.remove(0),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_kind_of_address_is_read() {
        assert_eq!(url("redis://localhost").address, RedisAddress::Tcp("localhost".into(), 6379));
        assert_eq!(url("redis://[::1]:7000").address, RedisAddress::Tcp("::1".into(), 7000));
        assert_eq!(url("rediss://r.example:6380").address, RedisAddress::Tls("r.example".into(), 6380));
        assert_eq!(url("unix:///run/redis.sock").address, RedisAddress::Unix("/run/redis.sock".into()));
        assert_eq!(url("unix:///run/redis.sock?db=3").database.as_deref(), Some("3"));
        assert_eq!(url("redis://localhost/2").database.as_deref(), Some("2"));
    }

    #[test]
    fn sentinels_and_the_name_of_their_master_are_read() {
        let url = url("redis+sentinel://web:p%2Fw@s1,[::1]:7000,s3:1/main");
        let places = [("s1".to_owned(), 26_379), ("::1".to_owned(), 7000), ("s3".to_owned(), 1)];
        let (sentinels, master) = (places.to_vec(), "main".to_owned());
        assert_eq!(url.address, RedisAddress::Sentinel { sentinels, master, tls: false });
        assert_eq!(url.to_string(), "redis+sentinel://<hidden>@s1:26379,[::1]:7000,s3:1/main");
        let by_tls = self::url("rediss+sentinel://s1/main");
        assert!(matches!(by_tls.address, RedisAddress::Sentinel { tls: true, .. }));
        assert_eq!(by_tls.to_string(), "rediss+sentinel://s1:26379/main");
        for wrong in ["redis+sentinel://s1", "redis+sentinel:///main", "redis+sentinel://s1,:x/main"] {
            assert!(wrong.parse::<BrokerConfig>().unwrap_err().to_string().contains("/MASTER"), "{wrong}");
        }
    }

    #[test]
    fn some_nodes_of_a_cluster_are_read() {
        let parsed = url("rediss+cluster://web:pw@a,b:7000");
        let nodes = vec![("a".to_owned(), 6_379), ("b".to_owned(), 7_000)];
        assert_eq!(parsed.address, RedisAddress::Cluster { nodes, tls: true });
        assert_eq!(parsed.to_string(), "rediss+cluster://<hidden>@a:6379,b:7000");
        assert_eq!(url("redis+cluster://a:1").to_string(), "redis+cluster://a:1");
        assert!("redis+cluster://a:1/0".parse::<BrokerConfig>().is_err());
        assert!("redis+cluster://".parse::<BrokerConfig>().is_err());
    }

    #[test]
    fn several_servers_stand_in_one_text() {
        let broker: BrokerConfig = "redis://a:1  unix:///b".parse().unwrap();
        assert_eq!(broker, BrokerConfig::Redis(vec![url("redis://a:1"), url("unix:///b")]));
        assert_eq!(broker.to_string(), "redis://a:1 unix:///b");
        assert!("redis://a:1 b".parse::<BrokerConfig>().is_err() && " ".parse::<BrokerConfig>().is_err());
    }

    #[test]
    fn user_and_password_are_decoded_and_never_shown() {
        let url = url("redis://web%40ws:p%2Fw@localhost:1");
        assert_eq!(url.username.as_deref(), Some("web@ws"));
        assert_eq!(url.password.as_ref().map(|p| p.expose_secret()), Some("p/w"));
        let all = [
            "redis://web%40ws:p%2Fw@localhost:1",
            // A password without its colon is a user.
            "redis://p%2Fw@localhost:1",
            "rediss://p%2Fw@localhost:1",
            "redis+sentinel://p%2Fw@localhost:1/main",
            "redis+cluster://p%2Fw@localhost:1",
            "unix:///run/redis.sock?user=p%2Fw",
        ];
        for text in all {
            let url = self::url(text);
            let config = crate::config::Config { broker: text.parse().unwrap(), ..Default::default() };
            for shown in [url.to_string(), format!("{url:?}"), toml::to_string(&config).unwrap()] {
                assert!(shown.contains("<hidden>"), "{shown}");
                assert!(!shown.contains("p/w") && !shown.contains("p%2Fw") && !shown.contains("web@"), "{shown}");
            }
        }
    }

    #[test]
    fn the_name_at_which_processes_meet_stays_what_it_is() {
        for (text, name) in [
            ("redis://web:pw@h:1", "redis://web:***@h:1"),
            ("redis://:pw@h:1", "redis://:***@h:1"),
            ("redis://web@h:1", "redis://web@h:1"),
            ("rediss://h:1", "rediss://h:1"),
            ("unix:///s?user=web&pass=pw", "unix://web:***@/s"),
            ("redis+sentinel://h:1/m", "redis+sentinel://h:1/m"),
            ("rediss+cluster://:pw@h:1", "rediss+cluster://:***@h:1"),
        ] {
            assert_eq!(url(text).mark_name(), name);
        }
    }

    #[test]
    fn a_wrong_address_is_refused_without_repeating_it() {
        for wrong in ["redis:/secret", "http://secret", "unix://secret", "redis://", "secret"] {
            let error = wrong.parse::<BrokerConfig>().unwrap_err().to_string();
            assert!(error.contains("redis://HOST:PORT") && !error.contains("secret@"), "{error}");
        }
    }
}
