//! Parses shares, weights, networks and times given on the command line. Pure. Each error is one line that quotes the invalid part and
//! says what to write.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;

use super::args::rollout::{self as args, CanaryArgs, DeployArgs, DrainArgs, EndingArgs, PauseArgs, ShiftArgs};
use crate::{
    duration,
    judge::{Judging, Mode, SLOWDOWN_MAX},
    labels::WEIGHT_MAX,
    rollout::{AtDeadline, CanaryOrder, DeployOrder, DrainOrder, PauseOrder, ShiftOrder, Watch},
    text::quoted,
};

/// 100 %, in hundredths of a percent.
const WHOLE: u32 = 10_000;

/// `deploy`'s order.
pub(super) fn deploy(args: &DeployArgs) -> Result<DeployOrder, String> {
    Ok(DeployOrder {
        version: version(&args.version)?,
        backends: args.backends,
        timeout_ms: time("--timeout", &args.timeout)?,
        // Zero is valid: do not wait for old connections.
        drain_timeout_ms: any_time("--drain-timeout", &args.drain_timeout)?,
        at_deadline: at_deadline(args.ending.at_deadline),
        close_idle_ms: close_idle(&args.ending)?,
        max_age_ms: max_age(&args.ending)?,
        close_rate: rate(&args.ending)?,
        stop_old: args.stop_old || args.keep_old.is_some(),
        keep_old_ms: args.keep_old.as_deref().map(|text| time("--keep-old", text)).transpose()?,
        recreate: args.recreate,
        allow_drop: args.allow_drop,
        max_hold_ms: args.max_hold.as_deref().map(|text| time("--max-hold", text)).transpose()?,
        watch: watch(args)?,
    })
}

/// `drain`'s order.
pub(super) fn drain(args: &DrainArgs) -> Result<DrainOrder, String> {
    let timeout = args.drain_timeout.as_deref().map(|text| any_time("--drain-timeout", text)).transpose()?;
    let ending = &args.ending;
    for (flag, is_given) in [
        ("--at-deadline", ending.at_deadline == args::AtDeadline::Reset),
        ("--close-idle", ending.close_idle.is_some()),
        ("--max-age", ending.max_age.is_some()),
    ] {
        if is_given && timeout.is_none() {
            return Err(format!("{flag} is refused: there is no deadline; give one, as in --drain-timeout 30s"));
        }
    }
    Ok(DrainOrder {
        version: args.part.version.clone(),
        backend: args.part.backend.clone(),
        drain_timeout_ms: timeout,
        at_deadline: at_deadline(ending.at_deadline),
        close_idle_ms: close_idle(ending)?,
        max_age_ms: max_age(ending)?,
        close_rate: rate(ending)?,
    })
}

/// `pause`'s order.
pub(super) fn pause(args: &PauseArgs) -> Result<PauseOrder, String> {
    Ok(PauseOrder { max_ms: args.max.as_deref().map(|text| time("--max", text)).transpose()? })
}

fn close_idle(given: &EndingArgs) -> Result<Option<u64>, String> {
    // Zero is valid: close none, whatever the service's label says.
    given.close_idle.as_deref().map(|text| any_time("--close-idle", text)).transpose()
}

fn max_age(given: &EndingArgs) -> Result<Option<u64>, String> {
    given.max_age.as_deref().map(|text| any_time("--max-age", text)).transpose()
}

/// `200/s`, or the number alone.
fn rate(given: &EndingArgs) -> Result<Option<u32>, String> {
    let Some(text) = given.rate.as_deref() else { return Ok(None) };
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(rate @ 1..) if number.starts_with(|c: char| c.is_ascii_digit()) => Ok(Some(rate)),
        _ => Err(format!("--rate {} is refused: it is no number a second; write it as in 200/s", quoted(text))),
    }
}

fn at_deadline(given: args::AtDeadline) -> AtDeadline {
    match given {
        args::AtDeadline::Leave => AtDeadline::Leave,
        args::AtDeadline::Reset => AtDeadline::Reset,
    }
}

/// `canary`'s order.
pub(super) fn canary(args: &CanaryArgs) -> Result<CanaryOrder, String> {
    Ok(CanaryOrder {
        version: version(&args.version)?,
        steps: steps(&args.steps)?,
        every_ms: time("--every", &args.every)?,
        timeout_ms: time("--timeout", &args.timeout)?,
        judge: judging(args.judge, &args.max_slowdown)?,
    })
}

fn watch(args: &DeployArgs) -> Result<Option<Watch>, String> {
    let judge = judging(args::Judge::On, &args.max_slowdown)?;
    let Some(watched) = args.watch.as_deref() else { return Ok(None) };
    Ok(Some(Watch { for_ms: time("--watch", watched)?, judge }))
}

fn judging(given: args::Judge, max_slowdown: &str) -> Result<Judging, String> {
    let mode = match given {
        args::Judge::On => Mode::On,
        args::Judge::Required => Mode::Required,
        args::Judge::Off => Mode::Off,
    };
    let number = max_slowdown.strip_suffix('%').unwrap_or(max_slowdown);
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    match number.parse() {
        Ok(max_slowdown_percent @ 1..=SLOWDOWN_MAX) if is_number => Ok(Judging { mode, max_slowdown_percent }),
        _ => Err(format!(
            "--max-slowdown {} is refused: write a whole percentage from 1% to {SLOWDOWN_MAX}%, as in 25%",
            quoted(max_slowdown)
        )),
    }
}

/// `shift`'s order.
pub(super) fn shift(args: &ShiftArgs) -> Result<ShiftOrder, String> {
    let order = ShiftOrder {
        weights: weights(&args.weights)?,
        balance: args.balance,
        from: networks(&args.from)?,
        not_from: args
            .no_from
            .iter()
            .map(|text| network("--no-from", text, text))
            .collect::<Result<BTreeSet<_>, _>>()?,
    };
    if let Some(both) = order.not_from.iter().find(|network| order.from.contains_key(network)) {
        return Err(format!("--from and --no-from both name {both}; give one of the two"));
    }
    if order.balance && !order.weights.is_empty() {
        return Err("--balance and weights exclude each other; give one of the two".to_owned());
    }
    if order == ShiftOrder::default() {
        return Err("nothing to change; give weights, as in v1=90 v2=10, or --from, --no-from or --balance".to_owned());
    }
    Ok(order)
}

/// Shortest interval of `top`: the daemon is not to be slowed.
const INTERVAL_MIN_MS: u64 = 200;

/// `top`'s interval, in milliseconds.
pub(super) fn interval(text: &str) -> Result<u64, String> {
    match time("--interval", text)? {
        ms @ 0..INTERVAL_MIN_MS => {
            let least = duration::show_ms(INTERVAL_MIN_MS);
            Err(format!("--interval {} is refused: it is too short; write at least {least}", duration::show_ms(ms)))
        }
        ms => Ok(ms),
    }
}

fn version(text: &str) -> Result<String, String> {
    match text.chars().find(|c| !c.is_ascii_graphic()) {
        None if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(format!(
            "version {} is refused: it has spaces or characters other than ASCII; `pod-steer status` lists the versions",
            quoted(text)
        )),
    }
}

fn any_time(flag: &str, text: &str) -> Result<u64, String> {
    let time = duration::parse(text).map_err(|error| format!("{flag} {} is refused: {error}", quoted(text)))?;
    Ok(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn time(flag: &str, text: &str) -> Result<u64, String> {
    match any_time(flag, text)? {
        0 => Err(format!("{flag} {} is refused: write more than 0, as in 30s", quoted(text))),
        ms => Ok(ms),
    }
}

/// Reads `1%,5%,25%,100%`.
fn steps(text: &str) -> Result<Vec<u32>, String> {
    let steps = text.split(',').map(|step| percent(step.trim())).collect::<Result<Vec<_>, _>>();
    let steps = steps.map_err(|error| format!("--steps {} is refused: {error}", quoted(text)))?;
    let wrong = |error: String| Err(format!("--steps {} is refused: {error}", quoted(text)));
    if let Some(pair) = steps.windows(2).find(|pair| pair[0] >= pair[1]) {
        return wrong(format!(
            "{} comes after {}; each step must be larger than the one before",
            Percent(pair[1]),
            Percent(pair[0])
        ));
    }
    match steps.last() {
        Some(&WHOLE) => Ok(steps),
        last => wrong(format!("the last step is {}; make it 100%", Percent(last.copied().unwrap_or_default()))),
    }
}

/// Hundredths of a percent.
fn percent(text: &str) -> Result<u32, String> {
    let shown = quoted(text);
    let example = "write a percentage, as in 5% or 0.25%";
    let Some(number) = text.strip_suffix('%') else {
        return Err(match text.parse::<f64>() {
            Ok(number) if number.is_finite() => format!("{shown} lacks the percent sign; {example}"),
            _ => format!("{shown} is not a percentage; {example}"),
        });
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if number.strip_prefix('-').is_some_and(|number| number.parse::<f64>().is_ok()) {
        return Err(format!("{shown} is negative; {example}"));
    }
    if !digits(whole) || !digits(part) {
        return Err(format!("{shown} is not a percentage; {example}"));
    }
    if part.len() > 2 {
        return Err(format!("{shown} has more than two digits after the point; {example}"));
    }
    let hundredths = whole.parse::<u32>().ok().and_then(|whole| whole.checked_mul(100));
    let part = part.parse::<u32>().unwrap_or_default() * if part.len() == 1 { 10 } else { 1 };
    match hundredths.and_then(|hundredths| hundredths.checked_add(part)) {
        Some(0) => Err(format!("{shown} sends no clients to the version; write more than 0%")),
        Some(hundredths) if hundredths <= WHOLE => Ok(hundredths),
        _ => Err(format!("{shown} is more than 100%")),
    }
}

/// Displays hundredths of a percent, as in `0.25%`.
pub(super) struct Percent(pub(super) u32);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part.is_multiple_of(10) => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

fn weights(items: &[String]) -> Result<BTreeMap<String, u32>, String> {
    let mut weights = BTreeMap::new();
    for item in items {
        let wrong = |error: String| format!("{} is refused: {error}", quoted(item));
        let (name, weight) =
            item.rsplit_once('=').ok_or_else(|| wrong("write a version and its weight, as in v1=90".to_owned()))?;
        let weight = weight_of(weight).map_err(wrong)?;
        if weights.insert(version(name)?, weight).is_some() {
            return Err(wrong(format!("{} has a weight already; give each version once", quoted(name))));
        }
    }
    if !weights.is_empty() && weights.values().all(|weight| *weight == 0) {
        return Err("every weight is 0, so no version would get connections; give one a higher weight, or use \
                    `pod-steer pause` or `pod-steer drain`"
            .to_owned());
    }
    Ok(weights)
}

fn weight_of(text: &str) -> Result<u32, String> {
    let range = format!("write a whole number from 0 to {WEIGHT_MAX}");
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(weight) if is_number && weight <= WEIGHT_MAX => Ok(weight),
        _ if is_number => Err(format!("the weight {text} is too large; {range}")),
        _ if text.strip_prefix('-').is_some_and(|text| text.parse::<f64>().is_ok()) => {
            Err(format!("the weight {text} is negative; {range}"))
        }
        _ => Err(format!("the weight {} is not a whole number; {range}", quoted(text))),
    }
}

fn networks(items: &[String]) -> Result<BTreeMap<IpNet, String>, String> {
    let mut networks = BTreeMap::new();
    for item in items {
        let example = "write a network and a version, as in 10.0.0.0/8=v2";
        let (text, name) =
            item.split_once('=').ok_or_else(|| format!("--from {} is refused: {example}", quoted(item)))?;
        let network = network("--from", item, text)?;
        if networks.insert(network, version(name)?).is_some() {
            return Err(format!("--from {} is refused: {network} is given twice", quoted(item)));
        }
    }
    Ok(networks)
}

fn network(flag: &str, item: &str, text: &str) -> Result<IpNet, String> {
    let wrong = |error: String| Err(format!("{flag} {} is refused: {error}", quoted(item)));
    let Ok(network) = text.parse::<IpNet>() else {
        return match text.parse::<std::net::IpAddr>() {
            Ok(ip) => wrong(format!("it has no prefix length; for this single address write {}", IpNet::from(ip))),
            Err(_) => wrong(format!("{} is not a network; write one, as in 10.0.0.0/8 or fd00::/8", quoted(text))),
        };
    };
    if network != network.trunc() {
        return wrong(format!("the address has bits beyond the prefix; did you mean {}?", network.trunc()));
    }
    Ok(network)
}

/// Milliseconds as a duration; zero if negative.
pub(super) fn ms(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests;
