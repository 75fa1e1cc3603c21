//! From a request's path and query to an endpoint and a channel.
//!
//! An [`Endpoint`] is a configured path with everything its sessions need to know.
//! May not enter: sockets, headers, subscriptions.

use std::borrow::Cow;

use bytes::Bytes;

use crate::config::{ChannelRule, EndpointConfig, WireName};
use crate::throttle::Throttle;
use crate::wire::{Wire, json};

/// The name of a Pub/Sub channel as the broker knows it: any bytes.
pub(crate) type Channel = Bytes;

/// A configured path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) config: EndpointConfig,
}

/// Why a request names no channel: what a client reads in the 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoChannel {
    #[error("the query does not name the channel, as ?channel=…")]
    Missing,
    #[error("the query has the channel argument twice")]
    Twice,
    #[error("the channel's name is not UTF-8")]
    NotUtf8,
    #[error("the channel's name is wrong: {0}")]
    NotAName(#[from] json::NotAName),
}

/// Numbers too long for a double share channels: worth a line, not one per handshake.
static LOST_PRECISION: Throttle = Throttle::per_minute();

impl Endpoint {
    pub(crate) fn new(config: EndpointConfig) -> Self {
        Self { config }
    }

    /// Whether a request for `path` belongs here.
    pub(crate) fn serves(&self, path: &str) -> bool {
        match self.config.channel {
            ChannelRule::Json | ChannelRule::Plain => path == self.config.path,
            ChannelRule::Path => self.segment(path).is_some(),
        }
    }

    fn segment<'a>(&self, path: &'a str) -> Option<&'a str> {
        let name = path.strip_prefix(self.config.path.as_str())?.strip_prefix('/')?;
        (!name.is_empty() && !name.contains('/')).then_some(name)
    }

    /// The channel that a request for `path?query` names, and how its payloads look.
    ///
    /// # Errors
    /// Why there is none, in words for the client.
    pub(crate) fn channel(&self, path: &str, query: &str) -> Result<(Channel, Wire), NoChannel> {
        let name = match self.config.channel {
            ChannelRule::Path => {
                let segment = self.segment(path).ok_or(NoChannel::Missing)?;
                let name = percent_encoding::percent_decode_str(segment).decode_utf8();
                name.map_err(|_| NoChannel::NotUtf8)?.into_owned()
            }
            ChannelRule::Plain => self.argument(query)?,
            ChannelRule::Json => {
                let name = json::parse_name(&self.argument(query)?)?;
                if name.lost_precision && LOST_PRECISION.allows() {
                    tracing::warn!(
                        endpoint = self.config.path,
                        "a client of {} names its channel by a number of 15 or more digits, which a double cannot tell \
                         from its neighbours: distinct ids share a channel; send the name as a JSON string",
                        self.config.path
                    );
                }
                name.text
            }
        };
        let prefix = self.config.prefix.as_str();
        let wire = match self.config.wire {
            WireName::Lua => Wire::Lua { name_at: prefix.len() },
            WireName::Plain => Wire::Plain,
        };
        Ok((Channel::from(format!("{prefix}{name}")), wire))
    }

    /// The value of our argument in `query`, decoded as nginx' Lua module does:
    /// `+` is a blank, a malformed `%` stays, names are decoded too.
    fn argument(&self, query: &str) -> Result<String, NoChannel> {
        let mut values = query
            .split('&')
            .map(|pair| pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value))))
            .filter(|(name, _)| *decode(name) == *self.config.argument.as_bytes());
        let (_, value) = values.next().ok_or(NoChannel::Missing)?;
        if values.next().is_some() {
            return Err(NoChannel::Twice);
        }
        let value = decode(value.ok_or(NoChannel::Missing)?).into_owned();
        String::from_utf8(value).map_err(|_| NoChannel::NotUtf8)
    }
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('+') {
        return percent_encoding::percent_decode_str(text).into();
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(config: EndpointConfig, path: &str, query: &str) -> Result<String, NoChannel> {
        let (channel, _) = Endpoint::new(config).channel(path, query)?;
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
            ("channel=5", "chat:5"),
        ] {
            assert_eq!(channel(EndpointConfig::default(), "/webws", query).as_deref(), Ok(expected), "{query}");
        }
    }

    #[test]
    fn a_query_without_one_channel_says_why() {
        let refused = |query| channel(EndpointConfig::default(), "/webws", query).unwrap_err();
        assert_eq!(refused(""), NoChannel::Missing);
        assert_eq!(refused("Channel=%22a%22"), NoChannel::Missing);
        assert_eq!(refused("channel"), NoChannel::Missing);
        assert_eq!(refused("channel=1&channel=1"), NoChannel::Twice);
        assert_eq!(refused("channel=%22%FF%22"), NoChannel::NotUtf8);
        assert!(matches!(refused("channel=zhang"), NoChannel::NotAName(_)));
    }

    #[test]
    fn a_plain_argument_and_a_path_segment_name_channels_too() {
        assert_eq!(channel(EndpointConfig::plain(), "/plain", "channel=zh%20ang").as_deref(), Ok("chat:zh ang"));
        let by_path = EndpointConfig { channel: ChannelRule::Path, ..EndpointConfig::default() };
        let endpoint = Endpoint::new(by_path.clone());
        assert!(endpoint.serves("/webws/a") && !endpoint.serves("/webws") && !endpoint.serves("/webws/a/b"));
        assert_eq!(channel(by_path, "/webws/zh%20ang", "").as_deref(), Ok("chat:zh ang"));
    }
}
