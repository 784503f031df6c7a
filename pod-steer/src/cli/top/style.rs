//! The colours of the terminal's own palette, or none.
#![forbid(unsafe_code)]

use ratatui::style::{Color, Modifier, Style};

use super::board::Row;
use crate::{cli::live::waits::Waits, world::State};

/// Whether to use colours; bold, dim and reverse text are used in any case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    /// See the type.
    pub colours: bool,
}

impl Palette {
    fn coloured(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// A title.
    pub(super) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is of less importance.
    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// The selected row, whose cells lose their own colours.
    pub(super) fn selected(self) -> Style {
        Style::new().fg(Color::Reset).add_modifier(Modifier::REVERSED).remove_modifier(Modifier::DIM)
    }

    /// What needs an operator.
    pub(super) fn warning(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// What has failed.
    pub(super) fn failure(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What is under way.
    pub(super) fn progress(self) -> Style {
        self.coloured(Color::Cyan)
    }

    /// The state of a row.
    pub(super) fn state(self, row: &Row) -> Style {
        let all_ready = row.figures.ready == row.figures.backends;
        match (row.state, row.waits) {
            (None, Some(Waits::Asleep)) => self.dim(),
            (None, Some(Waits::FallingAsleep | Waits::Waking)) => self.progress(),
            (None, Some(Waits::Refused)) => self.failure(),
            (None, Some(Waits::Paused)) => self.warning(),
            (None, None) if all_ready => self.coloured(Color::Green),
            (None, None) if row.figures.ready == 0 => self.failure(),
            (None, None) => self.warning(),
            (Some(State::Ready), _) => self.coloured(Color::Green),
            (Some(State::Unhealthy | State::NotSteered | State::NotListening), _) => self.failure(),
            (Some(State::Stopping | State::Paused | State::Starting), _) => self.coloured(Color::Yellow),
            (Some(State::Created | State::Exited | State::Standby | State::Drained), _) => self.dim(),
        }
    }
}
