//! `docs/benchmarks.svg`, rendered from a report: each contestant relative to a direct listener (`bars`), and the pauses of clients
//! around a switch (`swaps`). It has a background of its own, since pages are light or dark. `draw` has its colours and letters.

mod bars;
mod draw;
mod swaps;

use crate::report::Report;
use svg::Document;

use draw::{INK, MUTED, PAPER, WIDTH, rectangle, text};

/// The sections with a panel.
const WORKLOADS: [&str; 4] = ["new-connections", "keep-alive", "tls", "large"];

/// The space above the panels, and around them.
const HEAD: f64 = 94.0;
const MARGIN: f64 = 24.0;
const BETWEEN: f64 = 32.0;

/// A line holds about 150 letters of this size.
const HOW: [&str; 2] = [
    "Bar: median of the rounds. Line on a bar: the lowest and the highest round.",
    "The base of pod-steer-pod, pod-steer-bridge, pod-steer-bridge-peer, dnat and docker-p is direct-pod; that of docker-proxy is a direct listener with its client on the host.",
];

/// The whole picture.
pub fn plot(report: &Report) -> String {
    let mut panels = Vec::new();
    let mut top = HEAD;
    let workloads: Vec<_> = WORKLOADS.iter().filter_map(|name| report.section(name)).collect();
    let longest = workloads.iter().map(|section| bars::longest(section)).fold(1.0, f64::max);
    let half = (WIDTH - 2.0 * MARGIN - BETWEEN) / 2.0;
    for pair in workloads.chunks(2) {
        let mut height: f64 = 0.0;
        for (place, section) in pair.iter().enumerate() {
            let left = MARGIN + place as f64 * (half + BETWEEN);
            let (panel, used) = bars::panel(section, (left, top), half, longest);
            panels.push(panel);
            height = height.max(used);
        }
        top += height + BETWEEN;
    }
    if let Some(section) = report.section("hot-swap") {
        let (panel, used) = swaps::panel(section, MARGIN, top, WIDTH - 2.0 * MARGIN);
        panels.push(panel);
        top += used + BETWEEN;
    }
    let height = top - BETWEEN + MARGIN;
    let document = Document::new()
        .set("viewBox", format!("0 0 {WIDTH} {height}"))
        .set("width", WIDTH)
        .set("height", height)
        .set("font-family", draw::LETTERS)
        .add(rectangle(0.5, 0.5, WIDTH - 1.0, height - 1.0, PAPER).set("rx", 8).set("stroke", "#d0d7de"))
        .add(text(MARGIN, 34.0, 18.0, INK, "Throughput as a ratio to a direct listener").set("font-weight", "bold"))
        .add(text(MARGIN, 54.0, 12.0, MUTED, HOW[0]))
        .add(text(MARGIN, 71.0, 12.0, MUTED, HOW[1]));
    panels.into_iter().fold(document, Document::add).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_plot_has_every_contestant() {
        let plot = plot(&sample::report());
        for name in ["direct", "reuseport", "pod-steer", "haproxy", "docker-p"] {
            assert!(
                plot.contains(&format!(">{name}</text>")) || plot.lines().any(|line| line == name),
                "{name}: {plot}"
            );
        }
        assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
    }

    #[test]
    fn what_is_missing_has_no_panel() {
        let mut report = sample::report();
        let height = |report: &Report| plot(report).lines().count();
        let all = height(&report);
        report.sections.retain(|section| section.name != "hot-swap");
        assert!(height(&report) < all);
    }
}
