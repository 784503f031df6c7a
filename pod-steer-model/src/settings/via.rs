//! The way from the ingress namespace to a backend's sockets. Pure.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// How the clients of a backend reach its sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// By its socket where that is in the ingress namespace, else by forwarding their packets to its own network namespace. In a pod, the
    /// ingress namespace is the pod's.
    #[default]
    Auto,
    /// By its socket. A backend in a network namespace of its own gets no clients, unless that is a pod.
    Socket,
    /// By forwarding their packets to its network namespace, if it has one of its own, even if that is a pod.
    Forward,
    /// The same, but by handing the packets over into the namespace, past the host's firewall and routing.
    Peer,
}

impl Via {
    /// The value of a label.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "socket" => Ok(Self::Socket),
            "forward" => Ok(Self::Forward),
            "peer" => Ok(Self::Peer),
            _ => Err("it is unknown; use auto, socket, forward or peer".to_owned()),
        }
    }

    /// As [`Self::parse`] reads it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Socket => "socket",
            Self::Forward => "forward",
            Self::Peer => "peer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_read_as_it_is_written() {
        for via in [Via::Auto, Via::Socket, Via::Forward, Via::Peer] {
            assert_eq!(Via::parse(via.word()), Ok(via));
            assert_eq!(serde_json::to_value(via).unwrap(), via.word());
        }
        for wrong in ["", "Forward", "nat", "peer "] {
            assert!(Via::parse(wrong).unwrap_err().contains("auto, socket, forward or peer"), "{wrong}");
        }
    }
}
