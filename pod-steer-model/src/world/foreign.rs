//! Unmanaged listeners. A service takes a port only if that takes clients from none of them. A listener on every
//! address keeps the port, unless the service declares the fallback `pass`. A listener on a single address or device
//! keeps its clients by a rule that leaves them to the kernel's own lookup. This holds for listeners that were there
//! when the rule that would take their clients was made. A listener that comes to a claimed port later gets no clients.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use pod_steer_ebpf::{FALLBACK_REFUSE, FAMILY_V4, FAMILY_V6, RULE_FOREIGN, RULE_HIDDEN};

use super::{
    Plan, PlannedRule, World,
    score::{ANY_ADDRESS, Bound},
};
use crate::{
    ids::{NetnsCookie, SocketCookie},
    listener::Listener,
    ports::Port,
    rule::RuleKey,
};

/// Rules that leave clients to an unmanaged listener, with its cookie if that is known.
pub type Left = BTreeMap<RuleKey, Option<SocketCookie>>;

/// The unmanaged listeners, by namespace and port.
pub(super) struct Foreign<'a> {
    world: &'a World,
    by_port: BTreeMap<(NetnsCookie, Port), Vec<&'a Listener>>,
}

impl<'a> Foreign<'a> {
    pub fn new(world: &'a World) -> Self {
        let mut by_port: BTreeMap<(NetnsCookie, Port), Vec<&Listener>> = BTreeMap::new();
        for (netns_cookie, listeners) in &world.foreign {
            for listener in listeners.iter().filter(|listener| !is_managed(world, *netns_cookie, listener)) {
                by_port.entry((*netns_cookie, listener.port)).or_default().push(listener);
            }
        }
        Self { world, by_port }
    }

    /// The listeners that take clients of a rule's port and family, each with the rule that it would have if it were
    /// managed.
    fn beside(&self, key: &RuleKey) -> impl Iterator<Item = (RuleKey, &'a Listener)> + use<'a> {
        let key = *key;
        let here = self.by_port.get(&(key.netns_cookie, key.port)).cloned().unwrap_or_default().into_iter();
        here.filter_map(move |listener| {
            let addr = Bound::from(listener).address(key.family)?;
            Some((RuleKey { addr, ifindex: listener.ifindex, ..key }, listener))
        })
    }

    /// A listener that takes every client of a claim, or would.
    pub fn has(&self, claim_key: &RuleKey) -> Option<&'a Listener> {
        let has = |own: &RuleKey| own.ifindex == 0 && (own.addr == ANY_ADDRESS || own.addr == claim_key.addr);
        self.beside(claim_key).find(|(own, _)| has(own)).map(|(_, listener)| listener)
    }

    /// A listener whose clients are exactly those of a rule that is about to be made.
    pub fn is_at(&self, key: &RuleKey) -> Option<&'a Listener> {
        if self.world.claimed.contains_key(key) {
            return None;
        }
        self.beside(key).find(|(own, _)| own == key).map(|(_, listener)| listener)
    }

    /// Adds the rules that leave their clients to these listeners, and returns them.
    pub fn leave(&self, plan: &mut Plan) -> Left {
        let mut by_port: BTreeMap<RuleKey, Vec<RuleKey>> = BTreeMap::new();
        let refuse = plan.rules.iter().filter(|(_, rule)| rule.fallback == FALLBACK_REFUSE);
        for (key, _) in refuse {
            by_port.entry(key.of_port()).or_default().push(*key);
        }
        let mut left = Left::new();
        for (port, rules) in by_port {
            // Until a namespace has been surveyed, assume what an earlier daemon knew of it.
            let unknown = !self.world.foreign.contains_key(&port.netns_cookie);
            let kept = self.world.left.iter().filter(|(key, _)| unknown && key.of_port() == port);
            let kept: Vec<(RuleKey, Option<SocketCookie>)> = kept.map(|(key, cookie)| (*key, *cookie)).collect();
            let listeners = self.beside(&port).map(|(key, listener)| (key, listener.cookie));
            for (key, cookie) in kept.into_iter().chain(listeners) {
                let mut taking = rules.iter().filter(|rule| takes_from(rule, &key)).peekable();
                let was_left = self.world.left.get(&key).is_some_and(|before| before.is_none() || *before == cookie);
                let Some(first) = taking.peek().copied().copied() else { continue };
                if plan.rules.contains_key(&key)
                    || !(was_left || taking.all(|rule| !self.world.claimed.contains_key(rule)))
                {
                    continue;
                }
                let service = plan.rules.get(&first).and_then(|rule| rule.service.clone());
                plan.rules.insert(key, PlannedRule { service, flags: RULE_FOREIGN, ..PlannedRule::default() });
                left.insert(key, cookie);
            }
        }
        left
    }
}

/// Whether a lookup for a client of this listener might find `rule`, if the listener had no rule of its own.
fn takes_from(rule: &RuleKey, listener: &RuleKey) -> bool {
    // A lookup tries keys with a lower rank first.
    let rank = |key: &RuleKey| (key.addr == ANY_ADDRESS, key.ifindex == 0);
    let same_address = rule.addr == ANY_ADDRESS || rule.addr == listener.addr;
    let same_device = rule.ifindex == 0 || listener.ifindex == 0 || rule.ifindex == listener.ifindex;
    same_address && same_device && rank(rule) > rank(listener)
}

fn is_managed(world: &World, netns_cookie: NetnsCookie, listener: &Listener) -> bool {
    match listener.cookie {
        Some(cookie) => world.sockets.contains_key(&cookie),
        None => world.sockets.values().any(|socket| {
            let port = socket.hidden_port.unwrap_or(socket.port);
            (socket.netns_cookie, socket.ip, port) == (netns_cookie, listener.ip, listener.port)
        }),
    }
}

/// The place where a listener listens, for messages.
pub(super) fn place(listener: &Listener) -> String {
    let mut place = SocketAddr::new(listener.ip, listener.port.number).to_string();
    if listener.ifindex != 0 {
        place.push_str(&format!(" on interface {}", listener.ifindex));
    }
    if let (IpAddr::V6(_), Some(true)) = (listener.ip, listener.v6only) {
        place.push_str(" (IPv6 only)");
    }
    place
}

/// Unmanaged listeners that get no clients, because they came to a claimed port: the place, and the service.
pub fn without_clients(world: &World, plan: &Plan) -> BTreeMap<String, String> {
    let foreign = Foreign::new(world);
    let mut without = BTreeMap::new();
    for ((netns_cookie, port), listeners) in &foreign.by_port {
        for (listener, family) in listeners.iter().flat_map(|listener| [(listener, FAMILY_V4), (listener, FAMILY_V6)]) {
            let Some(addr) = Bound::from(*listener).address(family) else { continue };
            let own = RuleKey { netns_cookie: *netns_cookie, addr, port: *port, family, ifindex: listener.ifindex };
            let same = [(own.addr, own.ifindex), (own.addr, 0), (ANY_ADDRESS, own.ifindex), (ANY_ADDRESS, 0)];
            let rules = same.map(|(addr, ifindex)| plan.rules.get(&RuleKey { addr, ifindex, ..own }));
            // The first rule that exists. One that only marks that others exist decides nothing.
            let rule = rules.into_iter().flatten().find(|rule| rule.table.is_some() || rule.flags & RULE_FOREIGN != 0);
            let takes = rule.filter(|rule| rule.flags & (RULE_FOREIGN | RULE_HIDDEN) == 0);
            let takes = takes.filter(|rule| rule.table.is_some() && rule.fallback == FALLBACK_REFUSE);
            if let Some(service) = takes.and_then(|rule| rule.service.clone()) {
                without.insert(place(listener), service);
            }
        }
    }
    without
}
