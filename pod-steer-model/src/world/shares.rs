//! The share of a service's new connections that each backend gets, by the tables in force.

use std::collections::BTreeMap;

use pod_steer_ebpf::{FAMILY_V4, NONE};

use super::{Plan, PlannedTable};
use crate::{
    ids::{BackendIndex, NetnsCookie},
    ports::Port,
};

impl Plan {
    /// By index: the share of new connections that each backend of a service gets, as the mean over its ports. For a
    /// port with both families, IPv4 counts. Clients of networks with a version of their own are left out.
    pub fn shares(&self, service: &str) -> BTreeMap<BackendIndex, f64> {
        let of_service = self.rules.iter().filter(|(_, rule)| rule.service.as_deref() == Some(service));
        let tables = of_service.filter_map(|(key, rule)| Some((key, rule.table.as_ref()?)));
        let mut by_port: BTreeMap<(NetnsCookie, Port, [u8; 16]), (u8, &PlannedTable)> = BTreeMap::new();
        for (key, table) in tables.filter(|(_, table)| table.members.iter().any(|member| member.weight > 0)) {
            let port = by_port.entry((key.netns_cookie, key.port, key.addr)).or_insert((key.family, table));
            if key.family == FAMILY_V4 {
                *port = (key.family, table);
            }
        }
        let ports = by_port.len() as f64;
        let mut shares = BTreeMap::new();
        for (_, table) in by_port.values() {
            let all: u128 = table.members.iter().map(|member| u128::from(member.weight)).sum();
            // The member of a paused service is not a backend.
            for member in table.members.iter().filter(|member| member.backend != BackendIndex(NONE)) {
                *shares.entry(member.backend).or_default() += member.weight as f64 / all as f64 / ports;
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pod_steer_ebpf::FAMILY_V6;

    use super::*;
    use crate::{ids::SocketCookie, rule::RuleKey, slots::Member, world::PlannedRule};

    /// A port, a family, and backends with their weights.
    type Rule<'a> = (u16, u8, &'a [(u32, u64)]);

    fn plan(rules: &[Rule<'_>]) -> Plan {
        let rule = |(port, family, members): &Rule<'_>| {
            let key = RuleKey { port: Port::tcp(*port), family: *family, ..RuleKey::default() };
            let member = |(cookie, &(backend, weight)): (u64, &(u32, u64))| {
                let (cookie, backend) = (SocketCookie(cookie), BackendIndex(backend));
                Member { cookie, backend, weight, is_forwarded: false }
            };
            let members = (0..).zip(*members).map(member);
            let table = Some(Arc::new(PlannedTable { members: members.collect(), ..PlannedTable::default() }));
            (key, PlannedRule { service: Some("web".to_owned()), table, ..PlannedRule::default() })
        };
        Plan { rules: rules.iter().map(rule).collect(), ..Plan::default() }
    }

    fn shares(of: &[(u32, f64)]) -> BTreeMap<BackendIndex, f64> {
        of.iter().map(|(backend, share)| (BackendIndex(*backend), *share)).collect()
    }

    #[test]
    fn shares_are_the_mean_over_ports() {
        let both = plan(&[(80, FAMILY_V4, &[(0, 90), (1, 10)]), (80, FAMILY_V6, &[(1, 10)])]);
        assert_eq!(both.shares("web"), shares(&[(0, 0.9), (1, 0.1)]));
        let six = plan(&[(80, FAMILY_V4, &[]), (80, FAMILY_V6, &[(1, 10)])]);
        assert_eq!(six.shares("web"), shares(&[(1, 1.0)]));
        let ports = plan(&[(80, FAMILY_V4, &[(0, 1)]), (443, FAMILY_V4, &[(1, 1), (1, 1)])]);
        assert_eq!(ports.shares("web"), shares(&[(0, 0.5), (1, 0.5)]));
        let paused = plan(&[(80, FAMILY_V4, &[(NONE, 1)])]);
        assert!(paused.shares("web").is_empty() && both.shares("api").is_empty());
    }
}
