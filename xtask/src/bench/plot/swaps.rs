//! The hot swap: what a client that asks all the time sees around a switch. A point, as the gaps differ by powers of ten
//! and the axis is logarithmic: the length of a bar would say nothing.

use pod_steer_tests::measures::{Row, Section, Spread};
use svg::node::element::{Group, Title};

use super::draw::{GRID, INK, MUTED, NAMES, OTHERS, SIZE, STEP, circle, colour, line, text, weight};
use crate::bench::numbers;

const HEAD: f64 = 48.0;
const FOOT: f64 = 20.0;
/// What is written at the right of each row, and where in it each part starts.
const WORDS: f64 = 400.0;
const PARTS: [f64; 3] = [10.0, 166.0, 330.0];

/// The panel, and how high it is.
pub fn panel(section: &Section, left: f64, top: f64, width: f64) -> (Group, f64) {
    let title = "Hot swap: the longest gap between two answers, and the requests that failed";
    let how = "point: median of all swaps; line: the least and the worst swap; ring: the same client without a swap";
    let panel = Group::new().add(text(left, top + 14.0, 14.0, INK, title).set("font-weight", "bold")).add(text(
        left,
        top + 32.0,
        SIZE,
        MUTED,
        how,
    ));
    let rows: Vec<(&Row, Spread)> =
        section.rows.iter().filter_map(|row| Some((row, row.values.get("gap_ms")?.value))).collect();
    let ends = rows.iter().flat_map(|(_, gap)| [gap.low, gap.high]).filter(|gap| *gap > 0.0);
    let (least, most) = ends.fold((1.0_f64, 1000.0_f64), |(least, most), gap| (least.min(gap), most.max(gap)));
    let axis = Axis {
        zero: left + NAMES + 8.0,
        width: width - NAMES - 8.0 - WORDS,
        first: least.log10().floor(),
        last: most.log10().ceil(),
    };
    let bottom = top + HEAD + STEP * rows.len() as f64;
    let powers = axis.first as i32..=axis.last as i32;
    let panel = powers.fold(panel, |panel, power| {
        let ms = 10_f64.powi(power);
        let x = axis.at(ms);
        let mark = if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) };
        let mark = text(x, bottom + 14.0, 11.0, MUTED, &mark).set("text-anchor", "middle");
        panel.add(line((x, top + HEAD - 4.0), (x, bottom), GRID)).add(mark)
    });
    let lines = rows.iter().enumerate();
    let panel = lines.fold(panel, |panel, (place, (row, gap))| {
        let middle = top + HEAD + STEP * (place as f64 + 0.5);
        let start = left + width - WORDS;
        let words = PARTS.into_iter().zip(words(row, gap));
        let words = words.map(|(at, words)| text(start + at, middle + 4.0, SIZE, INK, &words));
        words.fold(panel.add(point(row, gap, &axis, middle)), Group::add)
    });
    (panel, bottom + FOOT - top)
}

/// From one power of ten to another.
struct Axis {
    zero: f64,
    width: f64,
    first: f64,
    last: f64,
}

impl Axis {
    fn at(&self, ms: f64) -> f64 {
        let place = (ms.log10().max(self.first) - self.first) / (self.last - self.first);
        self.zero + self.width * place
    }
}

fn point(row: &Row, gap: &Spread, axis: &Axis, middle: f64) -> Group {
    let name = text(axis.zero - 16.0, middle + 4.0, SIZE, INK, &row.name).set("text-anchor", "end");
    let range = line((axis.at(gap.low), middle), (axis.at(gap.high), middle), colour(&row.name)).set("stroke-width", 3);
    let median = circle(axis.at(gap.median), middle, 5.5).set("fill", colour(&row.name));
    let group = Group::new().add(Title::new(row.title.as_str())).add(name.set("font-weight", weight(&row.name)));
    let group = group.add(range.set("stroke-linecap", "round"));
    let group = match row.values.get("baseline_gap_ms") {
        Some(quiet) => {
            let ring = circle(axis.at(quiet.value.median), middle, 5.5).set("fill", "none");
            group.add(ring.set("stroke", OTHERS).set("stroke-width", 1.5))
        }
        None => group,
    };
    group.add(median)
}

/// `1.20 ms, worst 3.40 ms`, `0 of 12,345 failed`, `100 swaps`; what is not known is left out.
fn words(row: &Row, gap: &Spread) -> Vec<String> {
    let gaps = format!("{}, worst {}", time(gap.median), time(gap.high));
    let count = |key: &str| row.values.get(key).map(|figure| numbers::short(figure.value.median));
    let failed = match (count("failed"), count("requests")) {
        (Some(failed), Some(requests)) => format!("{failed} of {requests} failed"),
        (Some(failed), None) => format!("{failed} failed"),
        _ => String::new(),
    };
    let swaps = count("swaps").map(|swaps| format!("{swaps} swaps"));
    vec![gaps, failed, swaps.unwrap_or_default()]
}

fn time(ms: f64) -> String {
    if ms < 1000.0 { format!("{} ms", numbers::plain(ms)) } else { format!("{} s", numbers::plain(ms / 1000.0)) }
}
