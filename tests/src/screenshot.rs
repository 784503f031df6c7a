//! Pictures of a terminal, as SVG: kept in the directory that `POD_STEER_SCREENSHOTS` names, if it names any.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use vt100::{Cell, Color, Screen};

use crate::pty::Pty;

/// The size of a cell, and of a letter in it, in pixels.
const CELL_X: f64 = 8.4;
const CELL_Y: f64 = 18.0;
const LETTER: u32 = 14;
const MARGIN: f64 = 12.0;
/// The colours of the picture, and the first eight of a terminal.
const PAPER: &str = "#1c1e26";
const INK: &str = "#d8dae0";
const COLOURS: [&str; 8] = ["#3b3f4c", "#ef6b73", "#8ccf7e", "#e5c76b", "#67b0e8", "#c47fd5", "#6cbfbf", "#d8dae0"];

/// Keeps a picture of what a terminal shows.
pub fn keep(terminal: &Pty, name: &str) -> Result<()> {
    let Some(dir) = env::var_os("POD_STEER_SCREENSHOTS") else { return Ok(()) };
    let path = Path::new(&dir).join(format!("{name}.svg"));
    fs::write(&path, terminal.see(svg)).with_context(|| format!("writing {}", path.display()))
}

/// A picture of a screen, without the empty lines in its middle being removed.
fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (f64::from(columns) * CELL_X + 2.0 * MARGIN, f64::from(rows) * CELL_Y + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" font-family=\"DejaVu Sans Mono, \
         Menlo, Consolas, monospace\" font-size=\"{LETTER}\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{PAPER}\"/>\n"
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let Some(first) = screen.cell(row, column) else { break };
            let start = column;
            let mut text = String::new();
            while let Some(cell) = screen.cell(row, column).filter(|cell| alike(first, cell)) {
                text.push_str(if cell.has_contents() { cell.contents() } else { " " });
                column += 1;
            }
            run(&mut svg, first, &text, (row, start, column - start));
        }
    }
    svg + "</svg>\n"
}

fn alike(a: &Cell, b: &Cell) -> bool {
    let look =
        |cell: &Cell| (cell.fgcolor(), cell.bgcolor(), cell.bold(), cell.dim(), cell.inverse(), cell.underline());
    look(a) == look(b)
}

/// Adds cells beside each other that look alike.
fn run(svg: &mut String, look: &Cell, text: &str, (row, column, count): (u16, u16, u16)) {
    let (x, y) = (MARGIN + f64::from(column) * CELL_X, MARGIN + f64::from(row) * CELL_Y);
    let width = f64::from(count) * CELL_X;
    let colour = match look.fgcolor() {
        Color::Idx(number) => COLOURS[usize::from(number) % COLOURS.len()],
        _ => INK,
    };
    if look.inverse() {
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{CELL_Y}\" fill=\"{colour}\"/>"
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let colour = if look.inverse() { PAPER } else { colour };
    let mut style = String::new();
    for (is, attribute) in [
        (look.bold(), " font-weight=\"bold\""),
        (look.dim(), " fill-opacity=\"0.6\""),
        (look.underline(), " text-decoration=\"underline\""),
    ] {
        style.push_str(if is { attribute } else { "" });
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let line = y + CELL_Y - 5.0;
    // The length keeps cells below each other, whichever font there is.
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{line:.1}\" fill=\"{colour}\"{style} textLength=\"{width:.1}\" xml:space=\"preserve\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_look_alike_are_one_text() {
        let mut parser = vt100::Parser::new(1, 12, 0);
        parser.process(b"a<\x1b[31mb&b\x1b[0m \x1b[7mx");
        let svg = svg(parser.screen());
        for part in
            [">a&lt;</text>", "fill=\"#ef6b73\" textLength=\"25.2\" xml:space=\"preserve\">b&amp;b</text>", ">x</text>"]
        {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 2, "the paper, and behind the x");
    }
}
