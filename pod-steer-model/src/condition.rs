//! Conditions: what is wrong now and needs an operator, and which features a backend lacks. Pure.
#![forbid(unsafe_code)]

mod reason;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use reason::Reason;

/// Whether an operator has to do something about a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// An operator has to act, or clients are affected.
    Warning,
    /// The backend serves, and lacks a feature.
    Info,
}

/// What is wrong with something, or which feature it lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// The kind of condition, for programs.
    pub reason: Reason,
    /// That of the reason.
    pub severity: Severity,
    /// What is the case and why, for people; in one line.
    pub message: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

impl Condition {
    /// A condition, with what to do about it.
    pub fn new(reason: Reason, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { reason, severity: reason.severity(), message: message.into(), remedy: remedy.into() }
    }

    /// A condition that needs nothing done, or that ends without help.
    pub fn without_remedy(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, message, "")
    }
}

/// The message, and the remedy behind it.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// Conditions in one line, each with its remedy.
pub fn joined<'a>(conditions: impl IntoIterator<Item = &'a Condition>) -> String {
    conditions.into_iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_read_as_its_message_and_its_remedy() {
        let with = Condition::new(Reason::NoCgroup, "it has no cgroup of its own", "restart it");
        assert_eq!(with.to_string(), "it has no cgroup of its own; restart it");
        let without = Condition::without_remedy(Reason::ChangeRefused, "the map is full");
        assert_eq!(without.to_string(), "the map is full");
        assert_eq!(joined([&with, &without]), "it has no cgroup of its own; restart it; the map is full");
    }

    #[test]
    fn json_has_the_reason_and_its_severity() {
        let condition = Condition::without_remedy(Reason::PortWithoutListener, "it does not listen on 81");
        let json = serde_json::json!({
            "reason": "port-without-listener", "severity": "info", "message": "it does not listen on 81", "remedy": "",
        });
        assert_eq!(serde_json::to_value(&condition).unwrap(), json);
        assert_eq!(serde_json::from_value::<Condition>(json).unwrap(), condition);
    }
}
