//! The types of the contract, by topic. Their limits, sizes and version are in `lib.rs`.

mod forward;
mod judge;
mod own;
mod quota;
mod reports;
mod rules;
mod sockets;
mod trace;

pub use forward::*;
pub use judge::*;
pub use own::*;
pub use quota::*;
pub use reports::*;
pub use rules::*;
pub use sockets::*;
pub use trace::*;
