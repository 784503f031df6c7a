//! Limits of weights. Pure.
#![forbid(unsafe_code)]

/// Maximum weight.
pub const WEIGHT_MAX: u32 = 65_535;
/// Weight of a container that sets none.
pub const WEIGHT_DEFAULT: u32 = 1;
