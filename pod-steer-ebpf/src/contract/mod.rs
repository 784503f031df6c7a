//! The types of the contract, by what they are about. Limits, sizes and the version of all of them are in `lib.rs`.

mod own;
mod quota;
mod rules;
mod sockets;
mod told;

pub use own::*;
pub use quota::*;
pub use rules::*;
pub use sockets::*;
pub use told::*;
