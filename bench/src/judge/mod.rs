//! Judges a report: whether it reaches the aims (`aims`, `verdict`), whether it is worse than the committed one (`compare`), and whether
//! it is complete (`complete`). On values: this module measures nothing, prints nothing and reads no files.

mod aims;
pub mod compare;
pub mod complete;
pub mod ratio;
pub mod tolerance;
pub mod verdict;

use crate::measure::PARTS;

pub use aims::IDLE_RESOLUTION_B;

/// Whether a section measures only pod-steer.
fn is_ours_alone(section: &str) -> bool {
    PARTS.iter().any(|part| part.ours_alone && part.sections.contains(&section))
}
