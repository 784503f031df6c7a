//! Assertions of many tests: kernel and clients count alike, and shares follow weights.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    daemon::Daemon,
    load::{Load, Tally},
    netns::NetNs,
    report, stats,
    status::Service,
};

/// Every connection of `tally` was answered, and the kernel's counters of the service, which has had no other clients, agree exactly
/// with the clients' counts.
pub fn kernel_agrees(service: &Service, tally: &Tally) -> Result<()> {
    ensure!(tally.losses.is_empty(), "connections were lost: {tally}");
    ensure!(tally.disguised.is_empty(), "addresses were rewritten: {:?}", tally.disguised);
    let answered: BTreeMap<String, u64> = tally.by_name.clone();
    let without_zero = |counts: BTreeMap<String, u64>| -> BTreeMap<String, u64> {
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    };
    for (counter, counts) in [
        ("steered", service.by_name(|backend| backend.steered)),
        ("opened", service.by_name(|backend| backend.opened)),
        ("closed", service.by_name(|backend| backend.closed)),
    ] {
        let counts = without_zero(counts);
        ensure!(counts == answered, "{counter} {counts:?} but clients were answered {answered:?}");
    }
    for backend in &service.backends {
        let served = backend.opened as f64 / service.opened() as f64;
        ensure!((backend.served - served).abs() < 0.001, "{} served {}, not {served}", backend.name, backend.served);
    }
    let bad: Vec<_> = service.counters.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(bad.is_empty(), "counters of failures must be zero: {bad:?}");
    Ok(())
}

/// The servers that have answered, over several loads that may lose no connection.
#[derive(Debug, Default)]
pub struct Answered(BTreeMap<String, u64>);

impl Answered {
    /// Adds the counts of a load.
    pub fn add(&mut self, tally: Tally) -> Result<()> {
        ensure!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally} {:?}", tally.disguised);
        for (name, count) in tally.by_name {
            *self.0.entry(name).or_default() += count;
        }
        Ok(())
    }

    /// Opens fifty connections to each address. The given backend must answer all of them.
    pub fn expect(&mut self, clients: &NetNs, expected: &[(&str, &str)]) -> Result<()> {
        for (target, name) in expected {
            let tally = Load::to(target.parse()?).count(50).run(clients)?;
            ensure!(tally.answered_by(name) == 50, "{target} is {name}'s: {tally}");
            self.add(tally)?;
        }
        Ok(())
    }

    /// The kernel's counters agree, for a service that has had one backend, of this name.
    pub fn agrees(&self, service: &Service, name: &str) -> Result<()> {
        let by_name = BTreeMap::from([(name.to_owned(), self.0.get(name).copied().unwrap_or(0))]);
        kernel_agrees(service, &Tally { by_name, ..Tally::default() })
    }
}

/// Connections of one measured load: enough for chi-square to tell a share that is off by a twentieth.
const CONNECTIONS: u64 = 12_000;

/// Opens 12,000 connections from `clients` to a service that has had no clients yet. Every one is answered, the kernel's counters agree
/// with the clients', and the shares follow the weights with a probability of error of 1 in 1,000,000. Measuring once more after a failure
/// would be no second opinion: the client's ports, of which the choice is a function, are mostly the same.
pub fn measured_shares(
    label: &str,
    daemon: &Daemon,
    clients: &NetNs,
    load: &Load,
    weights: &[(&str, u64)],
) -> Result<Service> {
    let service = weights.first().and_then(|(name, _)| daemon.service_of(name).transpose()).context("no weights")??;
    let tally = load.clone().count(CONNECTIONS).run(clients)?;
    let counted = daemon.wait_idle(&service)?;
    kernel_agrees(&counted, &tally)?;
    shares_follow(label, &tally, weights)?;
    Ok(counted)
}

/// The answers follow the weights, with a probability of error of 1 in 1,000,000. Prints them as a figure.
pub fn shares_follow(label: &str, tally: &Tally, weights: &[(&str, u64)]) -> Result<()> {
    let judged = stats::chi_square_agrees(&tally.by_name, weights);
    let chi_square = judged.map_err(|error| anyhow!("{label}: {error}"))?;
    report::figure(label, format!("{:?} for weights {weights:?}, chi-square {chi_square:.2}", tally.by_name));
    Ok(())
}
