//! Drawing of panels: colours, letters and a few shapes.

use svg::node::element::{Circle, Line, Rectangle, Text};

/// The width of a page on code forges, so that letters keep their size.
pub const WIDTH: f64 = 960.0;

pub const LETTERS: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif";

pub const PAPER: &str = "#ffffff";
pub const INK: &str = "#1f2328";
pub const MUTED: &str = "#59636e";
pub const GRID: &str = "#d8dee4";
/// The colour of pod-steer's bars.
pub const OURS: &str = "#1a7f64";
/// The colour of other bars.
pub const OTHERS: &str = "#9aa7b4";
/// The colour of a base.
pub const BASE: &str = "#5b6b7b";

/// Letters in panels.
pub const SIZE: f64 = 12.0;
/// From one row to the next, and how much of it is bar.
pub const STEP: f64 = 22.0;
pub const BAR: f64 = 14.0;
/// The width of a contestant's name, at the left of its row.
pub const NAMES: f64 = 108.0;

/// One decimal is less than a pixel.
fn round(number: f64) -> String {
    format!("{number:.1}")
}

pub fn text(x: f64, y: f64, size: f64, colour: &str, content: &str) -> Text {
    Text::new(content).set("x", round(x)).set("y", round(y)).set("font-size", size).set("fill", colour)
}

pub fn rectangle(x: f64, y: f64, width: f64, height: f64, colour: &str) -> Rectangle {
    let placed = Rectangle::new().set("x", round(x)).set("y", round(y));
    placed.set("width", round(width)).set("height", round(height)).set("fill", colour)
}

pub fn line((x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) -> Line {
    let from = Line::new().set("x1", round(x1)).set("y1", round(y1));
    from.set("x2", round(x2)).set("y2", round(y2)).set("stroke", colour)
}

pub fn circle(x: f64, y: f64, radius: f64) -> Circle {
    Circle::new().set("cx", round(x)).set("cy", round(y)).set("r", radius)
}

/// The weight of a row's letters.
pub fn weight(row: &str) -> &'static str {
    if row.starts_with("pod-steer") { "bold" } else { "normal" }
}

/// The colour of a row.
pub fn colour(row: &str) -> &'static str {
    if row.starts_with("pod-steer") {
        OURS
    } else if row.starts_with("direct") {
        BASE
    } else {
        OTHERS
    }
}
