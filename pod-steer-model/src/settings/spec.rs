//! What a backend is to serve, as its labels or a request say. Pure.
#![forbid(unsafe_code)]

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::GivenOptions;
use crate::{check::CheckSpec, ports::PortMap};

/// What a container asks for: to be a backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the service.
    pub service: String,
    /// Which version of the service the container is.
    pub version: String,
    /// The container's share of new connections relative to the other backends'; 0 is none.
    pub weight: u32,
    /// Ports of the service and where the container listens for them.
    pub ports: Vec<PortMap>,
    /// Which of these ports were written as a range: their places in the list.
    #[serde(default)]
    pub ranges: Vec<Range<usize>>,
    /// The options of the service that it gives.
    #[serde(flatten)]
    pub options: GivenOptions,
    /// The health check; nothing: as configured.
    #[serde(default)]
    pub check: Option<CheckSpec>,
}
