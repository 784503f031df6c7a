//! What pod-steer decides, on values alone.
//!
//! Facts come in (labels, settings, backends, sockets, listeners, times), a plan or the next step of an operation comes out. Nothing
//! here reads a clock, a file or a socket: the crate has no dependency that could.
#![forbid(unsafe_code)]

pub mod address;
pub mod check;
pub mod condition;
pub mod duration;
pub mod explain;
pub mod ids;
pub mod judge;
pub mod labels;
pub mod listener;
pub mod namespace;
pub mod near;
pub mod ports;
pub mod process;
pub mod rollout;
pub mod rule;
pub mod settings;
pub mod slots;
pub mod state;
pub mod text;
pub mod time;
pub mod weight;
pub mod world;
