//! Who may do what: the users that are believed, and the keys of each endpoint, for one worker.
//!
//! May not enter: the form of claims (`claims.rs`), of tokens (`token.rs`) and of signatures (`signature.rs`).

use hyper::header::HeaderMap;

use super::claims;
use super::denied::Denied;
use super::key_file::{KeyFault, KeyFile};
use super::signature::ChannelKeys;
use super::token::Tokens;
use super::trust::TrustedUsers;
use crate::channel::Channel;
use crate::config::{ClaimsSource, Config, ConfigFault, EndpointConfig};
use crate::protocol::session::{Claims, Rights};

/// What decides about the requests of a worker.
#[derive(Debug)]
pub(crate) struct Access {
    trusted: TrustedUsers,
    /// The endpoints that have keys, by their paths.
    keys: Vec<(String, KeyFile<ChannelKeys>)>,
    /// The endpoints with `claims = "token"`.
    tokens: Vec<(String, Tokens)>,
}

impl Access {
    /// Reads all keys. A file that cannot be read now is read later; until then its endpoint refuses all clients.
    pub(crate) fn of(config: &Config) -> Self {
        let keys = key_files(config).map(|(endpoint, file)| (endpoint.path.clone(), file));
        let tokens = tokens(config).map(|(endpoint, tokens)| (endpoint.path.clone(), tokens));
        Self { trusted: TrustedUsers::of(config), keys: keys.collect(), tokens: tokens.collect() }
    }

    /// Checks the files that the settings name.
    pub(crate) fn check(config: &Config, faults: &mut Vec<ConfigFault>) {
        let failed = key_files(config).filter_map(|(endpoint, file)| Some((endpoint, file.fault()?)));
        faults.extend(failed.map(|(endpoint, fault)| fault_of(endpoint, "channel_keys_file", &fault)));
        for (endpoint, tokens) in tokens(config) {
            faults.extend(tokens.faults().map(|fault| fault_of(endpoint, "token", &fault)));
        }
    }

    pub(super) fn trusted(&self) -> &TrustedUsers {
        &self.trusted
    }

    /// The channel's name in what a request names: signed, if the endpoint has keys.
    ///
    /// # Errors
    /// The name is not signed with one of the keys.
    pub(super) fn name(&self, config: &EndpointConfig, named: String) -> Result<String, Denied> {
        if config.channel_keys_file.is_none() {
            return Ok(named);
        }
        let (_, file) = self.keys.iter().find(|(path, _)| *path == config.path).ok_or(Denied::Signature)?;
        file.read(|keys| keys.name(&named)).flatten().ok_or(Denied::Signature)
    }

    /// What claims allow on the channel that would be subscribed; `None` for all that the endpoint allows. `is_trusted`
    /// is asked if there are headers to believe.
    ///
    /// # Errors
    /// Why the client is refused.
    pub(super) fn permit(
        &self,
        config: &EndpointConfig,
        channel: &Channel,
        (headers, query): (&HeaderMap, &[u8]),
        is_trusted: impl FnOnce() -> bool,
    ) -> Result<Option<(Claims, Rights)>, Denied> {
        let name = channel.strip_prefix(config.prefix.as_bytes()).unwrap_or_default();
        let permitted = match config.claims {
            ClaimsSource::None => Ok(None),
            ClaimsSource::Headers => claims::permit(config, name, headers, is_trusted),
            ClaimsSource::Token => {
                let (_, tokens) = self.tokens.iter().find(|(path, _)| *path == config.path).ok_or(Denied::NoToken)?;
                match tokens.permit(config, name, headers, query) {
                    Ok(None) if config.claims_required => Err(Denied::NoToken),
                    permitted => permitted,
                }
            }
        };
        permitted.inspect_err(|denied| denied.log())
    }
}

fn key_files(config: &Config) -> impl Iterator<Item = (&EndpointConfig, KeyFile<ChannelKeys>)> {
    let file = |endpoint: &EndpointConfig| Some(KeyFile::new(endpoint.channel_keys_file.clone()?, ChannelKeys::parse));
    config.endpoints.iter().filter_map(move |endpoint| Some((endpoint, file(endpoint)?)))
}

fn tokens(config: &Config) -> impl Iterator<Item = (&EndpointConfig, Tokens)> {
    let with_tokens = config.endpoints.iter().filter(|endpoint| endpoint.claims == ClaimsSource::Token);
    with_tokens.filter_map(|endpoint| Some((endpoint, Tokens::new(endpoint.token.as_ref()?))))
}

fn fault_of(endpoint: &EndpointConfig, setting: &str, fault: &KeyFault) -> ConfigFault {
    format!("endpoint {}: {setting}: {fault}", endpoint.path).into()
}
