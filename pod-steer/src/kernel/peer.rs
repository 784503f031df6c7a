//! Whether packets may be handed over to the other end of a pair (`bpf_redirect_peer`). Until it was fixed, the kernel took what
//! the packet had met in one namespace along into the other (CVE-2025-37959).

use std::fs;

/// The first release with the fix, of each branch that got it, as the record of the CVE has them. Later branches have it from the start.
const FIXED: [(u32, u32, u32); 4] = [(6, 1, 139), (6, 6, 91), (6, 12, 29), (6, 14, 7)];
const FIXED_BRANCH: (u32, u32) = (6, 15);

/// Why no packet may be handed over so; nothing if the kernel has the fix.
pub fn peer_refused() -> Option<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    judge(&read("osrelease"), &read("version"))
}

fn judge(release: &str, version: &str) -> Option<String> {
    // Debian's release has the number of its package's interface, and its version that of the kernel.
    let exact = version.split_once("Debian ").map_or(release, |(_, exact)| exact);
    // A package's version may begin with its epoch.
    let is_epoch = |epoch: &str| !epoch.is_empty() && epoch.bytes().all(|byte| byte.is_ascii_digit());
    let exact = exact.split_once(':').filter(|(epoch, _)| is_epoch(epoch)).map_or(exact, |(_, exact)| exact);
    let mut numbers = exact.trim().split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let mut next = || numbers.next().unwrap_or_default();
    let (major, minor, patch) = (next(), next(), next());
    let is_fixed = (major, minor) >= FIXED_BRANCH
        || FIXED.iter().any(|fixed| (fixed.0, fixed.1) == (major, minor) && patch >= fixed.2);
    let shown: String = exact.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    (!is_fixed).then(|| format!("Linux {shown} may lack the fix of CVE-2025-37959"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_fit_from_the_release_on_that_has_the_fix() {
        for fit in ["6.1.139", "6.6.91-1-generic", "6.12.29", "6.14.7", "6.15.0", "6.18.1", "7.0.0-rc1", "7.3"] {
            assert_eq!(judge(fit, "#1 SMP"), None, "{fit}");
        }
        for unfit in ["5.15.200", "6.1.138", "6.2.100", "6.8.0-60-generic", "6.12.28", "6.13.12", "6.14.6", "", "x"] {
            assert!(judge(unfit, "#1 SMP").is_some(), "{unfit}");
        }
        let debian =
            |exact: &str| judge("6.1.0-50-amd64", &format!("#1 SMP PREEMPT_DYNAMIC Debian {exact} (2026-01-01)"));
        assert_eq!(debian("6.1.170-1"), None);
        assert_eq!(debian("1:6.12.34-1+rpt1"), None);
        assert_eq!(debian("6.1.138-1").as_deref(), Some("Linux 6.1.138 may lack the fix of CVE-2025-37959"));
    }
}
