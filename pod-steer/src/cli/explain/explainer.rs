//! Runs the programs on a packet, and walks the tables.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use ipnet::IpNet;
use pod_steer_ebpf::{NONE, Rule, RuleKey, SWITCH_REVISION_SHIFT, SWITCH_SIDE, Slot};
use serde_json::Value;

use super::{
    super::{Failure, args::explain::ExplainArgs},
    answer::{Answer, Chosen, Other, Ports, RuleText, Table, Tried},
    names::Names,
};
use crate::{
    api::types::ServiceCountersStatus,
    cli::args::explain::Source,
    explain::{Path, Verdict, Visited, path, standing},
    ids::{BackendIndex, ServiceIndex},
    kernel::{
        KernelError,
        dry_run::{self, Arrival, Choice, DryRun, Syn, View},
    },
    links,
    netns::Netns,
    procs::address_from_bytes,
};

/// Ports of a client that are tried if none is given: the first one, the distance, and how many. They are of those that Linux gives to
/// clients.
const PORT_FIRST: u16 = 32_768;
const PORT_STEP: u16 = 28;
const PORTS: u16 = 1_000;
/// How many more times a packet is tried, with the tables read anew, if the tables lead to another choice than the programs'. A daemon may
/// have changed them in between.
const TRIES: usize = 3;

/// Explains packets that come to one network namespace, which is that of the calling thread.
pub struct Explainer<'a> {
    args: &'a ExplainArgs,
    netns: Netns,
    names: Names,
    /// By [`Arrival::lookup_index`] of the packets that they are loaded for.
    programs: BTreeMap<u32, DryRun>,
    tables: View,
}

/// What was found for one port of a client.
struct Found {
    choice: Choice,
    path: Path,
    agrees: bool,
    counters: BTreeMap<String, Value>,
}

impl<'a> Explainer<'a> {
    /// Reads the tables.
    pub fn open(args: &'a ExplainArgs, netns: Netns) -> Result<Self, Failure> {
        let names = Names::read(&args.bpffs, &args.socket.socket).map_err(unreadable)?;
        let tables = View::open(&args.bpffs, netns.cookie).map_err(unreadable)?;
        Ok(Self { args, netns, names, programs: BTreeMap::new(), tables })
    }

    /// Explains what becomes of a packet.
    pub fn explain(&mut self, source: Source, destination: SocketAddr) -> Result<Answer, Failure> {
        let arrival = self.arrival(source, destination)?;
        let device_forwards = dry_run::has_device_program(&self.args.bpffs, self.netns.cookie, arrival.index);
        let mut syn = Syn {
            source: SocketAddr::new(source.ip, source.port.unwrap_or(PORT_FIRST)),
            destination,
            arrival: arrival.clone(),
        };
        let found = self.find(&syn, device_forwards)?;
        let mut ports: Vec<Ports> = Vec::new();
        let mut difference = self.difference(&found);
        for number in 0..if source.port.is_none() { PORTS } else { 0 } {
            syn.source.set_port(PORT_FIRST + number * PORT_STEP);
            let of_port = self.find(&syn, device_forwards)?;
            difference =
                difference.or_else(|| Some(format!("{} for port {}", self.difference(&of_port)?, syn.source.port())));
            let choice = self.chosen(&of_port);
            match ports.iter_mut().find(|ports| ports.choice == choice) {
                Some(ports) => ports.count += 1,
                None => ports.push(Ports { choice, count: 1 }),
            }
        }
        ports.sort_by_key(|ports| Reverse(ports.count));
        Ok(Answer {
            source: source
                .port
                .map_or_else(|| source.ip.to_string(), |port| SocketAddr::new(source.ip, port).to_string()),
            destination,
            device: arrival.name,
            device_forwards,
            programs_before: dry_run::programs_before(&self.args.bpffs, self.netns.cookie).map_err(unreadable)?,
            choice: self.chosen(&found),
            ports,
            service: found.path.rule.map(|(_, rule)| self.names.service(rule.service)),
            rule: found.path.rule.map(|(key, rule)| rule_text(&key, &rule, found.path.switch)),
            tables: found.path.visited.iter().map(|visited| self.table(&found.path, visited, &syn)).collect(),
            others: self.others(&found.path),
            counters: found.counters,
            difference,
        })
    }

    fn arrival(&self, source: Source, destination: SocketAddr) -> Result<Arrival, Failure> {
        let device = self.args.device.as_deref();
        let unread = |error| Failure::Input(format!("cannot read the network devices and routes: {error}"));
        if !links::is_local(destination.ip()).map_err(unread)? {
            let ip = destination.ip();
            return Err(Failure::Input(format!(
                "{ip} is no address of this network namespace; name one that packets have when they arrive here"
            )));
        }
        let found = links::arrival(device, source.ip, destination.ip()).map_err(unread)?;
        found.ok_or_else(|| {
            Failure::Input(match device {
                Some(device) => format!("there is no network device `{device}` in this network namespace"),
                None => format!("there is no route to the client {}; name the device with --device", source.ip),
            })
        })
    }

    fn find(&mut self, syn: &Syn, device_forwards: bool) -> Result<Found, Failure> {
        let packet = syn.packet();
        let programs = match self.programs.entry(syn.arrival.lookup_index) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => {
                let load = DryRun::load(&self.args.bpffs, self.netns.cookie, &syn.arrival);
                place.insert(load.map_err(unreadable)?)
            }
        };
        let device = device_forwards.then_some(syn.arrival.index);
        let mut left = TRIES;
        loop {
            left -= 1;
            let path = path(&self.tables, &packet, device);
            let service = path.rule.map(|(_, rule)| ServiceIndex(rule.service));
            let before = service.map(|service| programs.counted(service));
            let choice = programs.run(syn, device_forwards).map_err(unreadable)?;
            let agrees = agree(&choice, &path.verdict, packet.family as u8);
            if agrees || left == 0 {
                let after = service.map(|service| programs.counted(service));
                let counters = before.zip(after).map(|(before, after)| counted(before.into(), after.into()));
                return Ok(Found { choice, path, agrees, counters: counters.unwrap_or_default() });
            }
            self.tables = View::open(&self.args.bpffs, self.netns.cookie).map_err(unreadable)?;
        }
    }

    /// The choice of the programs, by names.
    fn chosen(&self, found: &Found) -> Chosen {
        let verdict = found.path.verdict;
        match found.choice {
            Choice::Socket(cookie) if verdict == (Verdict::Paused { cookie }) => {
                if self.owner(cookie) == NONE {
                    // The listener that discards SYNs has no description.
                    Chosen::Paused
                } else {
                    let service = found.path.rule.map(|(_, rule)| self.names.service(rule.service));
                    Chosen::Held { asleep: service.is_some_and(|service| self.names.asleep.contains(&service)) }
                }
            }
            Choice::Socket(socket) => Chosen::Socket { backend: self.names.backend(self.owner(socket)), socket },
            Choice::Forwarded(socket, to) => {
                Chosen::Forwarded { backend: self.names.backend(self.owner(socket)), socket, to }
            }
            Choice::Refused => Chosen::Refused,
            Choice::Dropped => Chosen::Dropped,
            Choice::Passed => Chosen::Passed {
                reason: match verdict {
                    Verdict::PassedNoBackend => "no backend is left, and the service has fallback = pass",
                    Verdict::PassedNoDaemon => "no backend is left, and no daemon runs",
                    Verdict::Unclaimed => "no service has claimed it",
                    _ => "for a reason that the tables do not show",
                },
            },
        }
    }

    fn owner(&self, cookie: u64) -> u32 {
        use crate::explain::Tables as _;
        self.tables.socket(cookie).map_or(NONE, |socket| socket.backend)
    }

    /// The choice by the tables, if it is another one.
    fn difference(&self, found: &Found) -> Option<String> {
        (!found.agrees).then(|| match found.path.verdict {
            Verdict::Socket { cookie, backend } | Verdict::OnDemand { cookie, backend } => {
                format!("socket {cookie} of {}", self.names.backend(backend).name)
            }
            Verdict::Forwarded { cookie, backend, .. } => {
                format!("a forward to socket {cookie} of {}", self.names.backend(backend).name)
            }
            Verdict::Paused { .. } => "the pause".to_owned(),
            Verdict::Refused => "a refusal".to_owned(),
            Verdict::Unclaimed => "no rule".to_owned(),
            Verdict::PassedNoBackend | Verdict::PassedNoDaemon => "the kernel's own lookup".to_owned(),
        })
    }

    fn table(&self, path: &Path, visited: &Visited, syn: &Syn) -> Table {
        let (members, reserve) = visited.header.counts();
        let network = visited.network_bits.and_then(|bits| {
            let bits = u8::try_from(bits).ok()?.min(if syn.source.is_ipv4() { 32 } else { 128 });
            Some(IpNet::new(syn.source.ip(), bits).ok()?.trunc().to_string())
        });
        let tries = visited.tries.iter().map(|tried| {
            let Slot { cookie, .. } = tried.slot;
            let backend = (!tried.slot.waits()).then(|| self.names.backend(tried.slot.index()));
            Tried { entry: tried.entry, role: tried.role, backend, socket: cookie, declined: tried.declined }
        });
        Table {
            table: visited.table,
            side: path.switch & SWITCH_SIDE,
            network,
            slots: visited.header.backend,
            members,
            reserve,
            withheld: visited.header.slots,
            tries: tries.collect(),
        }
    }

    /// The backends of the service that were not chosen.
    fn others(&self, path: &Path) -> Vec<Other> {
        let Some((_, rule)) = path.rule else { return Vec::new() };
        let service = self.names.service(rule.service);
        let sockets = self.tables.sockets();
        let own = self.names.backends.iter().filter(|(_, backend)| backend.service == service);
        let own: BTreeMap<u32, BTreeSet<u64>> =
            own.map(|(index, _)| (*index, sockets.get(&BackendIndex(*index)).cloned().unwrap_or_default())).collect();
        let stands = standing(&self.tables, path, &own).into_iter();
        stands.map(|(index, standing)| Other { backend: self.names.backend(index), standing }).collect()
    }
}

/// The state cannot be read, or is not of this release: nothing was changed.
fn unreadable(error: KernelError) -> Failure {
    Failure::Input(crate::chain(&error))
}

/// Whether the programs' choice is that of the tables.
fn agree(choice: &Choice, verdict: &Verdict, family: u8) -> bool {
    match (choice, *verdict) {
        (
            Choice::Socket(chosen),
            Verdict::Socket { cookie, .. } | Verdict::Paused { cookie } | Verdict::OnDemand { cookie, .. },
        ) => *chosen == cookie,
        (Choice::Forwarded(chosen, to), Verdict::Forwarded { cookie, address, port, .. }) => {
            *chosen == cookie && *to == dry_run::address_of(family, address, port)
        }
        (Choice::Refused, Verdict::Refused) => true,
        // Which source ports are left is not in the tables.
        (Choice::Dropped, Verdict::Forwarded { .. }) => true,
        (Choice::Passed, Verdict::Unclaimed | Verdict::PassedNoBackend | Verdict::PassedNoDaemon) => true,
        _ => false,
    }
}

/// The counters that a run has increased.
fn counted(before: ServiceCountersStatus, after: ServiceCountersStatus) -> BTreeMap<String, Value> {
    let [before, after] = [before, after].map(|counters| serde_json::to_value(counters).unwrap_or_default());
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else { return BTreeMap::new() };
    let more = after.iter().filter_map(|(name, count)| {
        let more = count.as_u64()?.wrapping_sub(before.get(name)?.as_u64()?);
        (more != 0).then(|| (name.clone(), more.into()))
    });
    more.collect()
}

fn rule_text(key: &RuleKey, rule: &Rule, switch: u32) -> RuleText {
    let is_v4 = key.family == pod_steer_ebpf::FAMILY_V4;
    RuleText {
        port: key.port,
        address: (key.addr != [0; 16]).then(|| address_from_bytes(key.family, key.addr).to_string()),
        device: (key.ifindex != 0).then_some(key.ifindex),
        client_bits: if is_v4 { rule.client_bits_v4 } else { rule.client_bits_v6 },
        revision: switch >> SWITCH_REVISION_SHIFT,
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::{FAMILY_V4, ServiceCounters};

    use super::*;

    #[test]
    fn a_choice_is_compared_with_that_of_the_tables() {
        let to = "172.17.0.2:8080".parse().unwrap();
        let address = [u32::from_ne_bytes([172, 17, 0, 2]), 0, 0, 0];
        let forwarded = |cookie, port| Verdict::Forwarded { cookie, backend: 1, address, port };
        let agree = |choice, verdict| agree(&choice, &verdict, FAMILY_V4);
        assert!(agree(Choice::Socket(5), Verdict::Socket { cookie: 5, backend: 1 }));
        assert!(agree(Choice::Socket(5), Verdict::Paused { cookie: 5 }));
        assert!(agree(Choice::Forwarded(5, to), forwarded(5, 8080)));
        assert!(agree(Choice::Refused, Verdict::Refused) && agree(Choice::Passed, Verdict::PassedNoDaemon));
        for (choice, verdict) in [
            (Choice::Socket(6), Verdict::Socket { cookie: 5, backend: 1 }),
            (Choice::Forwarded(5, to), forwarded(5, 80)),
            (Choice::Forwarded(6, to), forwarded(5, 8080)),
            (Choice::Socket(5), forwarded(5, 8080)),
            (Choice::Dropped, Verdict::Refused),
            (Choice::Passed, Verdict::Refused),
        ] {
            assert!(!agree(choice, verdict), "{choice:?} {verdict:?}");
        }
    }

    #[test]
    fn only_counters_that_have_grown_are_shown() {
        let of = |stale_slots| ServiceCounters { stale_slots, paused: 7, ..ServiceCounters::default() };
        let counted = counted(of(2).into(), of(5).into());
        assert_eq!(counted, BTreeMap::from([("stale_slots".to_owned(), Value::from(3))]));
    }
}
