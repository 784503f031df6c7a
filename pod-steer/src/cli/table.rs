//! Plain aligned columns. Widths follow the content; the last column takes what is left.

/// One cell, and how to colour it on a terminal (an SGR code, or nothing).
pub(super) struct Cell {
    text: String,
    colour: &'static str,
    right: bool,
}

impl Cell {
    /// Text, to the left.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: "", right: false }
    }

    /// A number, to the right.
    pub(super) fn number(number: impl ToString) -> Self {
        Self { text: number.to_string(), colour: "", right: true }
    }

    /// With a colour.
    pub(super) fn coloured(self, colour: &'static str) -> Self {
        Self { colour, ..self }
    }
}

/// Columns of a narrow terminal.
pub(super) const NARROW: usize = 80;

/// A text of at most so many characters; what was longer shows it.
pub(super) fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

/// Lines of at most so many columns, broken between words, each after the margin. A word that is longer stays whole.
pub(super) fn wrapped(margin: &str, text: &str, columns: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && margin.chars().count() + line + 1 + word.chars().count() > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.into_iter().filter(|line| !line.is_empty()).map(|line| format!("{margin}{line}\n")).collect()
}

/// Lines without blanks at their ends.
pub(super) fn render(head: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain(head.get(column).map(|name| name.len())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let right = |column: usize| rows.first().and_then(|row| row.get(column)).is_some_and(|cell| cell.right);
    let mut text = String::new();
    let heads: Vec<Cell> =
        head.iter().enumerate().map(|(i, name)| Cell { right: right(i), ..Cell::text(*name).coloured("1") }).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let pad = " ".repeat(width.saturating_sub(cell.text.chars().count()));
            let shown = if colours && !cell.colour.is_empty() {
                format!("\x1b[{}m{}\x1b[0m", cell.colour, cell.text)
            } else {
                cell.text.clone()
            };
            line.push_str(&if cell.right { pad + &shown } else { shown + &pad });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
