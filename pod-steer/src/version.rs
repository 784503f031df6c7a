//! The version of this build.

use std::sync::LazyLock;

use pod_steer_ebpf::ABI_VERSION;

/// The version, the layout of the kernel's state, and the commit if it was built from a repository.
pub static LINE: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("POD_STEER_COMMIT").map(|commit| format!(", commit {commit}")).unwrap_or_default();
    format!("{} (kernel state {ABI_VERSION}{commit})", env!("CARGO_PKG_VERSION"))
});
