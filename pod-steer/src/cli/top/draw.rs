//! Draws a page into cells. Pure.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use ratatui::{buffer::Buffer, layout::Rect, style::Style, text::Line};

use super::{
    Away,
    board::{Board, Row, Service},
    columns::{Column, GAP, fitting, indent, short},
    pages,
    state::{Page, View},
    style::Palette,
};
use crate::{cli::table::shortened, text::visible};

/// Lines of operations at most, if there is no column for them.
const OPERATION_LINES_MAX: usize = 4;
/// From this height on, there is room for more than the table.
const TALL: u16 = 10;

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen<'a> {
    /// The last answer.
    pub board: &'a Board,
    /// Set while the daemon does not answer.
    pub away: Option<&'a Away>,
    /// The colours.
    pub palette: Palette,
}

/// Draws everything.
pub(super) fn draw(screen: Screen<'_>, view: &mut View, buffer: &mut Buffer) {
    let area = buffer.area;
    let (width, tall) = (usize::from(area.width), area.height >= TALL);
    let mut page = Lines { buffer, next: area.y, end: area.bottom() };
    page.put(&header(screen, width), screen.palette.title());
    if let Some((text, style)) = notice(screen, view) {
        page.put(&text, style);
    } else if tall {
        page.put("", Style::new());
    }
    let footer = footer(view, width);
    let footer_lines = u16::from(area.height >= 4);
    page.end = page.end.saturating_sub(footer_lines);
    if view.has_rows() {
        rows(screen, view, &mut page, width, tall);
    } else {
        text(screen, view, &mut page, width);
    }
    if footer_lines > 0 {
        let mut last = Lines { next: area.bottom() - 1, end: area.bottom(), buffer: page.buffer };
        last.put(&footer, if view.typing { screen.palette.title() } else { screen.palette.dim() });
    }
}

/// Lines from top to bottom, as far as there is room.
struct Lines<'a> {
    buffer: &'a mut Buffer,
    next: u16,
    end: u16,
}

impl Lines<'_> {
    fn left(&self) -> usize {
        usize::from(self.end.saturating_sub(self.next))
    }

    /// The area of the next line.
    fn line(&mut self) -> Option<Rect> {
        let area = Rect { y: self.next, height: 1, ..self.buffer.area };
        (self.left() > 0).then(|| {
            self.next += 1;
            area
        })
    }

    fn put(&mut self, text: &str, style: Style) {
        if let Some(area) = self.line() {
            self.buffer.set_stringn(area.x, area.y, visible(text), usize::from(area.width), style);
        }
    }

    fn put_line(&mut self, line: &Line<'_>) {
        if let Some(area) = self.line() {
            self.buffer.set_line(area.x, area.y, line, area.width);
        }
    }
}

/// Texts as far as they fit beside each other, the most important first.
fn joined(parts: &[String], columns: usize) -> String {
    let mut text = String::new();
    for part in parts {
        let gap = if text.is_empty() { "" } else { "  " };
        if text.chars().count() + gap.len() + part.chars().count() > columns {
            break;
        }
        text = text + gap + part;
    }
    text
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn clock(ms: i64) -> String {
    Timestamp::from_millisecond(ms).unwrap_or_default().strftime("%H:%M:%S UTC").to_string()
}

fn header(screen: Screen<'_>, columns: usize) -> String {
    let Board { services, total, conditions, at_ms, .. } = screen.board;
    let rate = total.rate.map_or_else(|| "-".to_owned(), short);
    let parts = [
        "pod-steer".to_owned(),
        clock(*at_ms),
        if conditions.is_empty() { "no conditions".to_owned() } else { counted(conditions.len(), "condition") },
        format!("{rate} new/s"),
        format!("{} live", total.live),
        counted(services.len(), "service"),
        counted(total.backends, "backend"),
    ];
    joined(&parts, columns)
}

/// Why the figures are stale, or incomplete.
fn notice(screen: Screen<'_>, view: &View) -> Option<(String, Style)> {
    if let Some(Away { since_ms, reason }) = screen.away {
        let since = clock(*since_ms);
        return Some((format!("daemon not reachable since {since}, retrying: {reason}"), screen.palette.failure()));
    }
    let mut parts = Vec::new();
    if view.paused {
        parts.push("paused: p goes on".to_owned());
    }
    if view.has_rows() && !view.filter.is_empty() {
        parts.push(format!("only names with \"{}\": esc shows all", view.filter));
    }
    (!parts.is_empty()).then(|| (parts.join("; "), screen.palette.warning()))
}

fn footer(view: &View, columns: usize) -> String {
    if view.typing {
        return format!("/{}█  enter keeps the filter, esc removes it", view.filter);
    }
    let parts: &[&str] = match view.page() {
        Page::Services => {
            &["q quit", "? help", "enter open", "c conditions", "s sort", "r reverse", "/ filter", "p pause"]
        }
        Page::Service(_) | Page::Everything => {
            &["q quit", "? help", "esc back", "enter open", "s sort", "/ filter", "p pause"]
        }
        Page::Backend(..) | Page::Conditions | Page::Help => &["q quit", "? help", "esc back", "p pause"],
    };
    joined(&parts.iter().map(ToString::to_string).collect::<Vec<_>>(), columns)
}

/// The operations, the table, and the conditions below it.
fn rows(screen: Screen<'_>, view: &mut View, page: &mut Lines<'_>, width: usize, tall: bool) {
    let rows = view.rows(screen.board);
    let fitting = fitting(&rows, width);
    if let Page::Service(name) = view.page() {
        let text = screen.board.service(name).map_or_else(
            || format!("{name}: this service is gone; esc goes back"),
            |own| format!("{name}  {}  {} new/s", ports(screen.board, name), Column::Rate.cell(&own.row)),
        );
        page.put(&text, screen.palette.title());
    }
    if tall && !fitting.iter().any(|(column, _)| *column == Column::Operation) {
        operations(screen, view, page, width);
    }
    let below = if tall { conditions(screen, view, width, page.left() / 3) } else { Vec::new() };
    head(screen.palette, view, page, &fitting);
    let room = page.left().saturating_sub(below.len());
    view.height = room.max(1);
    if rows.is_empty() {
        let text = if view.filter.is_empty() {
            "no services; label a container with pod-steer.service"
        } else {
            "no such name"
        };
        page.put(text, screen.palette.dim());
    }
    let selected = view.selected(&rows);
    let first = selected.saturating_sub(room / 2).min(rows.len().saturating_sub(room));
    for (number, row) in rows.iter().enumerate().skip(first).take(room) {
        let is_selected = number == selected && *view.page() != Page::Everything;
        table_row(screen.palette, page, &fitting, row, rows[0], is_selected);
    }
    page.next = page.next.max(page.end.saturating_sub(below.len() as u16));
    below.iter().for_each(|line| page.put_line(line));
}

fn ports(board: &Board, service: &str) -> String {
    let of = board.live.status.services.iter().find(|own| own.name == service);
    of.map(|own| own.ports.join(",")).unwrap_or_default()
}

/// A line for each operation that is under way.
fn operations(screen: Screen<'_>, view: &View, page: &mut Lines<'_>, width: usize) {
    let is_shown = |service: &&Service| match view.page() {
        Page::Service(name) => service.row.name == *name,
        _ => true,
    };
    let under_way = screen.board.services.iter().filter(is_shown);
    let lines: Vec<String> = under_way
        .filter_map(|service| {
            let own = service.row.operation.as_ref()?;
            Some(format!("{}: {}", service.row.name, own.in_short()))
        })
        .collect();
    for line in lines.iter().take(OPERATION_LINES_MAX) {
        page.put(&shortened(line, width), screen.palette.progress());
    }
    if lines.len() > OPERATION_LINES_MAX {
        page.put(
            &format!("and {}", counted(lines.len() - OPERATION_LINES_MAX, "other operation")),
            screen.palette.progress(),
        );
    }
}

/// The conditions below the table: of everything, or of the service that is shown.
fn conditions(screen: Screen<'_>, view: &View, width: usize, lines_max: usize) -> Vec<Line<'static>> {
    let own = |subject: &str| match view.page() {
        Page::Service(name) => subject == format!("service {name}") || subject.ends_with(&format!(" of {name}")),
        _ => true,
    };
    let all: Vec<_> = screen.board.conditions.iter().filter(|of| own(&of.subject)).collect();
    let mut lines = vec![Line::default(), Line::styled("conditions", screen.palette.warning())];
    for (number, of) in all.iter().enumerate() {
        let text = visible(&format!("  {}: {}", of.subject, of.condition)).into_owned();
        if lines.len() + 1 >= lines_max && number + 1 < all.len() {
            lines.push(Line::from(format!("  and {} more: c shows them", all.len() - number)));
            break;
        }
        lines.push(Line::from(shortened(&text, width)));
    }
    if all.is_empty() || lines_max < 3 { Vec::new() } else { lines }
}

fn head(palette: Palette, view: &View, page: &mut Lines<'_>, fitting: &[(Column, usize)]) {
    let Some(area) = page.line() else { return };
    let mut x = area.x;
    for (column, width) in fitting {
        // The arrow is beside the title, where the gap is.
        let title = column.title();
        let at = if column.is_number() { width.saturating_sub(title.len()) } else { 0 };
        let style = if *column == view.sort {
            palette.title().add_modifier(ratatui::style::Modifier::UNDERLINED)
        } else {
            palette.title()
        };
        page.buffer.set_stringn(x + at as u16, area.y, title, *width, style);
        x = x.saturating_add((width + GAP) as u16);
    }
}

fn table_row(
    palette: Palette,
    page: &mut Lines<'_>,
    fitting: &[(Column, usize)],
    row: &Row,
    first: &Row,
    is_selected: bool,
) {
    let Some(area) = page.line() else { return };
    let mut x = area.x;
    for (column, width) in fitting {
        let text = visible(&column.cell(row)).into_owned();
        let (indent, style) = match column {
            Column::Name => (indent(row, first).min(*width), name_style(palette, row)),
            Column::State => (0, palette.state(row)),
            Column::Conditions => (0, palette.warning()),
            Column::Operation => (0, palette.progress()),
            _ => (0, Style::new()),
        };
        let text = shortened(&text, width - indent);
        let used = unicode_width::UnicodeWidthStr::width(text.as_str());
        let pad = if column.is_number() { width.saturating_sub(used) } else { indent };
        page.buffer.set_stringn(x + pad as u16, area.y, &text, *width, style);
        x = x.saturating_add((width + GAP) as u16);
    }
    if is_selected {
        page.buffer.set_style(area, palette.selected());
    }
}

fn name_style(palette: Palette, row: &Row) -> Style {
    if matches!(row.key, super::board::Key::Service(_)) { palette.title() } else { Style::new() }
}

/// A page of text, scrolled.
fn text(screen: Screen<'_>, view: &mut View, page: &mut Lines<'_>, width: usize) {
    let Screen { board, palette, .. } = screen;
    let lines = match view.page() {
        Page::Backend(service, id) => {
            let name = board.backend(service, id).map_or(id.as_str(), |(_, row, _)| row.name.as_str());
            page.put(name, palette.title());
            pages::backend(board, service, id, palette, width)
        }
        Page::Conditions => pages::all_conditions(board, palette, width),
        _ => pages::help(palette, width),
    };
    let room = page.left();
    view.height = room.max(1);
    let first = view.scroll(lines.len().saturating_sub(room));
    lines.iter().skip(first).take(room).for_each(|line| page.put_line(line));
}

/// The lines of a buffer as text, without blanks at their ends.
pub(super) fn plain(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let line = |cells: &[ratatui::buffer::Cell]| {
        let mut text = String::new();
        let mut skip = 0;
        for cell in cells {
            // The second column of a wide character has a cell of its own, which is blank.
            if skip == 0 {
                text.push_str(cell.symbol());
                skip = unicode_width::UnicodeWidthStr::width(cell.symbol()).max(1);
            }
            skip -= 1;
        }
        text.trim_end().to_owned() + "\n"
    };
    buffer.content.chunks(width).map(line).collect()
}

#[cfg(test)]
mod tests;
