//! Builds the settings of an endpoint in a program: one method a setting. May not enter: what a setting means
//! (`endpoint.rs`).

use std::path::PathBuf;
use std::time::Duration;

use super::{
    BinaryPolicy, ChannelRule, ClaimsSource, EndpointConfig, GapPolicy, HistoryConfig, NoOriginPolicy, NotUtf8Policy,
    OriginRule, RateConfig, SlowPolicy, TokenConfig, WireName,
};

impl EndpointConfig {
    /// The endpoint at `path`, with the defaults of every other setting: those of the drop-in for the Lua handler.
    /// The methods `with_…` change one setting each.
    ///
    /// ```
    /// use std::time::Duration;
    /// use webws::{ChannelRule, Config, EndpointConfig, WireName};
    ///
    /// let news = EndpointConfig::new("/news")
    ///     .with_wire(WireName::Plain)
    ///     .with_channel(ChannelRule::Plain)
    ///     .with_prefix("news:")
    ///     .with_ping_interval(Duration::from_secs(20))
    ///     .subscribe_only();
    /// let mut config = Config::default();
    /// config.endpoints = vec![EndpointConfig::new("/webws"), news];
    /// config.validate()?;
    /// # Ok::<(), webws::ConfigError>(())
    /// ```
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// The second endpoint of the test page: `/plain?channel=zhang`, with unchanged payloads.
    pub fn plain() -> Self {
        Self::new("/plain").with_wire(WireName::Plain).with_channel(ChannelRule::Plain)
    }

    /// Sets [`argument`](EndpointConfig::argument).
    #[must_use]
    pub fn with_argument(self, argument: impl Into<String>) -> Self {
        Self { argument: argument.into(), ..self }
    }

    /// Sets [`prefix`](EndpointConfig::prefix).
    #[must_use]
    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self }
    }

    /// Sets [`subprotocols`](EndpointConfig::subprotocols).
    #[must_use]
    pub fn with_subprotocols<S: Into<String>>(self, subprotocols: impl IntoIterator<Item = S>) -> Self {
        Self { subprotocols: subprotocols.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets [`origins`](EndpointConfig::origins).
    #[must_use]
    pub fn with_origins(self, origins: impl IntoIterator<Item = OriginRule>) -> Self {
        Self { origins: origins.into_iter().collect(), ..self }
    }

    /// Sets [`rate`](EndpointConfig::rate).
    #[must_use]
    pub fn with_rate(self, rate: RateConfig) -> Self {
        Self { rate: Some(rate), ..self }
    }

    /// Sets [`history`](EndpointConfig::history).
    #[must_use]
    pub fn with_history(self, history: HistoryConfig) -> Self {
        Self { history: Some(history), ..self }
    }

    /// Sets [`channels`](EndpointConfig::channels).
    #[must_use]
    pub fn with_channels<S: Into<String>>(self, patterns: impl IntoIterator<Item = S>) -> Self {
        Self { channels: patterns.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets [`channel_characters`](EndpointConfig::channel_characters).
    #[must_use]
    pub fn with_channel_characters(self, class: impl Into<String>) -> Self {
        Self { channel_characters: class.into(), ..self }
    }

    /// Sets [`token`](EndpointConfig::token).
    #[must_use]
    pub fn with_token(self, token: TokenConfig) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Sets [`channel_keys_file`](EndpointConfig::channel_keys_file).
    #[must_use]
    pub fn with_channel_keys_file(self, path: impl Into<PathBuf>) -> Self {
        Self { channel_keys_file: Some(path.into()), ..self }
    }

    /// Clients only receive: webws answers a message from a client with close 1008.
    #[must_use]
    pub fn subscribe_only(self) -> Self {
        Self { subscribe: true, publish: false, ..self }
    }

    /// Clients only send: they receive no publication.
    #[must_use]
    pub fn publish_only(self) -> Self {
        Self { subscribe: false, publish: true, ..self }
    }

    /// An empty prefix: clients name any channel of that Redis, except those that Redis and webws use themselves.
    #[must_use]
    pub fn without_prefix(self) -> Self {
        Self { prefix: String::new(), allow_empty_prefix: true, ..self }
    }

    /// In a Redis Cluster, all channels with this prefix are sharded.
    #[must_use]
    pub fn sharded(self) -> Self {
        Self { sharded: true, ..self }
    }
}

/// One method per setting: `with_NAME(value)`.
macro_rules! setters {
    ($($method:ident: $field:ident, $kind:ty;)*) => {
        impl EndpointConfig {$(
            #[doc = concat!("Sets [`", stringify!($field), "`](EndpointConfig::", stringify!($field), ").")]
            #[must_use]
            pub fn $method(self, $field: $kind) -> Self {
                Self { $field, ..self }
            }
        )*}
    };
}

setters! {
    with_wire: wire, WireName;
    with_channel: channel, ChannelRule;
    with_max_channel_bytes: max_channel_bytes, usize;
    with_binary: binary, BinaryPolicy;
    with_not_utf8: not_utf8, NotUtf8Policy;
    with_on_slow: on_slow, SlowPolicy;
    with_no_origin: no_origin, NoOriginPolicy;
    with_claims: claims, ClaimsSource;
    with_claims_required: claims_required, bool;
    with_max_message_bytes: max_message_bytes, usize;
    with_ping_interval: ping_interval, Duration;
    with_poll_timeout: poll_timeout, Duration;
    with_idle_timeout: idle_timeout, Duration;
    with_max_queue_bytes: max_queue_bytes, usize;
    with_stall_timeout: stall_timeout, Duration;
    with_max_unpublished_bytes: max_unpublished_bytes, usize;
    with_publish_timeout: publish_timeout, Duration;
    with_on_gap: on_gap, GapPolicy;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builder_reaches_every_setting() {
        let built = EndpointConfig::new("/a")
            .with_wire(WireName::Plain)
            .with_channel(ChannelRule::Path)
            .with_argument("room")
            .without_prefix()
            .with_max_channel_bytes(1)
            .with_channels(["a*"])
            .with_channel_characters("a-z")
            .with_channel_keys_file("/k")
            .with_subprotocols(["v1"])
            .with_binary(BinaryPolicy::Publish)
            .with_not_utf8(NotUtf8Policy::Replace)
            .with_origins(["same-host".parse().unwrap()])
            .with_no_origin(NoOriginPolicy::Refuse)
            .with_claims(ClaimsSource::Headers)
            .with_claims_required(false)
            .with_token(TokenConfig::default())
            .with_max_message_bytes(2)
            .with_ping_interval(Duration::from_secs(3))
            .with_poll_timeout(Duration::from_secs(3))
            .with_idle_timeout(Duration::from_secs(4))
            .with_max_queue_bytes(5)
            .with_stall_timeout(Duration::from_secs(6))
            .with_max_unpublished_bytes(7)
            .with_publish_timeout(Duration::from_secs(8))
            .with_on_gap(GapPolicy::Close)
            .with_on_slow(SlowPolicy::Drop)
            .with_rate(RateConfig::default())
            .with_history(HistoryConfig::default())
            .publish_only()
            .sharded();
        let (built, default) = (settings(&built), settings(&EndpointConfig::default()));
        for (name, value) in &built {
            // `publish_only` leaves `publish` on.
            assert!(name == "publish" || default.get(name) != Some(value), "{name} is the default");
        }
        assert!(!EndpointConfig::new("/a").subscribe_only().publish);
    }

    fn settings(endpoint: &EndpointConfig) -> toml::Table {
        toml::Table::try_from(endpoint).unwrap()
    }
}
