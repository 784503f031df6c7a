//! Health checks: what one is, how single results become a verdict, and the probes themselves. A probe reaches exactly
//! the backend that it is for, although many share its port: the kernel program gives a connection from the probe's own
//! address and port to the socket that was named for it. What a verdict leads to is decided in `world`.

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
