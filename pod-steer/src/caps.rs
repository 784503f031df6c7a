//! Capabilities: the list that the daemon needs. It drops all others before it accepts connections.

use std::io;

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// The capabilities that are kept, and what each is for.
pub const NEEDED: [(CapabilitySet, &str, &str); 7] = [
    (CapabilitySet::BPF, "CAP_BPF", "make maps and load programs"),
    (
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        "attach programs to namespaces, cgroups, sockets and devices, set rules of the firewall",
    ),
    (CapabilitySet::PERFMON, "CAP_PERFMON", "let the verifier track pointers in the programs"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN", "enter a container's network namespace, open tables by their id"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE", "copy a listening socket of a container (pidfd_getfd)"),
    (CapabilitySet::KILL, "CAP_KILL", "tell old backends of other users to stop"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "read the descriptors of containers of other users"),
];

/// Kept if it is there: without it, clients of ports below `ip_unprivileged_port_start` are not held during a pause.
const WELCOME: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Those for which the kernel accepts CAP_SYS_ADMIN too (`bpf_capable`, `perfmon_capable`). Docker 20.10 of Debian 12 cannot grant them.
const IMPLIED: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

/// The needed capabilities that this process lacks, with what each is for.
pub fn missing() -> io::Result<Vec<(&'static str, &'static str)>> {
    Ok(lacking(capabilities(None)?.effective))
}

fn lacking(effective: CapabilitySet) -> Vec<(&'static str, &'static str)> {
    let implied = if effective.contains(CapabilitySet::SYS_ADMIN) { IMPLIED } else { CapabilitySet::empty() };
    let lacks = NEEDED.into_iter().filter(|(capability, _, _)| !(effective | implied).contains(*capability));
    lacks.map(|(_, name, purpose)| (name, purpose)).collect()
}

/// Permanently drops every capability that is not needed. Call it before any other thread is started: threads inherit the sets.
///
/// The permitted set is what counts: with `no_new_privs` a program that is executed gets at most the permitted set of its
/// caller, whatever the bounding set allows (`cap_bprm_creds_from_file`). So the bounding set is cut only where that is
/// allowed: it takes CAP_SETPCAP, which a service manager or a container engine need not have granted.
pub fn drop_unneeded() -> io::Result<()> {
    let keep = kept();
    if capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        cut_bounding_set(keep)?;
    }
    drop_for_this_thread()?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Drops every capability that is not needed from the sets of this thread alone.
pub fn drop_for_this_thread() -> io::Result<()> {
    let keep = kept();
    let mut sets = capabilities(None)?;
    sets.effective &= keep;
    sets.permitted &= keep;
    // Lowers the ambient set too.
    sets.inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, sets)?)
}

fn kept() -> CapabilitySet {
    NEEDED.into_iter().fold(WELCOME, |all, (capability, _, _)| all | capability)
}

fn cut_bounding_set(keep: CapabilitySet) -> io::Result<()> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel answers EINVAL to capabilities that it does not know.
        let Ok(there) = capability_is_in_bounding_set(capability) else { break };
        if there && !keep.contains(capability) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_each_with_its_purpose() {
        let text = include_str!("../../docs/security.md").replace('`', "");
        for (_, name, purpose) in NEEDED {
            assert!(text.contains(&format!("| {name} | {purpose} |")), "{name}: {purpose}");
        }
    }

    #[test]
    fn sys_admin_stands_for_those_that_the_kernel_lets_it_stand_for() {
        let names = |effective| lacking(effective).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(kept()).is_empty() && names(kept() - IMPLIED).is_empty());
        let bare = kept() - CapabilitySet::SYS_ADMIN;
        assert_eq!(names(bare), ["CAP_SYS_ADMIN"]);
        assert_eq!(names(bare - IMPLIED), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"]);
        assert_eq!(names(kept() - CapabilitySet::KILL), ["CAP_KILL"]);
    }

    #[test]
    fn a_container_gets_those_that_are_needed_and_no_others() {
        let text = include_str!("../../examples/daemon.compose.yaml");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("cap_add: [")).unwrap();
        let mut given: Vec<&str> = line.trim_end_matches(']').split(", ").collect();
        // The first of these is optional; the others are used before all others are dropped.
        assert_eq!(given.split_off(given.len() - 3), ["NET_BIND_SERVICE", "DAC_OVERRIDE", "SYS_NICE"]);
        let needed = NEEDED.into_iter().filter(|(capability, _, _)| !IMPLIED.contains(*capability));
        let mut needed: Vec<&str> = needed.map(|(_, name, _)| name.trim_start_matches("CAP_")).collect();
        given.sort_unstable();
        needed.sort_unstable();
        assert_eq!(given, needed);
        assert!(text.contains("cap_drop: [ALL]"));
    }
}
