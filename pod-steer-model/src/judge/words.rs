//! Judgements in words.
#![forbid(unsafe_code)]

use pod_steer_ebpf::FIRST_BYTE_BUCKETS;

use super::{
    Compared, ERROR, Judging, SAMPLE_MIN, Side,
    quantile::{self, Slow},
    share::{HTTP, Kind, OLDER, Share},
};
use crate::text::count;

/// What a version is worse in.
pub(super) fn more(version: &str, compared: &Compared, kind: &Kind, new: Share, old: Share) -> String {
    format!("{version} {}: {}, {} {}; {}", kind.does, of(new, kind), compared.others, of(old, kind), certainty())
}

fn of(share: Share, kind: &Kind) -> String {
    format!("{} of {} ({})", share.faults, count(share.all, kind.of), percent(share))
}

/// That its first byte comes later.
pub(super) fn slower(version: &str, compared: &Compared, judging: &Judging, slow: &Slow) -> String {
    format!(
        "{version} is slower by more than {}%: 99% of its answers begin within {}, those of {} within {}; {}",
        judging.max_slowdown_percent,
        time(slow.new_ns),
        compared.others,
        time(slow.old_ns),
        certainty()
    )
}

fn certainty() -> String {
    format!("chance explains that in less than one of {:.0} canaries", 1.0 / ERROR)
}

/// Why a kind was not judged.
pub(super) fn too_few(kind: &Kind, new: Share, old: Share, compared: &Compared) -> Option<String> {
    let what = match kind.of {
        HTTP if !compared.reads_http => {
            let reads = "status codes are not read (pod-steer.observe=http reads those of HTTP/1 in plain text)";
            return Some(reads.to_owned());
        }
        HTTP => "status codes: connections with an answer by HTTP/1",
        OLDER => "answers that do not come: connections that are old enough",
        // All other kinds have the same sample.
        _ if kind.does.starts_with("resets") => "ends of connections",
        _ => return None,
    };
    Some(format!("{what}: {} and {} of at least {SAMPLE_MIN}", new.all, old.all))
}

/// What was not read of the answers that were counted.
pub(super) fn unread(compared: &Compared) -> Option<String> {
    let [new, old] = [&compared.new, &compared.old].map(|side| side.observed.unread);
    (new + old > 0).then(|| {
        format!(
            "{} and {} are not HTTP/1 in plain text: their status is unknown, and with TLS the first byte is that of its handshake",
            count(new, "answer"),
            count(old, "answer")
        )
    })
}

/// Why times were not judged.
pub(super) fn too_few_times(new: &[u64; FIRST_BYTE_BUCKETS], old: &[u64; FIRST_BYTE_BUCKETS], error: f64) -> String {
    let (new, old): (u64, u64) = (new.iter().sum(), old.iter().sum());
    format!("time to the first byte: {new} and {old} of at least {} answers", quantile::smallest(error))
}

/// The figures of both versions.
pub(super) fn figures(version: &str, compared: &Compared) -> String {
    if compared.others.is_empty() {
        return String::new();
    }
    let before = if compared.is_before { " before" } else { "" };
    let [new, old] = compared.one_of.map(|one_of| match one_of {
        0 | 1 => String::new(),
        one_of => format!(" (one of {one_of} connections)"),
    });
    format!(
        "{version}{new}: {}; {}{before}{old}: {}",
        side(&compared.new, compared),
        compared.others,
        side(&compared.old, compared)
    )
}

fn side(side: &Side, compared: &Compared) -> String {
    let seen = &side.observed;
    let mut parts = vec![
        count(seen.ended, "connection"),
        format!("{} reset", seen.reset),
        format!("{} without an answer", seen.empty + seen.left),
        count(seen.answered, "answer"),
    ];
    parts.extend(quantile::percentile(&seen.first_byte).map(|ns| format!("99% begin within {}", time(ns))));
    if compared.reads_http {
        parts.push(format!("{} 5xx", seen.classes[3]));
        if seen.unread > 0 {
            parts.push(format!("{} not HTTP/1", seen.unread));
        }
    }
    if seen.retransmitted > 0 {
        parts.push(format!("{} sent again", count(seen.retransmitted, "segment")));
    }
    if let Some([cpu, memory]) = side.pressure_us {
        parts.push(format!("waited {} for a processor", time(cpu.saturating_mul(1_000))));
        if memory > 0 {
            parts.push(format!("{} for memory", time(memory.saturating_mul(1_000))));
        }
    }
    parts.join(", ")
}

fn percent(share: Share) -> String {
    format!("{:.1}%", share.part() * 100.0)
}

/// A time in milliseconds with three digits at most behind the point, or in seconds.
fn time(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        ..1_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}
