//! What is wrong with labels and flags, in words.
#![forbid(unsafe_code)]

use std::fmt;

use super::{KEYS, PREFIX};
use crate::ports::{PortsError, quoted};

/// What is wrong with one label or flag: a single line that names it, quotes its value, says why it is refused and
/// what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A label that begins with [`PREFIX`] and is not known.
    #[error("label {label} is unknown; {remedy}")]
    Unknown {
        /// The label, quoted.
        label: String,
        /// The label that was probably meant, or all there are.
        remedy: String,
    },
    /// A label that a managed container must have.
    #[error("{field} is missing; {remedy}")]
    Missing {
        /// The label.
        field: Field,
        /// What to write.
        remedy: &'static str,
    },
    /// A value that the label cannot have.
    #[error("{field}={value} is refused: {wrong}")]
    Value {
        /// The label or flag.
        field: Field,
        /// Its value, quoted.
        value: String,
        /// Why, and what to write instead.
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

/// Something that can be asked for, under the name that the one who asks gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    key: &'static str,
    is_flag: bool,
}

impl Field {
    pub(super) const fn new(key: &'static str, is_flag: bool) -> Self {
        Self { key, is_flag }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_flag { write!(f, "--{}", self.key) } else { write!(f, "label {PREFIX}{}", self.key) }
    }
}

/// An unknown key, with the known one that it is closest to if it is close to any.
pub(super) fn unknown(key: &str) -> LabelError {
    let lower = key.to_ascii_lowercase();
    let nearest = KEYS.map(|known| (distance(&lower, known), known)).into_iter().min();
    let remedy = match nearest {
        // A third of the letters wrong is a slip; more is another word.
        Some((wrong, known)) if wrong <= known.len() / 3 => format!("did you mean {PREFIX}{known}?"),
        _ => format!("remove it; the known ones are {}", KEYS.map(|known| format!("{PREFIX}{known}")).join(", ")),
    };
    LabelError::Unknown { label: quoted(&format!("{PREFIX}{key}")), remedy }
}

/// Edits that make one text of the other: a character more, less, another, or two neighbours exchanged.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // The difference in length alone is as many edits: what is far off is not worth a table.
    if a.len().abs_diff(b.len()) > 3 {
        return a.len().abs_diff(b.len());
    }
    let mut edits = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            edits[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = edits[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let best = replaced.min(edits[i - 1][j] + 1).min(edits[i][j - 1] + 1);
                    let exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if exchanged { best.min(edits[i - 2][j - 2] + 1) } else { best }
                }
            };
        }
    }
    edits[a.len()][b.len()]
}
