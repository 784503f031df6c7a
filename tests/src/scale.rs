//! The size of long tests: small in `cargo xtask test`, and as large as the promises in `cargo xtask soak`.

/// Set by `cargo xtask soak`.
const VARIABLE: &str = "POD_STEER_TESTS_SOAK";

/// The first size in `cargo xtask test`, the second one in `cargo xtask soak`.
pub fn of<T>(usual: T, soak: T) -> T {
    if is_soak() { soak } else { usual }
}

/// Whether `cargo xtask soak` runs this test.
pub fn is_soak() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
