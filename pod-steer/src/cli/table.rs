//! Plain aligned columns, as wide as their content on a terminal. If the terminal is too narrow, names are shortened in the middle, because
//! their beginnings and ends distinguish them.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::text::visible;

/// Minimum width of a name.
const NAME_COLUMNS_MIN: usize = 8;
/// Columns between two cells.
const GAP: usize = 2;

/// One cell, and how to colour it on a terminal (an SGR code, or nothing).
pub(super) struct Cell {
    text: String,
    colour: &'static str,
    right: bool,
    /// It may be shortened.
    name: bool,
}

impl Cell {
    /// Text, to the left.
    pub(super) fn text(text: impl Into<String>) -> Self {
        // No control characters: text in a table must not move the cursor or change colours.
        let text = text.into().replace(char::is_control, "\u{fffd}");
        Self { text, colour: "", right: false, name: false }
    }

    /// A name, which is shortened if there is no room for it.
    pub(super) fn name(text: impl Into<String>) -> Self {
        Self { name: true, ..Self::text(text) }
    }

    /// A number, to the right.
    pub(super) fn number(number: impl ToString) -> Self {
        Self { right: true, ..Self::text(number.to_string()) }
    }

    /// With a colour.
    pub(super) fn coloured(self, colour: &'static str) -> Self {
        Self { colour, ..self }
    }
}

/// Shortens a text to a width by removing its middle.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let end: String = fitting(text.chars().rev(), room / 2).chars().rev().collect();
    let begin = fitting(text.chars(), room - end.width());
    format!("{begin}…{end}")
}

/// The first characters, as many as fit.
pub(super) fn fitting(chars: impl Iterator<Item = char>, columns: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or_default();
            used <= columns
        })
        .collect()
}

/// Wraps a text between words, with a margin. Long words are not broken.
pub(super) fn wrapped(margin: &str, text: &str, columns: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.width());
        if line > 0 && margin.width() + line + 1 + word.width() > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&visible(word));
        }
    }
    lines.into_iter().filter(|line| !line.is_empty()).map(|line| format!("{margin}{line}\n")).collect()
}

/// Renders the table without trailing blanks. Shortens names to fit the width, as far as possible.
pub(super) fn render(head: &[&str], rows: &[Vec<Cell>], colours: bool, columns: Option<usize>) -> String {
    let widths = widths(head, rows, columns);
    let right = |column: usize| rows.first().and_then(|row| row.get(column)).is_some_and(|cell| cell.right);
    let mut text = String::new();
    let heads: Vec<Cell> =
        head.iter().enumerate().map(|(i, name)| Cell { right: right(i), ..Cell::text(*name).coloured("1") }).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            let shown = if cell.name { shortened(&cell.text, *width) } else { cell.text.clone() };
            let pad = " ".repeat(width.saturating_sub(shown.width()));
            let shown =
                if colours && !cell.colour.is_empty() { format!("\x1b[{}m{shown}\x1b[0m", cell.colour) } else { shown };
            line.push_str(&if cell.right { pad + &shown } else { shown + &pad });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The width of each column. The widest names are shortened first.
fn widths(head: &[&str], rows: &[Vec<Cell>], columns: Option<usize>) -> Vec<usize> {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| {
        let cells = cells(column).map(|cell| cell.text.width());
        cells.chain(head.get(column).map(|name| name.width())).max().unwrap_or_default()
    };
    let mut widths: Vec<usize> = (0..head.len()).map(width).collect();
    let Some(columns) = columns else { return widths };
    let names: Vec<usize> = (0..head.len()).filter(|column| cells(*column).any(|cell| cell.name)).collect();
    let min = |column: usize| NAME_COLUMNS_MIN.max(head[column].width());
    while widths.iter().sum::<usize>() + GAP * head.len().saturating_sub(1) > columns {
        let Some(widest) = names.iter().copied().filter(|c| widths[*c] > min(*c)).max_by_key(|c| widths[*c]) else {
            break;
        };
        widths[widest] -= 1;
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_middle() {
        for (text, columns, shown) in [
            ("shop-web-v2-12", 14, "shop-web-v2-12"),
            ("shop-web-v2-12", 13, "shop-w…-v2-12"),
            ("shop-web-v2-12", 8, "shop…-12"),
            // Two columns a character.
            ("商店前端服务", 12, "商店前端服务"),
            ("商店前端服务", 9, "商店…服务"),
            ("商店前端服务", 8, "商店…务"),
        ] {
            assert_eq!(shortened(text, columns), shown, "{text} in {columns}");
            assert!(shortened(text, columns).width() <= columns);
        }
    }

    #[test]
    fn names_are_shortened_no_more_than_necessary() {
        let row = |name: &str| vec![Cell::name(name), Cell::name("v1"), Cell::number(7)];
        let rows = [row("shop-web-v2-12"), row("商店\u{1b}[31m")];
        let wide = "NAME            VERSION  NUMBER\nshop-web-v2-12  v1            7\n商店\u{fffd}[31m       v1            7\n";
        assert_eq!(render(&["NAME", "VERSION", "NUMBER"], &rows, false, None), wide);
        assert_eq!(render(&["NAME", "VERSION", "NUMBER"], &rows, false, Some(31)), wide);
        let narrow = render(&["NAME", "VERSION", "NUMBER"], &rows, false, Some(27));
        assert!(narrow.contains("\nshop-…2-12  v1            7\n"), "{narrow}");
        // Narrower than it can be.
        assert!(render(&["NAME", "VERSION", "NUMBER"], &rows, false, Some(5)).contains("shop…-12"));
    }
}
