//! From a request's path and query to an endpoint and a channel.
//!
//! An [`Endpoint`] is a configured path with the settings of its sessions.
//! May not enter: sockets, headers, subscriptions.

use std::borrow::Cow;
use std::rc::Rc;

use crate::channel::Channel;
use crate::config::{ChannelRule, EndpointConfig, NotUtf8Policy, WireName, channel_names, reserved};
use crate::protocol::encoding::{Encoding, lua_channel};
use crate::throttle::Throttle;

/// A configured path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) config: EndpointConfig,
}

/// Why a request names no channel. The text is the body of the 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoChannel {
    #[error("the query does not name the channel, as ?channel=…")]
    Missing,
    #[error("the query has the channel argument twice (upper and lower case count as the same name)")]
    Twice,
    #[error("the query has the channel argument's name in another case")]
    Case,
    #[error("the query has the channel argument's name percent-encoded")]
    Encoded,
    #[error("the channel's name is longer than {0} bytes")]
    TooLong(usize),
    #[error("the channel's name is not UTF-8")]
    NotUtf8,
    #[error("the channel's name is wrong: {0}")]
    NotAName(#[from] lua_channel::NotAName),
    #[error("the channel's name has a character that names have not here (channel_characters)")]
    Character,
    #[error("this endpoint has no channel of that name (channels)")]
    NotAllowed,
    #[error("channels that begin with {0} cannot be joined: they are {1}")]
    Reserved(&'static str, &'static str),
}

/// Numbers that are too long for a double share channels: logged, but not for each handshake.
static LOST_PRECISION: Throttle = Throttle::per_minute();

impl Endpoint {
    pub(crate) fn new(config: EndpointConfig) -> Self {
        Self { config }
    }

    /// The endpoint that serves `path`: of several, the one with the longest path.
    pub(crate) fn serving<'a>(endpoints: &'a [Rc<Self>], path: &[u8]) -> Option<&'a Rc<Self>> {
        endpoints.iter().filter(|endpoint| endpoint.serves(path)).max_by_key(|endpoint| endpoint.config.path.len())
    }

    /// Whether nginx may read `path` as another endpoint's. nginx chooses a location, with its access rules, by the
    /// decoded path without dot segments and doubled slashes. Then `proxy_pass` without a path sends the original path.
    /// A path equal to the configured one is unambiguous.
    pub(crate) fn is_ambiguous(&self, endpoints: &[Rc<Self>], path: &[u8]) -> bool {
        if self.is_at(path) {
            return false;
        }
        let decoded: Vec<u8> = percent_encoding::percent_decode(path).collect();
        let slashes = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
        slashes(&decoded) != slashes(path)
            || decoded.windows(2).any(|pair| pair == b"//")
            || decoded.contains(&b'\\')
            || decoded.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b".."))
            || !Self::serving(endpoints, &decoded).is_some_and(|other| std::ptr::eq(&**other, self))
    }

    /// Whether `path` is the configured path itself, and not below it.
    pub(crate) fn is_at(&self, path: &[u8]) -> bool {
        path == self.config.path.as_bytes()
    }

    /// Whether this endpoint serves `path`: the configured path, or a path that continues it after a `/`, as nginx'
    /// `location /webws` serves `/webws/foo`. nginx also serves `/webwsfoo` there; webws refuses that path. So a
    /// mistyped path, or one whose endpoint was removed, does not join the channels of another endpoint.
    fn serves(&self, path: &[u8]) -> bool {
        match self.config.channel {
            ChannelRule::Json | ChannelRule::Plain => {
                let own = self.config.path.as_bytes();
                let below = path.strip_prefix(own.strip_suffix(b"/").unwrap_or(own));
                self.is_at(path) || below.is_some_and(|below| below.starts_with(b"/"))
            }
            ChannelRule::Path => self.segment(path).is_some(),
        }
    }

    fn segment<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let name = path.strip_prefix(self.config.path.as_bytes())?.strip_prefix(b"/")?;
        (!name.is_empty() && !name.contains(&b'/')).then_some(name)
    }

    /// What a request for `path?query` names, decoded: the channel's name without the prefix, or the signed name.
    ///
    /// # Errors
    /// Why the request names nothing.
    pub(crate) fn named(&self, path: &[u8], query: &[u8]) -> Result<String, NoChannel> {
        Ok(match self.config.channel {
            ChannelRule::Path => {
                let segment = self.segment(path).ok_or(NoChannel::Missing)?;
                let name = percent_encoding::percent_decode(segment).decode_utf8();
                name.map_err(|_| NoChannel::NotUtf8)?.into_owned()
            }
            ChannelRule::Plain => self.argument(query)?,
            ChannelRule::Json => {
                let name = lua_channel::parse_name(&self.argument(query)?)?;
                if name.lost_precision && LOST_PRECISION.allows() {
                    tracing::warn!(
                        endpoint = self.config.path,
                        "a client of {} names its channel by a number of 15 or more digits, which is rounded to a \
                         double, so that different numbers can share a channel: send the name as a JSON string",
                        self.config.path
                    );
                }
                name.text
            }
        })
    }

    /// The channel of that name, without the prefix, and its encoding.
    ///
    /// # Errors
    /// Why the endpoint has no such channel.
    pub(crate) fn channel_called(&self, name: &str) -> Result<(Channel, Encoding), NoChannel> {
        if name.len() > self.config.max_channel_bytes {
            return Err(NoChannel::TooLong(self.config.max_channel_bytes));
        }
        if !channel_names::has_only(&self.config.channel_characters, name) {
            return Err(NoChannel::Character);
        }
        if !channel_names::are_allowed(&self.config.channels, name) {
            return Err(NoChannel::NotAllowed);
        }
        let channel = format!("{}{name}", self.config.prefix);
        if let Some((beginning, whose)) = reserved(channel.as_bytes()) {
            return Err(NoChannel::Reserved(beginning, whose));
        }
        Ok((Channel::from(channel), self.encoding()))
    }

    fn encoding(&self) -> Encoding {
        match (self.config.wire, self.config.not_utf8) {
            (WireName::Lua, _) => {
                let name_at = u32::try_from(self.config.prefix.len());
                Encoding::Lua { name_at: name_at.expect("a prefix is shorter than 4 GB") }
            }
            (WireName::Plain, NotUtf8Policy::Binary) => Encoding::Plain,
            (WireName::Plain, NotUtf8Policy::Replace) => Encoding::PlainText,
            (WireName::Sse, _) => self.event_encoding(),
        }
    }

    /// The encoding of the endpoint's clients that asked for server-sent events.
    pub(crate) fn event_encoding(&self) -> Encoding {
        Encoding::Sse { not_utf8: self.config.not_utf8 }
    }

    /// The encoding of the endpoint's clients that poll.
    pub(crate) fn poll_encoding(&self) -> Encoding {
        Encoding::Poll { not_utf8: self.config.not_utf8 }
    }

    /// The value of the endpoint's argument in `query`, decoded as nginx' Lua module does: `+` is a blank, a malformed
    /// `%` stays, names are decoded too.
    ///
    /// A check in nginx reads `$arg_NAME`: the undecoded value of the first argument of that name, in any case. So a
    /// second argument is refused whatever its case, because nginx checked only the first. nginx does not recognise a
    /// percent-encoded name; the wire contract of the JSON rule still accepts it.
    fn argument(&self, query: &[u8]) -> Result<String, NoChannel> {
        let ours = self.config.argument.as_bytes();
        let mut named = query
            .split(|byte| *byte == b'&')
            .map(|pair| {
                let at = pair.iter().position(|byte| *byte == b'=');
                at.and_then(|at| pair.split_at_checked(at)).map_or((pair, None), |(n, v)| (n, v.get(1..)))
            })
            .filter(|(name, _)| decode(name).eq_ignore_ascii_case(ours));
        let (name, value) = named.next().ok_or(NoChannel::Missing)?;
        if named.next().is_some() {
            return Err(NoChannel::Twice);
        }
        if *decode(name) != *ours {
            return Err(NoChannel::Case);
        }
        if name != ours && self.config.channel == ChannelRule::Plain {
            return Err(NoChannel::Encoded);
        }
        let value = decode(value.ok_or(NoChannel::Missing)?).into_owned();
        String::from_utf8(value).map_err(|_| NoChannel::NotUtf8)
    }
}

fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'+') {
        return percent_encoding::percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_encoding::percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(config: EndpointConfig, path: &str, query: &str) -> Result<String, NoChannel> {
        let endpoint = Endpoint::new(config);
        let (channel, _) = endpoint.channel_called(&endpoint.named(path.as_bytes(), query.as_bytes())?)?;
        Ok(String::from_utf8_lossy(&channel).into_owned())
    }

    #[test]
    fn queries_are_decoded_as_the_original_did() {
        for (query, expected) in [
            ("channel=%22zhang%22", "chat:zhang"),
            ("a=1&%63hannel=\"a+b\"&b", "chat:a b"),
            ("channel=\"a%2Bb\"", "chat:a+b"),
            ("channel=\"a%zzb\"", "chat:a%zzb"),
            ("channel=\"a=b;c\"", "chat:a=b;c"),
            ("channel=\"<a>^`{|}\"", "chat:<a>^`{|}"),
            ("channel=\"\u{4e2d}\"", "chat:\u{4e2d}"),
            ("a=1;channel=2&channel=\"b\"", "chat:b"),
            ("?channel=1&channel=2", "chat:2"),
            ("channel=5", "chat:5"),
        ] {
            assert_eq!(channel(EndpointConfig::default(), "/webws", query).as_deref(), Ok(expected), "{query}");
        }
    }

    #[test]
    fn a_query_without_one_channel_says_why() {
        let refused = |query| channel(EndpointConfig::default(), "/webws", query).unwrap_err();
        assert_eq!(refused(""), NoChannel::Missing);
        assert_eq!(refused("channel"), NoChannel::Missing);
        assert_eq!(refused("a=1;channel=1"), NoChannel::Missing);
        assert_eq!(refused("channel=%22%FF%22"), NoChannel::NotUtf8);
        assert!(matches!(refused("channel=zhang"), NoChannel::NotAName(_)));
    }

    #[test]
    fn a_query_that_nginx_reads_in_another_way_is_refused() {
        let json = |query| channel(EndpointConfig::default(), "/webws", query);
        let plain = |query| channel(EndpointConfig::plain(), "/plain", query);
        for (query, why) in [
            ("channel=1&channel=1", NoChannel::Twice),
            ("CHANNEL=1&channel=2", NoChannel::Twice),
            ("channel=1&Channel=2", NoChannel::Twice),
            ("channel&channel=2", NoChannel::Twice),
            ("channel=&channel=2", NoChannel::Twice),
            ("%63hannel=1&channel=2", NoChannel::Twice),
            ("channel=1&%43HANNEL=2", NoChannel::Twice),
            ("Channel=1", NoChannel::Case),
            ("%43hannel=1", NoChannel::Case),
        ] {
            assert_eq!((json(query), plain(query)), (Err(why), Err(why)), "{query}");
        }
        assert_eq!(plain("%63hannel=1"), Err(NoChannel::Encoded));
        assert_eq!(json("%63hannel=1").as_deref(), Ok("chat:1"));
        // The names and values of other arguments do not matter.
        assert_eq!(plain("xchannel=1&channelx=2&a=\u{ff}%FF&channel=3").as_deref(), Ok("chat:3"));
    }

    #[test]
    fn a_name_has_its_limit_in_bytes_without_the_prefix() {
        let limit = |max| EndpointConfig { max_channel_bytes: max, ..EndpointConfig::default() };
        assert_eq!(channel(limit(3), "/webws", "channel=\"abc\"").as_deref(), Ok("chat:abc"));
        assert_eq!(channel(limit(3), "/webws", "channel=\"%C3%A4bc\""), Err(NoChannel::TooLong(3)));
        assert_eq!(channel(limit(3), "/webws", "channel=\"\\u0061bc\"").as_deref(), Ok("chat:abc"));
        let long = format!("channel=\"{}\"", "x".repeat(513));
        assert_eq!(channel(EndpointConfig::default(), "/webws", &long), Err(NoChannel::TooLong(512)));
    }

    #[test]
    fn an_endpoint_has_the_channels_that_its_rules_allow() {
        let rules = EndpointConfig::plain().with_channels(["news/*", "all"]).with_channel_characters("a-z/");
        let name = |name: &str| channel(rules.clone(), "/plain", &format!("channel={name}"));
        assert_eq!(name("news/sport").as_deref(), Ok("chat:news/sport"));
        assert_eq!(name("%6eews%2fa").as_deref(), Ok("chat:news/a"));
        for (wrong, why) in [
            ("news", NoChannel::NotAllowed),
            ("alls", NoChannel::NotAllowed),
            ("news/A", NoChannel::Character),
            ("news/%00", NoChannel::Character),
            ("news/%2A", NoChannel::Character),
        ] {
            assert_eq!(name(wrong), Err(why), "{wrong}");
        }
    }

    #[test]
    fn a_plain_argument_and_a_path_segment_name_channels_too() {
        assert_eq!(channel(EndpointConfig::plain(), "/plain", "channel=zh%20ang").as_deref(), Ok("chat:zh ang"));
        let by_path = EndpointConfig { channel: ChannelRule::Path, ..EndpointConfig::default() };
        assert_eq!(channel(by_path, "/webws/zh%20ang", "").as_deref(), Ok("chat:zh ang"));
    }

    #[test]
    fn a_path_belongs_to_the_endpoint_with_the_longest_path() {
        let at = |path: &str, channel| {
            let path = path.to_owned();
            Rc::new(Endpoint::new(EndpointConfig { path, channel, ..EndpointConfig::default() }))
        };
        let endpoints = [
            at("/webws", ChannelRule::Json),
            at("/webws/a/b", ChannelRule::Plain),
            at("/news", ChannelRule::Path),
            at("/news/all", ChannelRule::Json),
            at("/slash/", ChannelRule::Json),
        ];
        for (path, serving) in [
            ("/webws", Some("/webws")),
            ("/webws/", Some("/webws")),
            ("/webws/a", Some("/webws")),
            ("/webws/a/b", Some("/webws/a/b")),
            ("/webws/a/b/c", Some("/webws/a/b")),
            ("/webwsfoo", None),
            ("/Webws", None),
            ("/news", None),
            ("/news/", None),
            ("/news/sport", Some("/news")),
            ("/news/sport/x", None),
            ("/news/all", Some("/news/all")),
            ("/news/all/x", Some("/news/all")),
            ("/slash", None),
            ("/slash/x", Some("/slash/")),
            ("/", None),
        ] {
            let found = Endpoint::serving(&endpoints, path.as_bytes());
            assert_eq!(found.map(|endpoint| endpoint.config.path.as_str()), serving, "{path}");
        }
        let root = [at("/", ChannelRule::Json)];
        assert!(Endpoint::serving(&root, b"/any/thing").is_some());
    }

    #[test]
    fn a_path_that_nginx_reads_in_another_way_is_ambiguous() {
        let at = |path: &str, channel| {
            let path = path.to_owned();
            Rc::new(Endpoint::new(EndpointConfig { path, channel, ..EndpointConfig::default() }))
        };
        let endpoints = [
            at("/webws", ChannelRule::Json),
            at("/webws/admin", ChannelRule::Json),
            at("/odd/../one", ChannelRule::Json),
            at("/news", ChannelRule::Path),
        ];
        for (path, expected) in [
            ("/webws", false),
            ("/webws/", false),
            ("/webws/foo/...", false),
            ("/webws/a.b/..c/%41%zz", false),
            ("/odd/../one", false),
            ("/news/100%25%3F", false),
            ("/webws/.", true),
            ("/webws/../webws", true),
            ("/webws/%2e", true),
            ("/webws/.%2E/x", true),
            ("/webws//", true),
            ("/webws/a//b", true),
            ("/webws/admin/..%2ffoo", true),
            ("/webws/a%2Fb", true),
            ("/webws/a%5cb", true),
            ("/webws/a\\b", true),
            ("/webws/%61dmin", true),
            ("/odd/../one/x", true),
            ("/news/%2e%2e", true),
            ("/news/a%2fb", true),
        ] {
            let endpoint = Endpoint::serving(&endpoints, path.as_bytes()).unwrap();
            assert_eq!(endpoint.is_ambiguous(&endpoints, path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn service_channels_are_no_clients_whatever_the_prefix() {
        for (prefix, name) in [
            ("", "webws:probe:1"),
            ("", "__keyspace@0__:a"),
            ("w", "ebws:a"),
            ("__", "sentinel__:hello"),
            ("", "__redis__:invalidate"),
        ] {
            let config = EndpointConfig { prefix: prefix.to_owned(), ..EndpointConfig::plain() };
            let refused = channel(config, "/plain", &format!("channel={name}"));
            assert!(matches!(refused, Err(NoChannel::Reserved(..))), "{prefix}{name}: {refused:?}");
        }
        let config = EndpointConfig { prefix: String::new(), ..EndpointConfig::plain() };
        assert_eq!(channel(config.clone(), "/plain", "channel=zhang").as_deref(), Ok("zhang"));
        assert_eq!(channel(EndpointConfig::plain(), "/plain", "channel=webws:a").as_deref(), Ok("chat:webws:a"));
    }
}
