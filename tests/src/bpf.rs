//! What the kernel holds of BPF, by `bpftool`, and whose it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{daemon::BPFFS, host::Host, process::run};

/// Programs, maps and links by kind and id, each with a description.
pub type Objects = BTreeMap<(&'static str, u64), String>;

const KINDS: [&str; 3] = ["prog", "map", "link"];

/// Everything there is on this kernel, whoever made it.
pub fn all(host: &Host) -> Result<Objects> {
    Ok(listings(host)?.into_iter().map(|(key, object)| (key, describe(&object))).collect())
}

/// What belongs to one daemon: what it has open, what is pinned in its host, what is attached there, and all that those
/// hold. Independent of what other daemons on the same kernel do meanwhile.
pub fn of_daemon(host: &Host, pid: u32) -> Result<Objects> {
    let all = listings(host)?;
    let open = open_by(pid)?;
    let netns_ino = host.net().id()?.1;
    let pinned = |object: &Value| object["pinned"].as_array().is_some_and(|paths| !paths.is_empty());
    let attached = |object: &Value| object["netns_ino"].as_u64() == Some(netns_ino);
    let mut own: Objects = BTreeMap::new();
    for (key, object) in &all {
        if open.contains(key) || pinned(object) || attached(object) {
            own.insert(*key, describe(object));
        }
    }
    // Links hold programs, programs hold maps.
    for (kind, holder, field) in [("prog", "link", "prog_id"), ("map", "prog", "map_ids")] {
        let held = own.keys().filter(|key| key.0 == holder).filter_map(|key| all.get(key)).flat_map(|object| {
            let field = &object[field];
            field.as_array().cloned().unwrap_or_else(|| vec![field.clone()])
        });
        let held: Vec<_> = held.filter_map(|id| id.as_u64()).map(|id| (kind, id)).collect();
        own.extend(held.into_iter().filter_map(|key| Some((key, describe(all.get(&key)?)))));
    }
    Ok(own)
}

/// Attached `sk_lookup` programs of a network namespace, by its inode.
pub fn attached_to_netns(host: &Host, netns_ino: u64) -> Result<usize> {
    Ok(listings(host)?.values().filter(|object| object["netns_ino"].as_u64() == Some(netns_ino)).count())
}

/// Cookies of the namespaces that have a pin of the daemon's in this directory: `netns` or `ports`.
pub fn pinned_namespaces(host: &Host, dir: &str) -> Result<BTreeSet<u64>> {
    let names = run(host.command("find")?.args([&format!("{BPFFS}/{dir}"), "-mindepth", "1", "-printf", "%f\n"]))?;
    names.lines().map(|name| name.parse().with_context(|| format!("a pin {name} in {dir}"))).collect()
}

fn listings(host: &Host) -> Result<BTreeMap<(&'static str, u64), Value>> {
    let mut objects = BTreeMap::new();
    for kind in KINDS {
        // --bpffs: with the paths at which it is pinned in the host.
        let text = run(host.command("bpftool")?.args(["--json", "--bpffs", kind, "list"]))?;
        let list: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("bpftool {kind}: {text}"))?;
        objects.extend(list.into_iter().filter_map(|object| Some(((kind, object["id"].as_u64()?), object))));
    }
    Ok(objects)
}

/// What a process has open.
fn open_by(pid: u32) -> Result<Vec<(&'static str, u64)>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("reading the daemon's descriptors")? {
        // A descriptor may be closed meanwhile.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        for kind in KINDS {
            let id = info.lines().find_map(|line| line.strip_prefix(&format!("{kind}_id:")));
            open.extend(id.and_then(|id| id.trim().parse().ok()).map(|id| (kind, id)));
        }
    }
    Ok(open)
}

fn describe(object: &Value) -> String {
    let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    format!("{} {}", text("type"), text("name"))
}
