//! From claims to rules. The kernel chooses a listener by the address that a client connects to and the device that its
//! packets come by. So a claim has a rule for each address and device to which a socket of its service is bound, and
//! one for all others only if a socket takes those. Where no socket of the service listens there is no rule, and the
//! kernel's own lookup decides; usually it refuses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    Backend, Claimed, Plan, Sockets,
    claims::{self, Claim, Refused},
    scope::Facts,
    score::{ANY_ADDRESS, Bound},
};
use crate::{
    condition::{Condition, Reason},
    ids::BackendId,
    ports::Port,
    rule::RuleKey,
};

/// A rule that a claim may have.
pub(super) struct Destination<'a> {
    pub key: RuleKey,
    pub claim: &'a Claim<'a>,
    /// What is recorded once it is claimed.
    pub claimed: Claimed,
}

/// The rules of all claims. Whether each is made also depends on its table.
pub(super) fn of<'a>(
    facts: &Facts<'_>,
    sockets: &Sockets<'_>,
    claims: &'a BTreeMap<RuleKey, Claim<'a>>,
) -> Vec<Destination<'a>> {
    let mut kept: BTreeMap<RuleKey, Vec<(&RuleKey, &Claimed)>> = BTreeMap::new();
    for (key, claimed) in facts.claimed.iter().copied() {
        kept.entry(claims::of_rule(key, claimed.of_port)).or_default().push((key, claimed));
    }
    let mut all = Vec::new();
    // Addresses of a port that a claim names come first: the claim on the whole port does not cover them.
    let mut named = BTreeSet::new();
    let (by_address, of_port): (Vec<_>, Vec<_>) = claims.iter().partition(|(key, _)| key.addr != ANY_ADDRESS);
    for (claim_key, claim) in by_address.into_iter().chain(of_port) {
        let listeners = listeners(sockets, claim_key, claim);
        let is_named = |key: &RuleKey| named.contains(&RuleKey { ifindex: 0, ..*key });
        let kept = kept.get(claim_key).map_or(&[][..], Vec::as_slice).iter();
        let kept = kept.filter(|(key, claimed)| claimed.service == claim.service && !is_named(key));
        let kept: BTreeMap<RuleKey, BTreeSet<BackendId>> = kept
            .map(|(key, claimed)| (**key, still_there(claim, claimed)))
            .filter(|(key, there)| key == claim_key || !there.is_empty())
            .collect();
        let mut keys = wanted(claim_key, &listeners, kept.keys().copied());
        keys.retain(|key| !is_named(key));
        keys.extend(kept.keys());
        if claim_key.addr != ANY_ADDRESS && !keys.is_empty() {
            named.insert(*claim_key);
        }
        for key in keys {
            let (service, of_port) = (claim.service.to_owned(), claim_key.addr == ANY_ADDRESS);
            let now = listeners.iter().filter(|(_, bound)| is_for(bound, &key, claim_key));
            let mut ids: BTreeSet<BackendId> = now.map(|(backend, _)| backend.id.clone()).collect();
            ids.extend(kept.get(&key).into_iter().flatten().cloned());
            all.push(Destination { key, claim, claimed: Claimed { service, of_port, listeners: Some(ids) } });
        }
    }
    all
}

/// The backends for which a rule was made that still exist.
fn still_there(claim: &Claim<'_>, claimed: &Claimed) -> BTreeSet<BackendId> {
    let ids = claim.parts.iter().map(|(backend, _)| &backend.id);
    ids.filter(|id| claimed.listeners.as_ref().is_none_or(|listeners| listeners.contains(*id))).cloned().collect()
}

/// Whether a socket is bound exactly as a rule specifies.
fn is_for(bound: &Bound, key: &RuleKey, claim_key: &RuleKey) -> bool {
    let same_address = key.addr == claim_key.addr || bound.address(key.family) == Some(key.addr);
    same_address && bound.ifindex == key.ifindex && bound.score(key).is_some()
}

/// How the listeners of a claim's backends are bound, each way once.
fn listeners<'a>(sockets: &Sockets<'_>, claim_key: &RuleKey, claim: &Claim<'a>) -> Vec<(&'a Backend, Bound)> {
    let takes = |bound: &Bound| match bound.address(claim_key.family) {
        Some(ANY_ADDRESS) => true,
        Some(addr) => claim_key.addr == ANY_ADDRESS || addr == claim_key.addr,
        None => false,
    };
    let of = |(backend, port): &(&'a Backend, Port)| {
        let backend = *backend;
        let ways = sockets.ways(backend.index, claim_key.netns_cookie, *port).iter();
        ways.map(move |(bound, _)| (backend, *bound))
    };
    claim.parts.iter().flat_map(of).filter(|(_, bound)| takes(bound)).collect()
}

/// The rules that a claim needs now. Of the addresses and devices on which a socket listens or has listened, these are
/// the ones that a socket takes.
fn wanted(
    claim_key: &RuleKey,
    listeners: &[(&Backend, Bound)],
    kept: impl Iterator<Item = RuleKey>,
) -> BTreeSet<RuleKey> {
    let (mut addrs, mut devices) = (BTreeSet::from([claim_key.addr]), BTreeSet::from([0]));
    for (_, bound) in listeners {
        addrs.extend(bound.address(claim_key.family).filter(|addr| *addr != ANY_ADDRESS));
        devices.insert(bound.ifindex);
    }
    addrs.extend(kept.map(|key| key.addr));
    let keys = addrs.into_iter().flat_map(|addr| devices.iter().map(move |&ifindex| (addr, ifindex)));
    let keys = keys.map(|(addr, ifindex)| RuleKey { addr, ifindex, ..*claim_key });
    keys.filter(|key| listeners.iter().any(|(_, bound)| bound.score(key).is_some())).collect()
}

/// Reports each backend that listens where an unmanaged listener keeps the port.
pub(super) fn report_refused(sockets: &Sockets<'_>, refused: &[Refused<'_>], plan: &mut Plan) {
    for Refused { key, backend, port, condition } in refused {
        let mut own = sockets.ways(backend.index, key.netns_cookie, *port).iter();
        if own.any(|(bound, _)| bound.surely().address(key.family).is_some()) {
            plan.add_condition(backend.index, condition.clone());
        }
    }
}

/// Reports each backend that listens at another address than the one that its service claims.
pub(super) fn report_elsewhere(sockets: &Sockets<'_>, claims: &BTreeMap<RuleKey, Claim<'_>>, plan: &mut Plan) {
    for (key, claim) in claims.iter().filter(|(key, _)| key.addr != ANY_ADDRESS) {
        let listeners = listeners(sockets, key, claim);
        for (backend, port) in &claim.parts {
            if listeners.iter().any(|(other, _)| other.index == backend.index) {
                continue;
            }
            let own = sockets.of(backend.index).filter(|(_, socket)| socket.port == *port);
            let own: BTreeSet<String> =
                own.map(|(_, socket)| SocketAddr::new(socket.ip, port.number).to_string()).collect();
            if !own.is_empty() {
                let own = own.into_iter().collect::<Vec<_>>().join(" and ");
                let addr = crate::address::address_from_bytes(key.family, key.addr);
                let condition = Condition::new(
                    Reason::OtherAddress,
                    format!("it listens on {own}, not at {addr}, which its service claims"),
                    "configure it to listen there or on every address, or claim the address that it listens on",
                );
                plan.add_condition(backend.index, condition);
            }
        }
    }
}
