//! What many tests assert: that kernel and clients count alike, and that shares follow weights.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, ensure};

use crate::{load::Tally, report, stats, status::Service};

/// Every connection of `tally` was answered, and the kernel's counters of the service, which has served nobody else, say
/// the same as the clients, to the connection.
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
        let share = backend.opened as f64 / service.opened() as f64;
        ensure!((backend.share - share).abs() < 0.001, "share of {} is {}, not {share}", backend.name, backend.share);
    }
    let bad: Vec<_> = service.counters.iter().filter(|(_, count)| **count > 0).collect();
    ensure!(bad.is_empty(), "nothing went wrong and yet: {bad:?}");
    Ok(())
}

/// The answers follow the weights at p > 0.001; prints them as a figure.
pub fn shares_follow(label: &str, tally: &Tally, weights: &[(&str, u64)]) -> Result<()> {
    let chi_square = stats::chi_square_agrees(&tally.by_name, weights).map_err(|error| anyhow!("{label}: {error}"))?;
    report::figure(label, format!("{:?} for weights {weights:?}, chi-square {chi_square:.2}", tally.by_name));
    Ok(())
}
