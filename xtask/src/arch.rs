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

    /// The variables for a build on this machine. For another architecture, Rust's own linker links, since the machine's compiler cannot;
    /// everything else is in Rust's target.
    pub fn build_env(self) -> Option<(String, &'static str)> {
        let target = self.musl().replace('-', "_").to_uppercase();
        (Self::own() != Some(self)).then(|| (format!("CARGO_TARGET_{target}_LINKER"), "rust-lld"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_architecture_is_linked_by_rusts_own_linker() {
        let other = if Arch::own() == Some(Arch::Aarch64) { Arch::X86_64 } else { Arch::Aarch64 };
        let (name, linker) = other.build_env().unwrap();
        assert!(name.starts_with("CARGO_TARGET_") && name.ends_with("_UNKNOWN_LINUX_MUSL_LINKER"), "{name}");
        assert_eq!(linker, "rust-lld");
        assert_eq!(Arch::own().and_then(Arch::build_env), None);
    }
}
