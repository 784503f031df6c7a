//! The structure of the daemon: stores know nothing but their values, a plan is made and applied in one place, and one module writes
//! the kernel's maps.

/// Each of its files is a store.
const STORES: &str = "pod-steer/src/daemon/stores/";
/// What a store may name of the project: values, and nothing that could act.
const STORES_MAY_NAME: [&str; 5] =
    ["crate::ids", "crate::world", "crate::netns::Netns", "crate::daemon::pace", "pod_steer_ebpf"];
/// Calls that are made once in the daemon, and where.
const ONCE: [(&str, &str); 3] = [
    (".reconcile()", "pod-steer/src/daemon/reconciler.rs"),
    (".replan(", "pod-steer/src/daemon/reconciler.rs"),
    (".kernel.apply(", "pod-steer/src/daemon/reconciler.rs"),
];

/// Where the kernel's programs and maps are used: the one writer of steering state, its system calls, and the ring of events.
const AYA_IN: [&str; 3] = ["pod-steer/src/kernel/", "pod-steer/src/sys.rs", "pod-steer/src/daemon/ring.rs"];

/// Where the files do not keep to that, a line each. `files` are paths with their text.
pub fn faults(files: &[(String, String)]) -> Vec<String> {
    let stores = files.iter().filter(|(path, _)| path.starts_with(STORES) && !path.ends_with("/mod.rs"));
    let of_stores = stores.flat_map(|(path, text)| names_too_much(path, text));
    let daemon: Vec<_> = files.iter().filter(|(path, _)| path.starts_with("pod-steer/src/daemon/")).collect();
    let of_calls = ONCE.iter().filter_map(|(call, place)| {
        let calls = daemon.iter().flat_map(|(path, text)| {
            let lines = (1..).zip(text.lines()).filter(|(_, line)| line.contains(call));
            lines.map(move |(number, _)| format!("{path}:{number}"))
        });
        let calls: Vec<String> = calls.collect();
        let is_right = calls.len() == 1 && calls[0].starts_with(place);
        (!daemon.is_empty() && !is_right)
            .then(|| format!("`{call}` is to be called once, in {place}, and is called in {}", calls.join(", ")))
    });
    let of_maps = files.iter().filter(|(path, text)| {
        path.starts_with("pod-steer/src/")
            && !AYA_IN.iter().any(|place| path.starts_with(place))
            && text.contains("aya::")
    });
    let of_maps =
        of_maps.map(|(path, _)| format!("{path}: the kernel's maps are used only below {}", AYA_IN.join(", ")));
    of_stores.chain(of_calls).chain(of_maps).collect()
}

/// The imports of a store that may not be.
fn names_too_much(path: &str, text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let imports = code.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let items = imports.flat_map(|import| match import.strip_prefix("crate::{") {
        Some(group) => {
            let group = group.trim_end_matches('}').trim_end();
            group.split(",\n").flat_map(|line| line.split(", ")).map(|item| format!("crate::{}", item.trim())).collect()
        }
        None => vec![import.trim().to_owned()],
    });
    let is_refused = |item: &String| {
        let is_ours = ["crate::", "super::", "pod_steer"].iter().any(|root| item.starts_with(root));
        is_ours && item != "crate::" && !STORES_MAY_NAME.iter().any(|may| item.starts_with(may))
    };
    let refused = items.filter(is_refused);
    refused.map(|item| format!("{path}: a store may not name `{item}`: it owns its values and nothing else")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (format!("pod-steer/src/daemon/{path}"), (*text).to_owned()));
        faults(&files.collect::<Vec<_>>())
    }

    const RECONCILER: (&str, &str) =
        ("reconciler.rs", "self.reconcile();\nself.world.replan(&changed, &mut plan);\nself.kernel.apply(&plan)");

    #[test]
    fn a_store_names_values_only() {
        let store = |text| of(&[RECONCILER, ("stores/a.rs", text)]);
        assert!(store("use std::fs::File;\nuse crate::{daemon::pace::Pace, world::Changed};\n").is_empty());
        assert!(store("use crate::{\n    daemon::pace::Pace,\n    world::Changed,\n};\n").is_empty());
        assert_eq!(store("use super::b::Other;\n").len(), 1);
        assert_eq!(store("use crate::{\n    kernel::Kernel,\n    world::Changed,\n};\n").len(), 1);
        assert!(store("use crate::netns::Netns;\n#[cfg(test)]\nmod tests {\n    use super::*;\n}\n").is_empty());
    }

    #[test]
    fn the_kernels_maps_have_one_writer() {
        let writer = ("kernel/rules.rs", "use aya::maps::HashMap;");
        assert!(faults(&[(format!("pod-steer/src/{}", writer.0), writer.1.to_owned())]).is_empty());
        assert_eq!(of(&[RECONCILER, ("status.rs", writer.1)]).len(), 1);
    }

    #[test]
    fn a_plan_is_made_in_one_place() {
        assert!(of(&[RECONCILER]).is_empty());
        assert_eq!(of(&[RECONCILER, ("orders.rs", "self.reconcile();")]).len(), 1);
        assert_eq!(of(&[("orders.rs", RECONCILER.1)]).len(), 3);
        assert_eq!(of(&[("reconciler.rs", "self.reconcile();")]).len(), 2);
    }
}
