//! The display during a scene: the current action, and which servers answer right now, in 80 columns.

use std::io::{Write, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::load::{Load, Scene};
use crate::say::{bold, green, note, on_terminal, red, thousands};

/// Columns of all bars together, and those of each besides its title and its cells.
const BARS: u64 = 48;
const AROUND: u64 = 7;

/// A bar: its title, and the servers whose answers it shows.
pub type Bar = (&'static str, &'static [&'static str]);

/// The line that shows the current action.
pub struct Screen {
    start: Instant,
    bars: &'static [Bar],
}

impl Screen {
    pub fn new(bars: &'static [Bar]) -> Self {
        Self { start: Instant::now(), bars }
    }

    pub fn scene(&self, what: &str) {
        println!();
        note(&bold(&format!("{:4.1} s  {what}", self.start.elapsed().as_secs_f64())));
    }

    /// Shows the scene for so long: on a terminal as one line that is rewritten, else a line each second.
    pub fn watch(&self, load: &Load, time: Duration) -> Result<()> {
        let start = Instant::now();
        let step = Duration::from_millis(if on_terminal() { 200 } else { 1000 });
        while start.elapsed() < time {
            sleep(step.min(time.saturating_sub(start.elapsed())));
            let line = self.line(&load.now());
            if on_terminal() {
                print!("\r\x1b[K{line}");
                stdout().flush()?;
            } else {
                println!("{line}");
            }
        }
        if on_terminal() {
            println!();
        }
        Ok(())
    }

    fn line(&self, scene: &Scene) -> String {
        let answers: u64 = scene.answers.values().sum();
        let failures = format!("{:>2} failed", scene.failures());
        let failures = if scene.failures() == 0 { green(&failures) } else { red(&failures) };
        let seconds = self.start.elapsed().as_secs_f64();
        let mut line = format!("   {seconds:4.1} s {:>7} ok {failures} ", thousands(answers));
        for (title, servers) in self.bars {
            let all_cells = (BARS / self.bars.len() as u64).saturating_sub(AROUND + title.len() as u64);
            let own: u64 = servers.iter().map(|name| scene.answers_of(name)).sum();
            let percent = (100 * own + answers / 2).checked_div(answers).unwrap_or(0);
            let cells = (percent * all_cells).div_ceil(100);
            let bar: String = (0..all_cells).map(|cell| if cell < cells { '█' } else { '░' }).collect();
            line += &format!(" {title} {bar}{percent:>4}%");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{COPIES, deploy};

    #[test]
    fn the_line_fits_80_columns() {
        let scene = Scene { answers: [("v1a".to_owned(), 12_345)].into(), ..Scene::default() };
        for bars in [&COPIES[..], &deploy::VERSIONS] {
            let line = Screen::new(bars).line(&scene);
            assert!((70..=80).contains(&line.chars().count()), "{line}");
        }
    }
}
