//! Errors in labels and flags.
#![forbid(unsafe_code)]

use std::fmt;

use super::PREFIX;
use crate::{
    condition::{Condition, Reason},
    near::distance,
    ports::PortsError,
    settings::{
        names::bare_or_quoted,
        reference::{label_keys, table_keys},
    },
    text::quoted,
};

/// An error in one label or flag: one line that names it, quotes its value, says why it is refused and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A label that begins with [`PREFIX`] and is not known.
    #[error("label {label} is unknown; {remedy}")]
    Unknown {
        /// The label, quoted.
        label: String,
        /// The label that was probably meant, or all known ones.
        remedy: String,
    },
    /// A key of the configuration that is not known.
    #[error("{key} is unknown; {remedy}")]
    UnknownKey {
        /// The key.
        key: String,
        /// The key that was probably meant, or all known ones.
        remedy: String,
    },
    /// A label that a managed container must have.
    #[error("{field} is missing; {remedy}")]
    Missing {
        /// The label.
        field: Field,
        /// The remedy.
        remedy: &'static str,
    },
    /// A value that the label cannot have.
    #[error("{field}={value} is refused: {wrong}")]
    Value {
        /// The label or flag.
        field: Field,
        /// Its value, quoted.
        value: String,
        /// The reason and the remedy.
        wrong: String,
    },
    /// An item of the list of ports.
    #[error("{field}={value} is refused: {source}")]
    Ports {
        /// The label or flag.
        field: Field,
        /// Its value, quoted.
        value: String,
        /// Which item and why.
        source: PortsError,
    },
}

impl LabelError {
    /// The label, flag or key, as the message names it.
    pub fn name(&self) -> String {
        match self {
            Self::Unknown { label: name, .. } | Self::UnknownKey { key: name, .. } => name.clone(),
            Self::Missing { field, .. } | Self::Value { field, .. } | Self::Ports { field, .. } => field.to_string(),
        }
    }

    /// The condition of a container with such a label.
    pub fn condition(&self) -> Condition {
        // A remedy stands behind the last semicolon.
        let split = |text: &str| match text.rsplit_once("; ") {
            Some((wrong, remedy)) => (wrong.to_owned(), remedy.to_owned()),
            None => (text.to_owned(), String::new()),
        };
        let (message, remedy) = match self {
            Self::Unknown { label, remedy } => (format!("label {label} is unknown"), remedy.clone()),
            Self::UnknownKey { key, remedy } => (format!("{key} is unknown"), remedy.clone()),
            Self::Missing { field, remedy } => (format!("{field} is missing"), (*remedy).to_owned()),
            Self::Value { field, value, wrong } => {
                let (wrong, remedy) = split(wrong);
                (format!("{field}={value} is refused: {wrong}"), remedy)
            }
            Self::Ports { field, value, source } => {
                let (wrong, remedy) = split(&source.to_string());
                (format!("{field}={value} is refused: {wrong}"), remedy)
            }
        };
        Condition::new(Reason::LabelsInvalid, message, remedy)
    }
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A label.
    Label,
    /// A flag of a command.
    Flag,
    /// The table of this service in the configuration.
    Table(String),
}

/// Displays a key by its name in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    key: &'static str,
    origin: Origin,
}

impl Field {
    pub(super) const fn new(key: &'static str, origin: Origin) -> Self {
        Self { key, origin }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Label => write!(f, "label {PREFIX}{}", self.key),
            Origin::Flag => write!(f, "--{}", self.key),
            Origin::Table(service) => f.write_str(&table_key(service, self.key)),
        }
    }
}

/// A key of the configuration, as TOML has it.
fn table_key(service: &str, key: &str) -> String {
    let service = bare_or_quoted(service);
    // The label `health` is the key `health.kind` of a table.
    let key = if key == "health" { "health.kind" } else { key };
    format!("service.{service}.{key}")
}

/// The error for an unknown key, with the closest known key if one is close.
pub(super) fn unknown(key: &str, origin: &Origin) -> LabelError {
    let name = |key: &str| match origin {
        Origin::Table(_) if key == "health" => "health.kind".to_owned(),
        Origin::Table(_) => key.to_owned(),
        _ => format!("{PREFIX}{key}"),
    };
    let known: Vec<&str> = match origin {
        Origin::Table(_) => table_keys().collect(),
        _ => label_keys().collect(),
    };
    let lower = key.to_ascii_lowercase();
    let nearest = known.iter().map(|known| (distance(&lower, known), *known)).min();
    let remedy = match nearest {
        // Up to a third of the letters wrong is a misspelling; more is another word.
        Some((wrong, known)) if wrong <= known.rsplit('.').next().unwrap_or(known).len() / 3 => {
            format!("did you mean {}?", name(known))
        }
        _ => {
            let known: Vec<String> = known.into_iter().filter(|key| !key.contains('.')).map(name).collect();
            format!("remove it, or use one of {} or one that begins with {}", known.join(", "), name("health."))
        }
    };
    match origin {
        Origin::Table(service) => LabelError::UnknownKey { key: table_key(service, key), remedy },
        _ => LabelError::Unknown { label: quoted(&format!("{PREFIX}{key}")), remedy },
    }
}
