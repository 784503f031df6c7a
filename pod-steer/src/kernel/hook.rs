//! Where programs of network devices are attached: by TCX links, or, on kernels without them, by filters of a clsact qdisc.

use std::{fmt, sync::LazyLock};

use super::bpf;

/// A way to attach programs to network devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Links (Linux 6.6).
    Tcx,
    /// Filters of a clsact qdisc, as tc-bpf(8) makes them.
    Clsact,
}

impl Hook {
    /// The way for this kernel: links if it has them. A test on a newer kernel sets `POD_STEER_TEST_CLSACT` to get filters. No other code
    /// reads the variable.
    pub fn of_kernel() -> Self {
        static HOOK: LazyLock<Hook> = LazyLock::new(|| {
            let is_forced = std::env::var_os("POD_STEER_TEST_CLSACT").is_some();
            if bpf::has_tcx() && !is_forced { Hook::Tcx } else { Hook::Clsact }
        });
        *HOOK
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}
