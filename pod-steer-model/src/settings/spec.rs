//! The declaration of a backend, from its labels or a request. Pure.
#![forbid(unsafe_code)]

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{GivenOptions, Via};
use crate::{check::CheckSpec, ports::PortMap};

/// The declaration of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the service.
    pub service: String,
    /// Which version of the service the container is.
    pub version: String,
    /// Its share of new connections, relative to the other backends; 0 for none.
    pub weight: u32,
    /// How its clients reach it.
    #[serde(default)]
    pub via: Via,
    /// Ports of the service and where the container listens for them.
    pub ports: Vec<PortMap>,
    /// The ranges among these ports, as positions in the list.
    #[serde(default)]
    pub ranges: Vec<Range<usize>>,
    /// The options of the service that it sets.
    #[serde(flatten)]
    pub options: GivenOptions,
    /// The health check; `None` for the configured one.
    #[serde(default)]
    pub check: Option<CheckSpec>,
}
