//! What an operator decides about a service, and the steps in which it is carried out. Pure: facts and the time come in,
//! the next state goes out; the daemon stores it and acts on it.

pub mod types;

pub use types::*;
