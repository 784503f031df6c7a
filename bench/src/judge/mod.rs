//! What a report means: whether it shows what it is meant to show (`aims`, `verdict`), whether it is worse than the committed one
//! (`compare`), and whether anything is missing (`complete`). On values: nothing here measures, prints or reads a file.

mod aims;
pub mod compare;
pub mod complete;
pub mod ratio;
pub mod tolerance;
pub mod verdict;

use crate::measure::PARTS;

pub use aims::IDLE_RESOLUTION_B;

/// Whether nothing but pod-steer is measured in a section.
fn is_ours_alone(section: &str) -> bool {
    PARTS.iter().any(|part| part.ours_alone && part.sections.contains(&section))
}
