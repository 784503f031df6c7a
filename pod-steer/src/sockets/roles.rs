//! How the tables use each socket.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    api::sockets::SocketRole,
    ids::SocketCookie,
    world::{Plan, PlannedTable},
};

/// Tables, each with the ports to which its clients come.
pub type PlannedPorts = Vec<(Arc<PlannedTable>, BTreeSet<u16>)>;

/// How all tables use a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its best role in any table.
    pub role: SocketRole,
    /// The ports of the tables in which it has this role.
    pub ports: BTreeSet<u16>,
}

/// The roles of all sockets.
#[derive(Debug, Default)]
pub struct Roles {
    /// The ports of each table.
    ports: Vec<BTreeSet<u16>>,
    /// The tables that name a socket, by their places in that list.
    uses: HashMap<SocketCookie, Vec<(SocketRole, usize)>>,
}

impl Roles {
    /// The place of a socket.
    pub fn of(&self, cookie: SocketCookie) -> Place {
        let uses = self.uses.get(&cookie).map_or(&[][..], Vec::as_slice);
        // A socket that serves one port and is withheld from another is reached by the port that it serves.
        let role = uses.iter().map(|(role, _)| *role).max().unwrap_or_default();
        let tables = uses.iter().filter(|(own, _)| *own == role).filter_map(|(_, at)| self.ports.get(*at));
        Place { role, ports: tables.flatten().copied().collect() }
    }
}

/// The tables of a plan. Rules share equal tables, so there are far fewer tables than rules.
pub fn tables_of(plan: &Plan) -> PlannedPorts {
    let mut by_table: HashMap<*const PlannedTable, (Arc<PlannedTable>, BTreeSet<u16>)> = HashMap::new();
    for (key, rule) in &plan.rules {
        let networks = rule.networks.values().map(|networks| &networks.table);
        for table in rule.table.iter().chain(networks) {
            let new = || (Arc::clone(table), BTreeSet::new());
            by_table.entry(Arc::as_ptr(table)).or_insert_with(new).1.insert(key.port.number);
        }
    }
    by_table.into_values().collect()
}

impl From<PlannedPorts> for Roles {
    fn from(tables: PlannedPorts) -> Self {
        let mut roles = Self::default();
        for (table, ports) in tables {
            let PlannedTable { members, reserve, withheld } = &*table;
            let parts =
                [(members, SocketRole::Table), (reserve, SocketRole::Reserve), (withheld, SocketRole::Withheld)];
            for (part, role) in parts {
                for member in part {
                    roles.uses.entry(member.cookie).or_default().push((role, roles.ports.len()));
                }
            }
            roles.ports.push(ports);
        }
        roles
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::BackendIndex, slots::Member};

    #[test]
    fn the_best_role_of_a_socket_counts() {
        let member =
            |cookie| Member { cookie: SocketCookie(cookie), backend: BackendIndex(0), weight: 1, is_forwarded: false };
        let table = |members: &[u64], reserve: &[u64], withheld: &[u64]| {
            let of = |cookies: &[u64]| cookies.iter().copied().map(member).collect();
            Arc::new(PlannedTable { members: of(members), reserve: of(reserve), withheld: of(withheld) })
        };
        let roles = Roles::from(vec![
            (table(&[1], &[2], &[3]), BTreeSet::from([80, 443])),
            (table(&[3], &[], &[1, 4]), BTreeSet::from([81])),
        ]);
        let of = |cookie| {
            let place = roles.of(SocketCookie(cookie));
            (place.role, place.ports.iter().copied().collect::<Vec<_>>())
        };
        assert_eq!(of(1), (SocketRole::Table, vec![80, 443]));
        assert_eq!(of(2), (SocketRole::Reserve, vec![80, 443]));
        assert_eq!(of(3), (SocketRole::Table, vec![81]));
        assert_eq!(of(4), (SocketRole::Withheld, vec![81]));
        assert_eq!(of(5), (SocketRole::None, vec![]));
    }
}
