//! Versions of kernels, as Debian names their packages.

use crate::arch::Arch;

/// `6.1.0-50-cloud-amd64`, and the numbers in it, by which versions are ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    numbers: Vec<u32>,
    pub text: String,
}

impl Version {
    /// The kernel of a package, if it is a cloud kernel: the smallest one with all features.
    pub fn of_package(package: &str, arch: Arch) -> Option<Self> {
        let text = package.strip_prefix("linux-image-")?;
        let numbers = text.strip_suffix(arch.debian())?.strip_suffix("-cloud-")?;
        if !numbers.starts_with(|letter: char| letter.is_ascii_digit()) {
            return None;
        }
        let numbers = numbers.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok());
        Some(Self { numbers: numbers.collect(), text: text.to_owned() })
    }

    /// The newest of a series (`6.1`), or of all.
    pub fn newest<'a>(all: &'a [Self], series: Option<&[u32]>) -> Option<&'a Self> {
        all.iter().filter(|version| series.is_none_or(|series| version.numbers.starts_with(series))).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_found_by_number() {
        let names = ["6.1.0-9", "6.1.0-50", "6.12.107+deb13", "6.12.117+deb13", "7.2.12+deb13"];
        let all: Vec<_> = names
            .iter()
            .filter_map(|name| Version::of_package(&format!("linux-image-{name}-cloud-amd64"), Arch::X86_64))
            .collect();
        let newest = |series: &[u32]| Version::newest(&all, Some(series)).map(|version| version.text.as_str());
        assert_eq!(newest(&[6, 1]), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&[6, 12]), Some("6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest(&[5, 10]), None);
        assert_eq!(Version::newest(&all, None), all.last());
    }

    #[test]
    fn other_packages_are_none() {
        for other in ["linux-image-cloud-amd64", "linux-image-6.1.0-50-amd64", "linux-image-6.1.0-50-cloud-amd64-dbg"] {
            assert_eq!(Version::of_package(other, Arch::X86_64), None, "{other}");
        }
        assert_eq!(Version::of_package("linux-image-6.1.0-50-cloud-amd64", Arch::Aarch64), None);
        assert!(Version::of_package("linux-image-6.1.0-50-cloud-arm64", Arch::Aarch64).is_some());
    }
}
