//! The architectures that pod-steer is built for.

use std::env::consts::ARCH;

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    /// The machine's own, if it is one of these.
    pub fn own() -> Option<Self> {
        [Self::X86_64, Self::Aarch64].into_iter().find(|arch| arch.name() == ARCH)
    }

    /// As Rust and QEMU name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian names it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Rust's target for static programs.
    pub fn musl(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// The variable for a build on a machine of any architecture: Rust's own linker links, since the machine's compiler can only do it for its
    /// own; everything else is in Rust's target.
    pub fn build_env(self) -> (String, &'static str) {
        let target = self.musl().replace('-', "_").to_uppercase();
        (format!("CARGO_TARGET_{target}_LINKER"), "rust-lld")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rusts_own_linker_links_for_any_architecture() {
        let (name, linker) = Arch::Aarch64.build_env();
        assert_eq!((name.as_str(), linker), ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld"));
    }
}
