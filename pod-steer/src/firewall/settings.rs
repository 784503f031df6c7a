//! The settings of the network namespace of the calling thread without which Linux forwards nothing: of all devices, and of each.

use std::{collections::BTreeSet, fs};

use super::{Family, Fault};
use crate::links;

/// Settings that keep packets of a family from being forwarded.
pub fn faults(family: &Family) -> Vec<Fault> {
    let is_off =
        |setting: &str| fs::read_to_string(format!("/proc/sys/{setting}")).is_ok_and(|value| value.trim() == "0");
    // Packets that are handed over need the settings too: the kernel has no routes for their replies without them.
    if is_off(family.setting) {
        return vec![Fault::Off { setting: family.setting.replace('/', ".") }];
    }
    let is_v6 = family.nft == "ip6";
    let devices: BTreeSet<String> = links::with_addresses(is_v6).unwrap_or_default();
    // The name of a device may have dots.
    let setting = |device: &str| format!("net/{}/conf/{device}/forwarding", if is_v6 { "ipv6" } else { "ipv4" });
    let off = devices.into_iter().filter(|device| is_off(&setting(device)));
    off.map(|device| Fault::DeviceOff { setting: setting(&device), device }).collect()
}
