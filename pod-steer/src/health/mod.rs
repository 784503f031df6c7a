//! Health checks: what one is, how single results become a verdict, and the probes themselves. A probe reaches exactly
//! the backend that it is for, although many share its port: the kernel program gives a connection from the probe's own
//! address and port to the socket that was named for it. What a verdict leads to is decided in `world`.

mod checker;
mod probe;
mod spec;
mod threshold;

pub use checker::{Job, Subject, Verdict, follow};
pub use probe::{Target, Way};
pub use spec::{
    CheckKind, CheckSpec, HEALTHY_DEFAULT, INTERVAL_MS_DEFAULT, StatusRange, TIMEOUT_MS_DEFAULT, UNHEALTHY_DEFAULT,
};
pub use threshold::Threshold;

/// How one probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// Otherwise: what it met with.
    Failed(String),
    /// It could not be made, which says nothing of the backend.
    Unknown(String),
}
