//! Who may do what: the users that are believed, and the keys of each endpoint, for one worker.
//!
//! May not enter: the form of claims (`claims.rs`) and of signatures (`signature.rs`).

use hyper::header::HeaderMap;

use super::claims;
use super::denied::Denied;
use super::key_file::{KeyFault, KeyFile};
use super::signature::ChannelKeys;
use super::trust::TrustedUsers;
use crate::channel::Channel;
use crate::config::{Config, ConfigFault, EndpointConfig};
use crate::protocol::session::{Claims, Rights};

/// What decides about the requests of a worker.
#[derive(Debug)]
pub(crate) struct Access {
    trusted: TrustedUsers,
    /// The endpoints that have keys, by their paths.
    keys: Vec<(String, KeyFile<ChannelKeys>)>,
}

impl Access {
    /// Reads all keys. A file that cannot be read now is read later; until then its endpoint refuses all clients.
    pub(crate) fn of(config: &Config) -> Self {
        let keys = key_files(config).map(|(endpoint, file)| (endpoint.path.clone(), file));
        Self { trusted: TrustedUsers::of(config), keys: keys.collect() }
    }

    /// Checks the files that the settings name.
    pub(crate) fn check(config: &Config, faults: &mut Vec<ConfigFault>) {
        let failed = key_files(config).filter_map(|(endpoint, file)| Some((endpoint, file.fault()?)));
        faults.extend(failed.map(|(endpoint, fault)| fault_of(endpoint, &fault)));
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
}

fn key_files(config: &Config) -> impl Iterator<Item = (&EndpointConfig, KeyFile<ChannelKeys>)> {
    let file = |endpoint: &EndpointConfig| Some(KeyFile::new(endpoint.channel_keys_file.clone()?, ChannelKeys::parse));
    config.endpoints.iter().filter_map(move |endpoint| Some((endpoint, file(endpoint)?)))
}

fn fault_of(endpoint: &EndpointConfig, fault: &KeyFault) -> ConfigFault {
    format!("endpoint {}: channel_keys_file: {fault}", endpoint.path).into()
}

/// What claims allow on the channel that would be subscribed; `None` for all that the endpoint allows. `is_trusted` is
/// asked if there are fields to believe.
///
/// # Errors
/// Why the client is refused.
pub(super) fn permit(
    config: &EndpointConfig,
    channel: &Channel,
    headers: &HeaderMap,
    is_trusted: impl FnOnce() -> bool,
) -> Result<Option<(Claims, Rights)>, Denied> {
    let name = channel.strip_prefix(config.prefix.as_bytes()).unwrap_or_default();
    claims::permit(config, name, headers, is_trusted)
}
