//! What the daemon knows beside the facts of the model. Each store owns its maps, which no other code writes, and is tested on
//! values. None of them knows another one, the kernel or the loop: `cargo xtask lint` checks that.

mod cgroups;
mod dirty;
mod engines;
mod failed_devices;
mod indices;
mod looks;
mod namespaces;
mod services;

pub use cgroups::Places;
pub use dirty::Dirty;
pub use engines::Engines;
pub use failed_devices::{FailedDevice, FailedDevices};
pub use indices::Indices;
pub use looks::Looks;
pub use namespaces::Namespaces;
pub use services::Services;
