//! The hot swap: the pauses of a client without pauses of its own around a switch. Points, not bars: the pauses differ by powers of ten,
//! and on a logarithmic axis the length of a bar is meaningless.

use crate::report::{Row, Section, Spread};
use svg::node::element::{Group, Title};

use super::draw::{GRID, INK, MUTED, NAMES, SIZE, circle, colour, line, text, weight};
use crate::numbers;

const HEAD: f64 = 64.0;
const FOOT: f64 = 20.0;
/// The distance from one contestant to the next, and of its two lines from its middle.
const ROW: f64 = 44.0;
const HALF: f64 = 9.0;
/// The width of the text at the right of each row, and the start of its second part.
const WORDS: f64 = 440.0;
const COUNTS: f64 = 270.0;

/// A contestant, its pause between old answers and new, and its longest one.
type Pauses<'a> = (&'a Row, Option<Spread>, Spread);

/// The panel, and how high it is.
pub fn panel(section: &Section, left: f64, top: f64, width: f64) -> (Group, f64) {
    let title = "Hot swap: the pauses that a client sees, and the requests that failed";
    let how = [
        "upper line: the pause between answers of the old version and the new; lower line: the longest pause around the swap",
        "point: median of all swaps; line: the least and the worst swap; ring: the longest pause of the same client without a swap",
    ];
    let panel = Group::new().add(text(left, top + 14.0, 14.0, INK, title).set("font-weight", "bold"));
    let panel = panel.add(text(left, top + 32.0, SIZE, MUTED, how[0])).add(text(left, top + 48.0, SIZE, MUTED, how[1]));
    let value = |row: &Row, key: &str| row.values.get(key).map(|figure| figure.value);
    let rows: Vec<Pauses<'_>> =
        section.rows.iter().filter_map(|row| Some((row, value(row, "switch_gap_ms"), value(row, "gap_ms")?))).collect();
    let pauses = rows.iter().flat_map(|(_, switch, longest)| switch.iter().chain([longest]));
    let ends = pauses.flat_map(|pause| [pause.low, pause.high]).filter(|pause| *pause > 0.0);
    let (least, most) = ends.fold((1.0_f64, 1000.0_f64), |(least, most), pause| (least.min(pause), most.max(pause)));
    let axis = Axis {
        zero: left + NAMES + 8.0,
        width: width - NAMES - 8.0 - WORDS,
        first: least.log10().floor(),
        last: most.log10().ceil(),
    };
    let bottom = top + HEAD + ROW * rows.len() as f64;
    let powers = axis.first as i32..=axis.last as i32;
    let panel = powers.fold(panel, |panel, power| {
        let ms = 10_f64.powi(power);
        let x = axis.at(ms);
        let mark = if ms < 1000.0 { format!("{ms} ms") } else { format!("{} s", ms / 1000.0) };
        let mark = text(x, bottom + 14.0, 11.0, MUTED, &mark).set("text-anchor", "middle");
        panel.add(line((x, top + HEAD - 4.0), (x, bottom), GRID)).add(mark)
    });
    let lines = rows.iter().enumerate();
    let panel = lines.fold(panel, |panel, (place, pauses)| {
        let middle = top + HEAD + ROW * (place as f64 + 0.5);
        let start = left + width - WORDS;
        let words = words(pauses).into_iter().map(|(x, y, words)| text(start + x, middle + y + 4.0, SIZE, INK, &words));
        words.fold(panel.add(contestant(pauses, &axis, middle)), Group::add)
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

fn contestant((row, switch, longest): &Pauses<'_>, axis: &Axis, middle: f64) -> Group {
    let name = text(axis.zero - 16.0, middle + 4.0, SIZE, INK, &row.name).set("text-anchor", "end");
    let group = Group::new().add(Title::new(row.title.as_str())).add(name.set("font-weight", weight(&row.name)));
    let group = match switch {
        Some(switch) => pause(group, row, switch, axis, middle - HALF),
        None => group,
    };
    let group = match row.values.get("baseline_gap_ms") {
        Some(quiet) => {
            let ring = circle(axis.at(quiet.value.median), middle + HALF, 6.0).set("fill", "none");
            group.add(ring.set("stroke", MUTED).set("stroke-width", 1.5))
        }
        None => group,
    };
    pause(group, row, longest, axis, middle + HALF)
}

/// A point, and a line with its ends.
fn pause(group: Group, row: &Row, pause: &Spread, axis: &Axis, y: f64) -> Group {
    let (low, high) = (axis.at(pause.low), axis.at(pause.high));
    let cap = |x: f64| line((x, y - 4.0), (x, y + 4.0), colour(&row.name)).set("stroke-width", 1.5);
    let range = line((low, y), (high, y), colour(&row.name)).set("stroke-width", 1.5);
    let median = circle(axis.at(pause.median), y, 4.0).set("fill", colour(&row.name));
    group.add(range).add(cap(low)).add(cap(high)).add(median)
}

/// Beside each line its pause, and further right `0 of 12,345 failed` and `100 swaps`. Unknown values are left out.
fn words((row, switch, longest): &Pauses<'_>) -> Vec<(f64, f64, String)> {
    let pause = |what: &str, pause: &Spread| format!("{what} {}, worst {}", time(pause.median), time(pause.high));
    let count = |key: &str| row.values.get(key).map(|figure| numbers::short(figure.value.median));
    let failed = match (count("failed"), count("requests")) {
        (Some(failed), Some(requests)) => format!("{failed} of {requests} failed"),
        (Some(failed), None) => format!("{failed} failed"),
        _ => String::new(),
    };
    let swaps = count("swaps").map(|swaps| format!("{swaps} swaps")).unwrap_or_default();
    let switch = switch.map(|switch| pause("old to new", &switch)).unwrap_or_default();
    vec![(10.0, -HALF, switch), (10.0, HALF, pause("longest", longest)), (COUNTS, -HALF, failed), (COUNTS, HALF, swaps)]
}

fn time(ms: f64) -> String {
    if ms < 1000.0 { format!("{} ms", numbers::plain(ms)) } else { format!("{} s", numbers::plain(ms / 1000.0)) }
}
