//! Health checks: the probes, and how their results become a verdict. A probe reaches exactly one backend although several share the
//! port: the kernel program assigns a connection from the probe's address and port to the socket that is registered for it. `world`
//! decides what follows from a verdict.

mod checker;
mod probe;
mod threshold;

pub use checker::{Job, Subject, Verdict, follow};
pub use pod_steer_model::check::{
    CheckKind, CheckSpec, HEALTHY_DEFAULT, INTERVAL_MS_DEFAULT, Outcome, StatusRange, TIMEOUT_MS_DEFAULT,
    UNHEALTHY_DEFAULT,
};
pub use probe::{Target, Way};
pub use threshold::Threshold;
