//! One workload: a bar for each contestant, as long as its throughput relative to the direct listener.

use crate::report::{Better, Column, Row, Section, Spread};
use svg::node::element::{Group, Title};

use super::draw::{BAR, GRID, INK, MUTED, NAMES, SIZE, STEP, colour, line, rectangle, text, weight};
use crate::numbers;

/// Above the first bar, and below the last.
const HEAD: f64 = 48.0;
const FOOT: f64 = 20.0;
/// The width of the text at the right of each row, clear of every line.
const VALUES: f64 = 52.0;

/// The longest bar or line of a panel. All panels have the scale of the longest one, so that bars of one length are one ratio.
pub fn longest(section: &Section) -> f64 {
    let ratios = throughput(section)
        .into_iter()
        .flat_map(|column| section.rows.iter().filter_map(move |row| ratio(section, row, column)).collect::<Vec<_>>());
    let (high, median) =
        ratios.fold((1.0_f64, 1.0_f64), |(high, median), ratio| (high.max(ratio.high), median.max(ratio.median)));
    // One disturbed round must not make all bars short.
    high.min(1.2 * median)
}

/// The first measure of which more is better.
fn throughput(section: &Section) -> Option<&Column> {
    section.columns.iter().find(|column| column.better == Better::Higher)
}

/// The panel, and how high it is.
pub fn panel(section: &Section, (left, top): (f64, f64), width: f64, longest: f64) -> (Group, f64) {
    let mut panel = Group::new().add(text(left, top + 14.0, 14.0, INK, &section.title).set("font-weight", "bold"));
    let Some(column) = throughput(section) else { return (panel, HEAD) };
    let rows: Vec<(&Row, Spread)> =
        section.rows.iter().filter_map(|row| Some((row, ratio(section, row, column)?))).collect();
    if let Some(base) = base_of_most(section).and_then(|name| section.row(name)) {
        let value = base.values.get(&column.key).map_or("?".to_owned(), |figure| numbers::short(figure.value.median));
        let said = format!("1 = {value} {} ({})", column.title, base.title);
        panel = panel.add(text(left, top + 32.0, SIZE, MUTED, &said));
    }
    let zero = left + NAMES;
    let scale = (width - NAMES - VALUES) / longest;
    let bottom = top + HEAD + STEP * rows.len() as f64;
    for (at, mark) in [(0.0, "0"), (0.5, "0.5"), (1.0, "1")] {
        let x = zero + at * scale;
        panel = panel.add(line((x, top + HEAD - 4.0), (x, bottom), GRID));
        panel = panel.add(text(x, bottom + 14.0, 11.0, MUTED, mark).set("text-anchor", "middle"));
    }
    for (place, (row, ratio)) in rows.iter().enumerate() {
        let middle = top + HEAD + STEP * (place as f64 + 0.5);
        let value = text(left + width, middle + 4.0, SIZE, INK, &numbers::ratio(ratio.median));
        panel = panel.add(bar(row, ratio, (zero, middle), (scale, longest)));
        panel = panel.add(value.set("text-anchor", "end").set("font-weight", weight(&row.name)));
    }
    let x = zero + scale;
    let one = line((x, top + HEAD - 4.0), (x, bottom), INK).set("stroke-dasharray", "3 3");
    (panel.add(one), bottom + FOOT - top)
}

fn bar(row: &Row, ratio: &Spread, (zero, middle): (f64, f64), (scale, longest): (f64, f64)) -> Group {
    let name = text(zero - 8.0, middle + 4.0, SIZE, INK, &row.name).set("text-anchor", "end");
    let bar = rectangle(zero, middle - BAR / 2.0, ratio.median * scale, BAR, colour(&row.name)).set("rx", 2);
    let group =
        Group::new().add(Title::new(row.title.as_str())).add(name.set("font-weight", weight(&row.name))).add(bar);
    if ratio.low == ratio.high {
        return group;
    }
    let x = |ratio: f64| zero + ratio.min(longest) * scale;
    let whisker = group.add(line((x(ratio.low), middle), (x(ratio.high), middle), INK));
    // A line without an end extends beyond the panel.
    let ends = [ratio.low, ratio.high].into_iter().filter(|end| *end <= longest).map(x);
    ends.map(|x| line((x, middle - 3.5), (x, middle + 3.5), INK)).fold(whisker, Group::add)
}

/// The base itself is 1. A base of only a few rows is left out, since its bar would be meaningless.
fn ratio(section: &Section, row: &Row, column: &Column) -> Option<Spread> {
    let figure = row.values.get(&column.key)?;
    let itself = (base_of_most(section) == Some(row.name.as_str())).then(|| Spread::one(1.0));
    itself.or(figure.ratio).filter(|_| itself.is_some() || row.base.as_deref() != Some(row.name.as_str()))
}

/// The base of most ratios.
fn base_of_most(section: &Section) -> Option<&str> {
    let uses = |name: &str| section.rows.iter().filter(|row| row.base.as_deref() == Some(name)).count();
    let bases = section.rows.iter().filter_map(|row| row.base.as_deref());
    bases.max_by_key(|name| uses(name))
}
