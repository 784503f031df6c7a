//! A section as a table for a terminal. Where it is too narrow for all columns, they follow in blocks below each other.

use crate::report::{Column, Row, Section};

use crate::numbers;

/// Between two columns.
const GAP: usize = 3;
/// A title that is longer than its cells has more lines, of at least this width.
const TITLE: usize = 16;

/// One measure of all rows, each as wide as `width`.
struct Written {
    /// Its lines.
    title: Vec<String>,
    cells: Vec<String>,
    width: usize,
}

/// The table's lines, none wider than `width` if one column fits. Each with whether it belongs to pod-steer.
pub fn lines(section: &Section, width: usize) -> Vec<(bool, String)> {
    let names: Vec<&str> = section.rows.iter().map(|row| row.name.as_str()).collect();
    let name_width = names.iter().map(|name| chars(name)).max().unwrap_or(0);
    let columns: Vec<Written> = section.columns.iter().map(|column| written(column, &section.rows)).collect();
    let mut lines = Vec::new();
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        let mut used = name_width;
        let fits = |column: &&Written| {
            used += GAP + column.width;
            used <= width
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (block, after) = rest.split_at(count);
        rest = after;
        if !lines.is_empty() {
            lines.push((false, String::new()));
        }
        let line = |name: &str, cell: &dyn Fn(&Written) -> String| {
            let start = format!("{name:<name_width$}");
            let all = |line, column: &Written| format!("{line}{:>w$}", cell(column), w = GAP + column.width);
            block.iter().fold(start, all).trim_end().to_owned()
        };
        let height = block.iter().map(|column| column.title.len()).max().unwrap_or(0);
        for at in 0..height {
            // The last lines of all titles are on one line, just above the cells.
            let part =
                |column: &Written| (at + column.title.len()).checked_sub(height).map(|at| column.title[at].clone());
            lines.push((
                false,
                line("", &|column| format!("{:<w$}", part(column).unwrap_or_default(), w = column.width)),
            ));
        }
        for (at, name) in names.iter().enumerate() {
            lines.push((name.starts_with("pod-steer"), line(name, &|column| column.cells[at].clone())));
        }
    }
    lines
}

/// The value, the deviation of its rounds, and its ratio to the base with that deviation, one below the other.
fn written(column: &Column, rows: &[Row]) -> Written {
    let parts: Vec<[String; 4]> = rows.iter().map(|row| parts(column, row)).collect();
    let widest = |part: usize| parts.iter().map(|parts| chars(&parts[part])).max().unwrap_or(0);
    let widths = [widest(0), widest(1), widest(2), widest(3)];
    let cell = |parts: &[String; 4]| {
        let [value, off, ratio, ratio_off] = parts;
        let mut cell = format!("{value:>w$}", w = widths[0]);
        for (part, width) in [(off, widths[1]), (ratio, widths[2]), (ratio_off, widths[3])] {
            if width > 0 {
                cell += &format!(" {part:<width$}");
            }
        }
        cell
    };
    let cells: Vec<String> = parts.iter().map(cell).collect();
    let wide = cells.iter().map(|cell| chars(cell)).max().unwrap_or(0);
    let title = wrapped(&column.title, wide.max(TITLE));
    let width = title.iter().map(|line| chars(line)).max().unwrap_or(0).max(wide);
    Written { title, cells, width }
}

fn parts(column: &Column, row: &Row) -> [String; 4] {
    let Some(figure) = row.values.get(&column.key) else {
        return ["-".to_owned(), String::new(), String::new(), String::new()];
    };
    let ratio = figure.ratio.map(|ratio| format!("×{}", numbers::ratio(ratio.median)));
    let ratio_off = figure.ratio.map(|ratio| numbers::off(&ratio, numbers::ratio));
    let value = numbers::short(figure.value.median);
    [value, numbers::off(&figure.value, numbers::short), ratio.unwrap_or_default(), ratio_off.unwrap_or_default()]
}

/// The text in lines of at most so many characters, but for longer words.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if chars(line) + 1 + chars(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_table_is_as_wide_as_the_terminal_allows() {
        let report = sample::report();
        let at = |width| lines(&report.sections[0], width);
        assert!(at(80).iter().all(|(_, line)| chars(line) <= 80), "{:#?}", at(80));
        // One block: a line of titles, and four rows.
        assert_eq!(at(80).len(), 5);
        let (ours, line) = &at(80)[3];
        assert!(*ours);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["pod-steer", "38,400", "±3%", "×0.96", "±3%", "2,083", "±3%", "×1.04", "±3%"]);
        // Two blocks, and an empty line between them.
        assert_eq!(at(40).len(), 11);
        assert!(at(40).iter().all(|(_, line)| chars(line) <= 40), "{:#?}", at(40));
    }

    #[test]
    fn long_titles_take_more_lines() {
        let mut report = sample::report();
        report.sections[2].columns[0].title = "bytes for each connection, own ones".to_owned();
        let lines: Vec<String> = lines(&report.sections[2], 80).into_iter().map(|(_, line)| line).collect();
        let table = [
            "            bytes for each",
            "            connection, own",
            "            ones",
            "pod-steer                12",
            "haproxy              34,567",
        ];
        assert_eq!(lines, table);
    }

    #[test]
    fn text_is_wrapped_at_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("", 7), [""; 0]);
    }
}
