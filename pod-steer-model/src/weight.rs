//! Weights that may be given. Pure.
#![forbid(unsafe_code)]

/// Largest weight.
pub const WEIGHT_MAX: u32 = 65_535;
/// Weight of a container that names none.
pub const WEIGHT_DEFAULT: u32 = 1;
