//! pod-steer: many containers, one port, no reverse proxy, no NAT.
//!
//! A kernel program chooses which container's own listening socket gets each new connection; this daemon keeps the
//! kernel's tables in step with the containers. `ARCHITECTURE.md` has the map: the path of a SYN, and the path of a
//! container's start.
//!
//! What decides is in the crate `pod-steer-model` and does no I/O; `kernel` alone writes steering state; `daemon` brings the two
//! together.
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
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod health;
pub mod holders;
pub mod kernel;
pub mod listening;
pub mod log_sink;
pub mod netns;
pub mod process_set;
pub mod procs;
pub mod sys;
pub mod version;

pub use pod_steer_model::{duration, labels, near, ports, rollout, settings, slots, text, world};

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause in their own words.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}
