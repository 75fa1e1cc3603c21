//! The Redis servers of the settings, for all workers: independent servers or a cluster. May not enter: links.

use std::sync::Arc;

use super::cluster::{Cluster, Home};
use super::connect::Settings;
use super::credential::SystemdCredentials;
use super::error::SettingsError;
use super::known_node::KnownNode;
use super::replay::{self, ReplayError};
use crate::config::{Config, RedisAddress, RedisUrl, ReplayPolicy};
use crate::placement::Placement;

/// The Redis servers of the settings, for all workers.
#[derive(Debug, Clone)]
pub(crate) struct Deployment(Kind);

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Independent servers, over which channels are spread; usually one.
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
        let has_history = config.endpoints.iter().any(|endpoint| endpoint.history.is_some());
        let settings = |url| {
            Settings::try_new(url, &config.redis, systemd)
                .map(|settings| Arc::new(settings.with_replay(has_history, config.redis.replay)))
        };
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

    /// The number of links for this number of workers; in a cluster, for a likely size.
    pub(crate) fn links(&self, workers: usize) -> usize {
        let nodes = match &self.0 {
            Kind::Independent(known_nodes) => known_nodes.len(),
            Kind::Cluster(cluster) => cluster.likely_masters(),
        };
        2 * workers * nodes
    }

    /// The nodes of a cluster's channels that are not sharded.
    pub(crate) fn homes(&self) -> Vec<Home> {
        match &self.0 {
            Kind::Independent(_) => Vec::new(),
            Kind::Cluster(cluster) => cluster.homes(),
        }
    }

    /// Keeps these channels at the nodes where another process had them: during a hand-over, both processes must be
    /// subscribed at the same nodes.
    pub(crate) fn inherit(&self, homes: Vec<Home>) {
        if let Kind::Cluster(cluster) = &self.0 {
            cluster.inherit(homes);
        }
    }

    /// How far back each node's replication log reaches, a line each. Takes a second for each that has one.
    pub(crate) async fn replay_outlook(&self, policy: ReplayPolicy) -> Vec<String> {
        let known_nodes = match &self.0 {
            Kind::Independent(known_nodes) => known_nodes,
            Kind::Cluster(cluster) => {
                return vec![format!("{}: {}", cluster.server(), ReplayError::Cluster)];
            }
        };
        let mut lines = Vec::new();
        for known_node in known_nodes.iter() {
            let outlook = replay::outlook(&known_node.settings).await;
            lines.push(format!("{}: {}", known_node.server(), replay::sentence(&outlook, policy)));
        }
        lines
    }

    /// How a worker's channels are spread over the nodes.
    pub(crate) fn placement(&self) -> Placement {
        match &self.0 {
            Kind::Independent(known_nodes) => Placement::over(known_nodes.len()),
            Kind::Cluster(cluster) => Placement::in_cluster(cluster.sharded.clone()),
        }
    }
}
