//! Which Redis there is, for all workers: independent servers or a cluster, from the settings. May not enter: links.

use std::sync::Arc;

use super::cluster::{Cluster, Home};
use super::connect::Settings;
use super::credential::SystemdCredentials;
use super::error::SettingsError;
use super::known_node::KnownNode;
use crate::config::{Config, RedisAddress, RedisUrl};
use crate::placement::Placement;

/// What Redis there is, for all workers.
#[derive(Debug, Clone)]
pub(crate) struct Deployment(Kind);

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Independent servers over which channels are spread; one, mostly.
    Independent(Arc<[KnownNode]>),
    Cluster(Arc<Cluster>),
}

impl Deployment {
    /// What `config` says.
    ///
    /// # Errors
    /// A file that cannot be read, or a name that TLS cannot check.
    pub(crate) fn try_new(
        config: &Config,
        urls: &[RedisUrl],
        workers: usize,
        systemd: &SystemdCredentials,
    ) -> Result<Self, SettingsError> {
        let settings = |url| Settings::try_new(url, &config.redis, systemd).map(Arc::new);
        if let [url] = urls
            && let RedisAddress::Cluster { nodes, .. } = &url.address
        {
            let sharded = config.endpoints.iter().filter(|endpoint| endpoint.sharded);
            let sharded = sharded.map(|endpoint| endpoint.prefix.clone()).collect();
            let cluster = Cluster::new(settings(url)?, nodes.clone(), sharded, workers);
            return Ok(Self(Kind::Cluster(Arc::new(cluster))));
        }
        let known_node = |url| Ok(KnownNode::new(settings(url)?, workers));
        urls.iter().map(known_node).collect::<Result<_, _>>().map(Kind::Independent).map(Self)
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0
    }

    /// How many links so many workers have; in a cluster, of a size that is likely.
    pub(crate) fn links(&self, workers: usize) -> usize {
        let nodes = match &self.0 {
            Kind::Independent(known_nodes) => known_nodes.len(),
            Kind::Cluster(cluster) => cluster.likely_masters(),
        };
        2 * workers * nodes
    }

    /// Where the channels of a cluster are that are not sharded.
    pub(crate) fn homes(&self) -> Vec<Home> {
        match &self.0 {
            Kind::Independent(_) => Vec::new(),
            Kind::Cluster(cluster) => cluster.homes(),
        }
    }

    /// Keeps them where another process had them: the two must listen at the same nodes while one takes
    /// over from the other.
    pub(crate) fn inherit(&self, homes: Vec<Home>) {
        if let Kind::Cluster(cluster) = &self.0 {
            cluster.inherit(homes);
        }
    }

    /// How a worker's channels are spread over it.
    pub(crate) fn placement(&self) -> Placement {
        match &self.0 {
            Kind::Independent(known_nodes) => Placement::over(known_nodes.len()),
            Kind::Cluster(cluster) => Placement::in_cluster(cluster.sharded.clone()),
        }
    }
}
