//! Keeps the rules of the host's firewall that forwarded packets need: they are compared when forwarding begins, to a bridge or a family of
//! addresses too, when rules have changed, at each resync, and when connections that are forwarded do not open. One thread at a time asks or changes them.

use std::{collections::BTreeSet, io, time::Duration};

use rustix::io::Errno;
use tokio::{sync::mpsc::Sender, time::sleep};
use tracing::{info, warn};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    firewall::{self, Fault, Target},
    ids::BackendIndex,
    netlink::{Changes, Watch},
    world::Destination,
};

/// Changes of rules that come together are one.
const SETTLES: Duration = Duration::from_millis(100);
/// A host whose rules change all the time is compared so often.
const COMPARED_EVERY: Duration = Duration::from_secs(2);

/// The socket that tells of changes is opened again after so long if that failed.
const OPENED_EVERY: Duration = Duration::from_secs(30);

/// In events and conditions.
const FIREWALL: &str = "firewall";

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    is_busy: bool,
    /// It is to be compared again when that is done.
    is_stale: bool,
    /// Rules may be set.
    is_open: bool,
    /// The ways of packets for which rules were compared last.
    ways: BTreeSet<Way>,
}

/// A bridge, whether packets of either family are forwarded to it, and whether they are handed over past the rules.
type Way = (String, [bool; 2], bool);

fn way(target: &Target) -> Way {
    (target.bridge.clone(), [target.v4.is_some(), target.v6.is_some()], target.is_handed_over)
}

impl Firewall {
    /// `is_open` if an earlier daemon may have left rules.
    pub fn new(is_open: bool) -> Self {
        Self { is_open, ..Self::default() }
    }

    /// Whether rules may be set.
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}

/// What became of the rules.
#[derive(Debug)]
pub enum Rules {
    /// So many were changed, and this could not be done.
    Set(usize, Vec<Fault>),
    /// They are removed.
    Removed,
}

/// Sends an event for each change of rules, until the daemon ends.
async fn follow(inputs: &Sender<Event>) -> io::Result<()> {
    let mut watch = Watch::open(Changes::Rules)?;
    loop {
        watch.changed().await?;
        sleep(SETTLES).await;
        if inputs.send(Event::FirewallChanged).await.is_err() {
            return Ok(());
        }
        sleep(COMPARED_EVERY).await;
    }
}

impl Control {
    /// Sets the rules that are missing, or removes all of ours if nothing is forwarded.
    pub(super) fn compare_firewall(&mut self) {
        if self.firewall.is_busy {
            self.firewall.is_stale = true;
            return;
        }
        if self.world.forwarding.is_empty() {
            // What was attached may be repaired, and connections go on by the rules until then. Nothing is planned before the engines have
            // described their containers.
            let is_over = self.plan.forwarding().is_empty() && !self.engines.is_awaiting();
            if self.firewall.is_open && is_over {
                (self.firewall.is_busy, self.firewall.is_stale) = (true, false);
                self.effects.run(Event::Firewall(Rules::Removed), || {
                    firewall::remove();
                    Event::Firewall(Rules::Removed)
                });
            }
            return;
        }
        (self.firewall.is_busy, self.firewall.is_stale, self.firewall.is_open) = (true, false, true);
        let targets = self.firewall_targets();
        self.firewall.ways = targets.iter().map(way).collect();
        self.effects.run(Event::Firewall(Rules::Set(0, Vec::new())), move || {
            let (changed, faults) = firewall::allow(&targets);
            Event::Firewall(Rules::Set(changed, faults))
        });
    }

    /// Compares the rules if packets go other ways than before: no rule that an engine sets may tell of that.
    pub(super) fn compare_new_ways(&mut self) {
        if !self.world.forwarding.is_empty()
            && self.firewall_targets().iter().map(way).collect::<BTreeSet<_>>() != self.firewall.ways
        {
            self.compare_firewall();
        }
    }

    fn firewall_targets(&self) -> Vec<Target> {
        let target = |(index, of): (&BackendIndex, &Destination)| {
            let bridge = self.world.by_index(*index).and_then(|backend| backend.bridge.as_ref());
            let bridge = bridge.map(|bridge| bridge.name.clone()).unwrap_or_default();
            Target { bridge, v4: of.v4, v6: of.v6, is_handed_over: of.peer.is_some() }
        };
        self.plan.destinations.iter().map(target).collect()
    }

    /// Follows the changes of rules, and sends an event for each.
    pub(super) fn watch_firewall(&self) {
        let inputs = self.effects.inputs();
        tokio::spawn(async move {
            let mut is_told = false;
            loop {
                match follow(&inputs).await {
                    Ok(()) => return,
                    // nftables is not loaded yet.
                    Err(error) if error.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) => {}
                    Err(error) if !is_told => {
                        warn!(%error, "cannot follow changes of the firewall; its rules are compared every 30 s");
                        is_told = true;
                    }
                    Err(_) => {}
                }
                sleep(OPENED_EVERY).await;
            }
        });
    }

    pub(super) fn firewall_changed(&mut self) {
        if !self.world.forwarding.is_empty() {
            self.compare_firewall();
        }
    }

    pub(super) fn firewall_compared(&mut self, rules: &Rules) {
        self.firewall.is_busy = false;
        match rules {
            Rules::Set(changed, faults) => {
                if *changed > 0 {
                    info!(changed, "rules of the firewall let forwarded packets pass");
                }
                self.note_faults(faults);
            }
            Rules::Removed => {
                self.firewall.is_open = false;
                self.note_faults(&[]);
            }
        }
        if self.firewall.is_stale || self.world.forwarding.is_empty() == self.firewall.is_open {
            self.compare_firewall();
        }
    }

    fn note_faults(&mut self, faults: &[Fault]) {
        if faults.is_empty() {
            return self.conditions.clear(Reason::FirewallDrops, FIREWALL);
        }
        let message = faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ");
        // Both families often need the same.
        let remedies: BTreeSet<String> = faults.iter().map(Fault::remedy).collect();
        let remedy = remedies.into_iter().collect::<Vec<_>>().join("; ");
        self.conditions.set(FIREWALL, Condition::new(Reason::FirewallDrops, message, remedy));
    }
}
