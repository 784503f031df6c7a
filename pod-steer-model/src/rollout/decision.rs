//! What an operator has decided about a service, in the form in which it is stored and goes over the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Asleep;
use crate::ids::BackendId;

/// The decisions of a service's operator. The kernel keeps `revision`, so a starting daemon knows whether the last
/// decision is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Decision {
    /// Increases by one with every change of the other fields.
    pub revision: u32,
    /// The share of each version.
    pub traffic: Traffic,
    /// The parts that get no new connections.
    pub drained: BTreeSet<Part>,
    /// Whether new connections wait.
    pub paused: bool,
    /// When they are refused instead, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_until_ms: Option<i64>,
    /// Its containers are stopped until a client comes. It is paused too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asleep: Option<Asleep>,
}

/// The share of each version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Traffic {
    /// Shares by version, relative to each other. Without them, every backend counts by its own weight, whatever its
    /// version.
    pub weights: Option<BTreeMap<String, u32>>,
    /// Clients of these networks go to this version, whatever the weights are.
    #[schema(value_type = BTreeMap<String, String>)]
    pub from: BTreeMap<IpNet, String>,
}

impl Traffic {
    /// Whether a version gets new connections by it.
    pub fn has_share(&self, version: &str) -> bool {
        let by_weight =
            self.weights.as_ref().is_none_or(|weights| weights.get(version).is_some_and(|weight| *weight > 0));
        by_weight || self.from.values().any(|of_network| of_network == version)
    }

    /// Whether a version, and no other one, gets all new connections by it.
    pub fn is_all_of(&self, version: &str) -> bool {
        let has_all =
            |weights: &BTreeMap<String, u32>| weights.iter().all(|(of, weight)| (of == version) == (*weight > 0));
        self.from.is_empty()
            && self.weights.as_ref().is_some_and(|weights| weights.contains_key(version) && has_all(weights))
    }
}

/// A part of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "part", content = "name", rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    Service,
    /// One version.
    Version(String),
    /// One backend, by its id.
    Backend(BackendId),
}

/// What happens when a new version appears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// All versions share new connections.
    #[default]
    Balance,
    /// A new version takes over as soon as it is ready.
    Latest,
    /// A new version waits for `deploy` or `shift`.
    Manual,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balance => "balance",
            Self::Latest => "latest",
            Self::Manual => "manual",
        })
    }
}
