//! The host's firewall, as far as forwarded packets need it: the fewest rules that let packets with our mark pass where Docker drops those
//! that it does not know. `rules` decides, on the listings of iptables(8), and `run` asks and changes. What an operator drops stays dropped:
//! our rule is the last one in the chain that Docker has for operators, and a host without that chain gets no rule.
#![forbid(unsafe_code)]

mod rules;
mod run;

use std::{fmt, fs};

use run::Tool;

/// A family of addresses.
struct Family {
    name: &'static str,
    /// The programs that may manage its rules, in the order in which they are tried.
    programs: [&'static str; 3],
    /// The setting without which Linux forwards none of its packets.
    setting: &'static str,
}

const V4: Family =
    Family { name: "IPv4", programs: ["iptables", "iptables-nft", "iptables-legacy"], setting: "net/ipv4/ip_forward" };
const V6: Family = Family {
    name: "IPv6",
    programs: ["ip6tables", "ip6tables-nft", "ip6tables-legacy"],
    setting: "net/ipv6/conf/all/forwarding",
};

/// Why forwarded packets of a family may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Linux forwards no packets.
    Off {
        /// The setting.
        setting: String,
    },
    /// The FORWARD chain drops what no rule accepts, and there is no chain in which pod-steer adds a rule.
    Closed {
        /// The family.
        family: &'static str,
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
            Self::Closed { family } => {
                write!(
                    f,
                    "the host's FORWARD chain drops {family} packets that no rule accepts, and forwarded ones are among them"
                )
            }
            Self::NotSet { command, error } => {
                write!(f, "`{command}` failed ({error}), so Docker drops forwarded packets")
            }
        }
    }
}

/// Lets forwarded packets of these families pass, in the network namespace of the calling thread. Returns the number of rules that were
/// changed, and what keeps packets from passing.
pub fn allow(v4: bool, v6: bool) -> (usize, Vec<Fault>) {
    let (mut changed, mut faults) = (0, Vec::new());
    for family in [v4.then_some(V4), v6.then_some(V6)].into_iter().flatten() {
        if fs::read_to_string(format!("/proc/sys/{}", family.setting)).is_ok_and(|value| value.trim() == "0") {
            faults.push(Fault::Off { setting: family.setting.replace('/', ".") });
        }
        let tools = || family.programs.into_iter().filter_map(Tool::find);
        let Some(tool) = tools().find(|tool| tool.list(None, rules::USERS).is_ok()) else {
            if tools().filter_map(|tool| tool.list(None, "FORWARD").ok()).any(|listing| rules::drops_marked(&listing)) {
                faults.push(Fault::Closed { family: family.name });
            }
            continue;
        };
        let users = tool.list(None, rules::USERS).map(|listing| rules::in_chain_of_users(&listing));
        let raw = tool.list(Some("raw"), rules::RAW).map(|listing| rules::in_raw(&listing));
        let steps = [(None, users), (Some("raw"), raw)];
        for (table, step) in steps
            .into_iter()
            .flat_map(|(table, steps)| steps.unwrap_or_default().into_iter().map(move |step| (table, step)))
        {
            match tool.take(table, &step) {
                Ok(()) => changed += 1,
                Err(error) => faults.push(Fault::NotSet { command: tool.command(table, &step), error }),
            }
        }
    }
    (changed, faults)
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
