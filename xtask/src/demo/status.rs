//! The part of `pod-steer status -o json` that the demo uses.

use anyhow::{Context, Result};
use serde_json::Value;

pub struct Status {
    backends: Vec<Backend>,
}

/// One server, as the daemon and the kernel see it.
#[derive(Clone)]
pub struct Backend {
    name: String,
    state: String,
    sockets: u64,
    /// Connections opened at this backend's listeners.
    opened: u64,
    /// Queued connections that moved to another backend's listener, and that moved here.
    pub moved_out: u64,
    moved_in: u64,
}

impl Status {
    pub fn parse(json: &str) -> Result<Self> {
        let status: Value = serde_json::from_str(json).context("`pod-steer status -o json` printed no JSON")?;
        let services = status["services"].as_array().context("status has no services")?;
        let backends = services.iter().filter_map(|service| service["backends"].as_array()).flatten();
        Ok(Self { backends: backends.map(Backend::from_json).collect() })
    }

    /// The backend with this name.
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.backends.iter().find(|backend| backend.name == name)
    }
}

impl Backend {
    fn from_json(json: &Value) -> Self {
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| json[key].as_u64().unwrap_or_default();
        Self {
            name: text("name"),
            state: text("state"),
            sockets: number("sockets"),
            opened: number("opened"),
            moved_out: number("moved_out"),
            moved_in: number("moved_in"),
        }
    }

    /// It gets new connections, or would if its version had a share of them.
    pub fn is_ready(&self) -> bool {
        ["ready", "standby"].contains(&self.state.as_str()) && self.sockets > 0
    }

    /// Connections that this backend got, by the kernel's count.
    pub fn got(&self) -> u64 {
        (self.opened + self.moved_in).saturating_sub(self.moved_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_understood() -> Result<()> {
        let json = r#"{"services": [{"name": "web", "backends": [
            {"name": "v1a", "state": "ready", "sockets": 1, "opened": 10, "moved_in": 2, "moved_out": 0},
            {"name": "v1b", "state": "exited", "sockets": 0, "opened": 10, "moved_in": 0, "moved_out": 2}]}]}"#;
        let status = Status::parse(json)?;
        let got = ["v1a", "v1b", "v1c"].map(|name| status.backend(name).map(|backend| backend.got()));
        assert_eq!(got, [Some(12), Some(8), None]);
        assert!(status.backend("v1a").is_some_and(Backend::is_ready));
        assert!(!status.backend("v1b").is_some_and(Backend::is_ready));
        Ok(())
    }
}
