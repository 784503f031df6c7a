//! The host's firewall, as far as forwarded packets need it: the fewest rules that let packets with our mark pass where Docker drops those
//! that it does not know. `rules` decides, on the listings of iptables(8), and `run` asks and changes. What an operator drops stays dropped:
//! our rule is the last one in the chain that Docker has for operators, and a host without that chain gets no rule. Docker's own nftables
//! rules are only read (`nftables`): Docker replaces its tables as a whole, and has options for what pod-steer needs. So are those of
//! firewalld (`firewalld`), which has policies for it.
#![forbid(unsafe_code)]

mod firewalld;
mod nftables;
mod rules;
mod run;
mod settings;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use run::Tool;

/// A family of addresses.
struct Family {
    name: &'static str,
    /// The programs that may manage its rules, in the order in which they are tried.
    programs: [&'static str; 3],
    /// Its name in nftables.
    nft: &'static str,
    /// The setting without which Linux forwards none of its packets.
    setting: &'static str,
    /// The address of a target.
    address: fn(&Target) -> Option<IpAddr>,
}

const V4: Family = Family {
    name: "IPv4",
    nft: "ip",
    programs: ["iptables", "iptables-nft", "iptables-legacy"],
    setting: "net/ipv4/ip_forward",
    address: |target| target.v4.map(IpAddr::V4),
};
const V6: Family = Family {
    name: "IPv6",
    nft: "ip6",
    programs: ["ip6tables", "ip6tables-nft", "ip6tables-legacy"],
    setting: "net/ipv6/conf/all/forwarding",
    address: |target| target.v6.map(IpAddr::V6),
};

/// Where packets are forwarded to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The bridge.
    pub bridge: String,
    /// The container's address there.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Its packets are handed over past the FORWARD chain, but for those that cannot be.
    pub is_handed_over: bool,
}

/// Why forwarded packets of a family may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Linux forwards no packets.
    Off {
        /// The setting.
        setting: String,
    },
    /// Linux forwards no packets that come by one device.
    DeviceOff {
        /// The device.
        device: String,
        /// The setting.
        setting: String,
    },
    /// The FORWARD chain drops what no rule accepts, and there is no chain in which pod-steer adds a rule.
    Closed {
        /// The family.
        family: &'static str,
    },
    /// The FORWARD chain does the same, and no longer leads to the chain that has our rule.
    Unreached {
        /// The family.
        family: &'static str,
        /// The program that manages the rules of the chain.
        program: &'static str,
    },
    /// Docker's nftables rules drop them.
    Docker {
        /// The table.
        table: String,
        /// The options of `dockerd` with which it does not.
        options: Vec<&'static str>,
    },
    /// firewalld's rules reject them.
    Firewalld {
        /// The device by which they come.
        from: String,
        /// The bridge.
        bridge: String,
    },
    /// A rule could not be set.
    NotSet {
        /// The command that would set it.
        command: String,
        /// Its error.
        error: String,
    },
}

/// As a message.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off { setting } => write!(f, "`{setting}` is 0, so Linux forwards no packets"),
            Self::DeviceOff { device, setting } => {
                write!(f, "`{setting}` is 0, so Linux forwards no packets that come by `{device}`")
            }
            Self::Closed { family } => {
                write!(
                    f,
                    "the host's FORWARD chain drops {family} packets that no rule accepts, and forwarded ones are among them"
                )
            }
            Self::Unreached { family, .. } => {
                write!(f, "the host's FORWARD chain drops {family} packets and does not lead to {}", rules::USERS)?;
                f.write_str(", where the rule for forwarded packets is")
            }
            Self::Docker { table, .. } => write!(f, "Docker's nftables table `{table}` drops forwarded packets"),
            Self::Firewalld { from, bridge } => {
                write!(f, "firewalld rejects forwarded packets from {} to `{bridge}`", device(from))
            }
            Self::NotSet { command, error } => {
                write!(f, "`{command}` failed ({error}), so Docker drops forwarded packets")
            }
        }
    }
}

impl Fault {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Off { setting } | Self::DeviceOff { setting, .. } => format!("set it: sysctl -w {setting}=1"),
            Self::Closed { .. } | Self::NotSet { .. } => {
                "let packets with the mark 0x40000000 pass, as docs/forwarding.md says".to_owned()
            }
            Self::Unreached { program, .. } => format!(
                "restart Docker, which sets its own rules again; if FORWARD still does not lead there, `{program} -I FORWARD -j {}`",
                rules::USERS
            ),
            Self::Docker { options, .. } => format!("start dockerd with {}", options.join(" ")),
            Self::Firewalld { bridge, .. } => {
                format!("let them pass by a policy to the zone of `{bridge}`, as docs/forwarding.md says")
            }
        }
    }
}

fn device(name: &str) -> String {
    if name.is_empty() { "any device".to_owned() } else { format!("`{name}`") }
}

/// Lets packets to these targets pass, in the network namespace of the calling thread. Returns the number of rules that were changed, and
/// what keeps packets from passing.
pub fn allow(targets: &[Target]) -> (usize, Vec<Fault>) {
    let (mut changed, mut faults) = (0, Vec::new());
    for family in [V4, V6] {
        if targets.iter().any(|target| (family.address)(target).is_some()) {
            changed += family.allow(&family.forwarded(targets), &mut faults);
        }
    }
    (changed, faults)
}

impl Family {
    /// The addresses of this family, each with its bridge, to which all packets go by the FORWARD chain.
    fn forwarded<'a>(&self, targets: &'a [Target]) -> BTreeSet<(&'a str, IpAddr)> {
        let forwarded = targets.iter().filter(|target| !target.is_handed_over);
        forwarded.filter_map(|target| Some((target.bridge.as_str(), (self.address)(target)?))).collect()
    }

    /// Lets packets of one family pass. Drops are faults only if there are such addresses.
    fn allow(&self, forwarded: &BTreeSet<(&str, IpAddr)>, faults: &mut Vec<Fault>) -> usize {
        faults.extend(settings::faults(self));
        let tools = || self.programs.into_iter().filter_map(Tool::find);
        let mut drops = Vec::new();
        let changed = match tools().find(|tool| tool.list(None, rules::USERS).is_ok()) {
            Some(tool) => {
                let changed = set_rules(&tool, &mut drops);
                if tool.list(None, rules::FORWARD).is_ok_and(|listing| rules::drops_before_users(&listing)) {
                    drops.push(Fault::Unreached { family: self.name, program: tool.name() });
                }
                changed
            }
            None => {
                let mut listings = tools().filter_map(|tool| tool.list(None, rules::FORWARD).ok());
                if listings.any(|listing| rules::drops_marked(&listing)) {
                    drops.push(Fault::Closed { family: self.name });
                }
                0
            }
        };
        let options = run::nft_table(self.nft, nftables::TABLE).map(|listing| nftables::lacks(&listing, forwarded));
        if let Some(options) = options.filter(|options| !options.is_empty()) {
            drops.push(Fault::Docker { table: format!("{} {}", self.nft, nftables::TABLE), options });
        }
        let bridges = forwarded.iter().map(|(bridge, _)| *bridge).collect();
        drops.extend(run::nft_table("inet", firewalld::TABLE).and_then(|listing| refused_pair(&listing, &bridges)));
        if !forwarded.is_empty() {
            // firewalld has one table for both families.
            drops.retain(|fault| !faults.contains(fault));
            faults.extend(drops);
        }
        changed
    }
}

/// The first device by which other machines' packets come, and bridge, between which firewalld forwards none. `None` if one such device is
/// let through: an operator may close others on purpose.
fn refused_pair(listing: &str, bridges: &BTreeSet<&str>) -> Option<Fault> {
    let mut uplinks = run::uplinks();
    if uplinks.is_empty() {
        // Any that is in no zone.
        uplinks.insert(String::new());
    }
    let is_closed = |bridge: &&&str| uplinks.iter().all(|from| firewalld::refuses(listing, from, bridge));
    let (from, bridge) = uplinks.first().zip(bridges.iter().find(is_closed))?;
    Some(Fault::Firewalld { from: from.clone(), bridge: (*bridge).to_owned() })
}

/// Sets the rules that are missing beside Docker's.
fn set_rules(tool: &Tool, faults: &mut Vec<Fault>) -> usize {
    let users = tool.list(None, rules::USERS).map(|listing| rules::in_chain_of_users(&listing));
    let raw = tool.list(Some("raw"), rules::RAW).map(|listing| rules::in_raw(&listing));
    let mut changed = 0;
    for (table, steps) in [(None, users), (Some("raw"), raw)] {
        for step in steps.unwrap_or_default() {
            match tool.take(table, &step) {
                Ok(()) => changed += 1,
                Err(error) => faults.push(Fault::NotSet { command: tool.command(table, &step), error }),
            }
        }
    }
    changed
}

/// Removes every rule of ours, in the network namespace of the calling thread.
pub fn remove() {
    for tool in [V4, V6].into_iter().flat_map(|family| family.programs).filter_map(Tool::find) {
        for (table, chain) in [(None, rules::USERS), (Some("raw"), rules::RAW)] {
            for step in rules::without(&tool.list(table, chain).unwrap_or_default()) {
                // It is gone already if another program removes it too.
                let _ = tool.take(table, &step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_targets_whose_packets_pass_the_forward_chain_are_kept_from_clients_by_it() {
        let v4 = Ipv4Addr::new(172, 17, 0, 2);
        let target = |v4, is_handed_over| Target { bridge: "docker0".to_owned(), v4, v6: None, is_handed_over };
        let of = |targets: &[Target]| [V4.forwarded(targets).len(), V6.forwarded(targets).len()];
        assert_eq!(of(&[target(Some(v4), true)]), [0, 0]);
        assert_eq!(of(&[target(Some(v4), true), target(Some(v4), false)]), [1, 0]);
        assert_eq!(of(&[target(None, false)]), [0, 0]);
    }

    #[test]
    fn the_remedy_names_the_program_that_manages_the_chain() {
        let fault = Fault::Unreached { family: "IPv4", program: "iptables-legacy" };
        assert!(fault.remedy().contains("`iptables-legacy -I FORWARD -j DOCKER-USER`"), "{}", fault.remedy());
    }
}
