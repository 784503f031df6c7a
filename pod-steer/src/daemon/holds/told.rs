//! What `pause`, `unpause` and `status` tell of clients that wait.

use std::collections::{BTreeMap, BTreeSet};

use super::own_uid;
use crate::{
    api::types::{PauseStatus, PausedPort},
    daemon::control::Control,
    ports::Port,
    rollout::Order,
    world::Form,
};

/// A smaller limit on backlogs than the kernel's default is told.
const BACKLOG_SMALL: u32 = 4096;

impl Control {
    /// Clients of a service that are held now.
    pub(in crate::daemon) fn held_clients(&self, service: &str) -> u64 {
        let holds = self.world.holds.iter().filter(|(_, hold)| hold.service == service);
        holds.map(|(index, _)| self.live(*index)).sum()
    }

    /// How clients of a service wait; nothing if it is not paused.
    pub(in crate::daemon) fn pause_status(&self, service: &str) -> Option<PauseStatus> {
        let decision = self.world.decisions.get(service).filter(|decision| decision.paused)?;
        Some(PauseStatus {
            held: self.held_clients(service),
            backlog: self.orders.holds.backlogs.get(service).copied(),
            over: decision.is_pause_over(self.world.now_ms),
            ports: self.paused_ports(service),
        })
    }

    /// How clients wait at each port of a service if it is paused.
    fn paused_ports(&self, service: &str) -> Vec<PausedPort> {
        let failed = self.orders.holds.failed.get(service);
        let fronts: BTreeSet<Port> = self.world.fronts(service).into_values().flatten().collect();
        let mut reasons: BTreeMap<Port, String> = BTreeMap::new();
        let mut listening: BTreeSet<Port> = BTreeSet::new();
        for (form, group) in self.world.groups(service, own_uid()) {
            let reason = group.refused.or_else(|| failed?.get(&form).cloned());
            listening.extend(&group.fronts);
            if let Some(reason) = reason {
                reasons.extend(group.fronts.into_iter().map(|front| (front, reason.clone())));
            }
        }
        let mut held: BTreeSet<Port> = BTreeSet::new();
        for hold in self.world.holds.values().filter(|hold| hold.service == service) {
            let targets = hold.sockets.values().map(|socket| socket.port);
            held.extend(targets.flat_map(|target| hold.fronts.get(&target).into_iter().flatten()));
        }
        let port = |front: &Port| {
            let silent = || "no server that gets clients listens there".to_owned();
            let reason = reasons.get(front).cloned();
            let is_silent = !listening.contains(front) && !held.contains(front);
            PausedPort {
                port: front.to_string(),
                held: held.contains(front),
                reason: reason.or_else(|| is_silent.then(silent)),
            }
        };
        fronts.union(&held).map(port).collect()
    }

    /// Where clients are served now and could not be held, and why.
    pub(in crate::daemon) fn unheld(&self, service: &str) -> Option<String> {
        let failed = self.orders.holds.failed.get(service);
        let held = self.held_forms(service);
        let groups = self.world.groups(service, own_uid());
        let mut unheld = groups.into_iter().filter_map(|(form, group)| {
            let reason = group.refused.or_else(|| failed?.get(&form).cloned());
            let is_held = held.contains(&form);
            let reason =
                reason.or_else(|| (!is_held).then(|| "its listener was opened just now; try again".to_owned()))?;
            let fronts: Vec<String> = group.fronts.iter().map(Port::to_string).collect();
            Some(format!("those of {}: {reason}", fronts.join(", ")))
        });
        unheld.next()
    }

    /// The address and port of a listener that holds clients and whose queue no server's listener could get.
    pub(in crate::daemon) fn without_heir(&self, service: &str) -> Option<String> {
        let holds = self.world.holds.values().filter(|hold| hold.service == service);
        let mut forms = holds.flat_map(|hold| hold.sockets.values()).map(Form::from);
        let alone = forms.find(|form| !self.world.takes_held(service, form, own_uid()))?;
        Some(format!("{}", std::net::SocketAddr::new(alone.ip, alone.port.number)))
    }

    /// What an order does to clients, beside its own message. `held` clients are held before it takes effect.
    pub(in crate::daemon) fn told_of_clients(&self, service: &str, order: &Order, held: u64) -> Option<String> {
        match order {
            Order::Unpause if held > 0 => {
                let forms = self.held_forms(service);
                let taken = forms.iter().filter(|form| self.world.takes_held(service, form, own_uid())).count();
                Some(match taken {
                    0 => format!("{held} held clients are refused: no server listens as those before the pause did"),
                    _ if taken == forms.len() => format!("{held} held clients go to its servers"),
                    _ => format!(
                        "of {held} held clients, those go to its servers for which one listens as before; others are refused"
                    ),
                })
            }
            order if order.needs_hold() => {
                let backlog = self.orders.holds.backlogs.get(service).copied();
                Some(words(&self.paused_ports(service), backlog)).filter(|words| !words.is_empty())
            }
            _ => None,
        }
    }
}

/// How clients wait at these ports, as one line.
pub(crate) fn words(ports: &[PausedPort], backlog: Option<u32>) -> String {
    let mut parts = Vec::new();
    let held: Vec<&str> = ports.iter().filter(|port| port.held).map(|port| port.port.as_str()).collect();
    if !held.is_empty() {
        let limit = match backlog {
            Some(backlog) if backlog < BACKLOG_SMALL => {
                format!(" (at most {backlog} at a listener, and more wait as SYNs: net.core.somaxconn is small)")
            }
            Some(backlog) => format!(" (up to {backlog} at a listener)"),
            None => String::new(),
        };
        parts.push(format!("clients of {} are held{limit}", held.join(", ")));
    }
    for port in ports {
        match (&port.reason, port.held) {
            (Some(reason), true) => parts.push(format!("not all of {}: {reason}", port.port)),
            (Some(reason), false) => {
                parts.push(format!("SYNs to {} are discarded, and clients repeat them: {reason}", port.port));
            }
            (None, false) => parts.push(format!("SYNs to {} are discarded, and clients repeat them", port.port)),
            (None, true) => {}
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: &str, held: bool, reason: Option<&str>) -> PausedPort {
        PausedPort { port: port.to_owned(), held, reason: reason.map(str::to_owned) }
    }

    #[test]
    fn each_port_is_told() {
        let ports = [port("80", true, None), port("81", false, Some("its server belongs to the user 7"))];
        assert_eq!(
            words(&ports, Some(4096)),
            "clients of 80 are held (up to 4096 at a listener); SYNs to 81 are discarded, and clients repeat them: its server belongs \
             to the user 7"
        );
        assert!(words(&ports[..1], Some(128)).contains("at most 128 at a listener"));
        assert_eq!(words(&[port("80", true, Some("why"))], None), "clients of 80 are held; not all of 80: why");
        assert_eq!(words(&[], None), "");
    }
}
