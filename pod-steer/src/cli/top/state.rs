//! Which page is shown, which row is selected, and what a key changes. Pure.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    board::{Board, Figures, Key, Row, Service},
    columns::Column,
};

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// All services with their versions.
    Services,
    /// The versions of a service with their backends.
    Service(String),
    /// Everything about a backend: its service, and its id.
    Backend(String, String),
    /// All conditions.
    Conditions,
    /// The keys.
    Help,
    /// Services, versions and backends at once; for `--once`.
    Everything,
}

/// What the loop has to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Draw.
    Draw,
    /// Draw all cells, because another program has written to the terminal.
    Redraw,
    /// Stop until the shell continues this process.
    Suspend,
    /// End.
    Quit,
}

/// A page, and where in it the operator is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    page: Page,
    /// The selected row, and its number when it was selected: if it is gone, the row at that number is selected.
    selected: Option<(Key, usize)>,
    /// The first line that is shown, of a page of text.
    scroll: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// The pages from which the operator came, and the present one.
    places: Vec<Place>,
    /// The column that rows are sorted by.
    pub sort: Column,
    /// Whether the order is opposite to the usual one of the column.
    pub reversed: bool,
    /// Only rows with this text in their names are shown.
    pub filter: String,
    /// Whether keys are letters of the filter.
    pub typing: bool,
    /// Whether the daemon is not asked.
    pub paused: bool,
    /// Lines of the table or text that fitted at the last drawing.
    pub height: usize,
}

impl View {
    /// Begins with this page.
    pub(super) fn new(page: Page) -> Self {
        Self {
            places: vec![Place { page, selected: None, scroll: 0 }],
            sort: Column::Name,
            reversed: false,
            filter: String::new(),
            typing: false,
            paused: false,
            height: 10,
        }
    }

    fn place(&mut self) -> &mut Place {
        self.places.last_mut().expect("the first page is never left")
    }

    /// The present page.
    pub(super) fn page(&self) -> &Page {
        &self.places.last().expect("the first page is never left").page
    }

    /// Whether it is a table, and not a text.
    pub(super) fn has_rows(&self) -> bool {
        matches!(self.page(), Page::Services | Page::Service(_) | Page::Everything)
    }

    /// The first line of a text that is shown, at most this one.
    pub(super) fn scroll(&mut self, max: usize) -> usize {
        let place = self.place();
        place.scroll = place.scroll.min(max);
        place.scroll
    }

    /// The number of the selected row.
    pub(super) fn selected(&self, rows: &[&Row]) -> usize {
        let selected = self.places.last().and_then(|place| place.selected.as_ref());
        let Some((key, number)) = selected else { return 0 };
        let found = rows.iter().position(|row| row.key == *key);
        found.unwrap_or((*number).min(rows.len().saturating_sub(1)))
    }

    /// The rows of the page, sorted and filtered.
    pub(super) fn rows<'a>(&self, board: &'a Board) -> Vec<&'a Row> {
        let sorted = |services: Vec<&'a Service>| {
            let mut services = services;
            services.sort_by(|a, b| self.order(&a.row, &b.row));
            services
        };
        let (services, with_services, with_backends) = match self.page() {
            Page::Service(name) => (board.service(name).into_iter().collect(), false, true),
            Page::Everything => (sorted(board.services.iter().collect()), true, true),
            _ => (sorted(board.services.iter().collect()), true, false),
        };
        let mut rows = Vec::new();
        for service in services {
            // On its own page, the service's name is not shown, and matches nothing.
            let whole = with_services && self.matches(&service.row);
            let mut own = Vec::new();
            let mut versions: Vec<_> = service.versions.iter().collect();
            versions.sort_by(|(a, _), (b, _)| self.order(a, b));
            for (version, backends) in versions {
                let all = whole || self.matches(version);
                let mut shown: Vec<&Row> = backends.iter().filter(|row| all || self.matches(row)).collect();
                if all || !shown.is_empty() {
                    own.push(version);
                    shown.sort_by(|a, b| self.order(a, b));
                    own.extend(shown.into_iter().filter(|_| with_backends));
                }
            }
            if with_services && (whole || !own.is_empty()) {
                rows.push(&service.row);
            }
            rows.append(&mut own);
        }
        rows
    }

    fn matches(&self, row: &Row) -> bool {
        row.name.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// Numbers descend, because large ones are looked for.
    fn order(&self, a: &Row, b: &Row) -> Ordering {
        let by = |value: fn(&Figures) -> f64| value(&b.figures).total_cmp(&value(&a.figures));
        let order = match self.sort {
            Column::Name => a.name.cmp(&b.name),
            Column::Rate => by(|own| own.rate.unwrap_or(-1.0)),
            Column::Live => by(|own| own.live as f64),
            Column::State => by(|own| (own.backends - own.ready) as f64),
            Column::Got => by(|own| own.gained.map_or(-1.0, |gained| gained as f64)),
            Column::Wanted => by(|own| own.wanted),
            Column::Conditions => by(|own| own.conditions as f64),
            Column::Queue => by(|own| own.queue.map_or(-1.0, |queue| queue.usage)),
            Column::Opened => by(|own| own.opened as f64),
            Column::Operation => b.operation.is_some().cmp(&a.operation.is_some()),
        };
        let order = if self.reversed { order.reverse() } else { order };
        order.then_with(|| a.name.cmp(&b.name))
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: KeyEvent, board: &Board) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Suspend,
                KeyCode::Char('l') => Action::Redraw,
                _ => Action::Draw,
            };
        }
        if self.typing {
            self.type_filter(key.code);
            return Action::Draw;
        }
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('?' | 'h') => self.open(Page::Help),
            KeyCode::Char('c') => self.open(Page::Conditions),
            KeyCode::Char('/') if self.has_rows() => self.typing = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s' | '>') => self.sort = self.sort.next(),
            KeyCode::Char('<') => self.sort = self.sort.previous(),
            KeyCode::Char('r' | 'S') => self.reversed = !self.reversed,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.back(),
            KeyCode::Enter | KeyCode::Right => self.enter(board),
            KeyCode::Up | KeyCode::Char('k') => self.step(board, -1),
            KeyCode::Down | KeyCode::Char('j') => self.step(board, 1),
            KeyCode::PageUp => self.step(board, -self.height.cast_signed()),
            KeyCode::PageDown => self.step(board, self.height.cast_signed()),
            KeyCode::Home | KeyCode::Char('g') => self.step(board, isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(board, isize::MAX),
            _ => {}
        }
        Action::Draw
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn open(&mut self, page: Page) {
        if *self.page() != page {
            self.places.push(Place { page, selected: None, scroll: 0 });
        }
    }

    /// Removes the filter; without one, returns to the page before.
    fn back(&mut self) {
        if self.has_rows() && !self.filter.is_empty() {
            self.filter.clear();
        } else if self.places.len() > 1 {
            self.places.pop();
        }
    }

    fn enter(&mut self, board: &Board) {
        let rows = self.rows(board);
        let Some(row) = rows.get(self.selected(&rows)).filter(|_| self.has_rows()) else { return };
        let key = row.key.clone();
        match (self.page(), &key) {
            (_, Key::Backend(service, id)) => self.open(Page::Backend(service.clone(), id.clone())),
            (Page::Services, _) => {
                self.filter.clear();
                self.open(Page::Service(key.service().to_owned()));
                self.place().selected = Some((key, 0));
            }
            _ => {}
        }
    }

    fn step(&mut self, board: &Board, by: isize) {
        if !self.has_rows() {
            let scroll = self.place().scroll.saturating_add_signed(by);
            self.place().scroll = scroll;
            return;
        }
        let rows = self.rows(board);
        let number = self.selected(&rows).saturating_add_signed(by).min(rows.len().saturating_sub(1));
        let selected = rows.get(number).map(|row| (row.key.clone(), number));
        self.place().selected = selected;
    }
}

#[cfg(test)]
mod tests;
