//! pod-steer: many containers, one port, no reverse proxy, no NAT.
//!
//! A kernel program chooses the container's own listening socket for each new connection. The daemon updates the kernel's tables as
//! containers start and stop. `ARCHITECTURE.md` shows the path of a SYN and of a container's start.
//!
//! The crate `pod-steer-model` makes all decisions and does no I/O. Only `kernel` writes steering state. `daemon` connects the two.
#![deny(unsafe_code)]

pub mod abort;
pub mod api;
pub mod bounded;
pub mod bpffs;
pub mod caps;
pub mod cgroups;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod connections;
pub mod daemon;
pub mod doctor;
pub mod engine;
pub mod firewall;
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod holders;
pub mod idle;
pub mod kernel;
pub mod links;
pub mod listening;
pub mod log_sink;
pub mod netlink;
pub mod netns;
pub mod process_set;
pub mod procs;
pub mod sockets;
pub mod sys;
pub mod version;

pub use pod_steer_model::{
    condition, duration, explain, ids, judge, labels, near, ports, rollout, rule, settings, slots, text, world,
};

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Skip a cause whose text the error already includes.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
