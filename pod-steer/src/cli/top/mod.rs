//! `pod-steer top`: the live view. Here are the loop, which waits for keys, signals and answers of the daemon, and the guard of the terminal.
//! What is shown is computed from values: `cli/live` knows no terminal, `state` and `draw` do no I/O.

mod columns;
mod draw;
mod guard;
mod pages;
mod state;
mod style;

use std::{
    future::pending,
    io::{self, BufWriter, IsTerminal as _, Stdout},
    path::Path,
    pin::Pin,
    time::Duration,
};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use ratatui::{Terminal, TerminalOptions, Viewport, backend::CrosstermBackend, buffer::Buffer, layout::Rect};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use self::{
    draw::Screen,
    guard::Guard,
    state::{Action, Page, View},
    style::Palette,
};
#[cfg(test)]
use super::live::fixture;
use super::{
    Failure, Outcome,
    args::TopArgs,
    block_on, given,
    live::{
        answers::{Answers, Away, ask},
        board, sample,
    },
    print, terminal,
};
use crate::{
    api::{client::ClientError, live::Live},
    near,
};

/// The width of `--once` in a pipe.
const PIPE_COLUMNS: usize = 200;
/// The signals that end it. Their exit code is that of shells.
const ENDING: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];

/// See the module.
pub(super) fn top(args: &TopArgs) -> Outcome {
    let interval = Duration::from_millis(given::interval(&args.interval).map_err(Failure::Input)?);
    if args.once {
        return block_on(once(args, interval));
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::Input("top needs a terminal; use `pod-steer top --once` for a pipe".to_owned()));
    }
    if !terminal::can_rewrite(&io::stdout()) {
        return Err(Failure::Input("top needs a terminal that is not dumb; use `pod-steer top --once`".to_owned()));
    }
    block_on(watch(args, interval))
}

/// The first answer, in which the service is.
async fn first(args: &TopArgs) -> Result<Answers, Failure> {
    let live = ask(&args.socket.socket).await?;
    if let Some(service) = &args.service {
        let names: Vec<&str> = live.status.services.iter().map(|service| service.name.as_str()).collect();
        if !names.contains(&service.as_str()) {
            return Err(Failure::Input(near::no_service(service, &names)));
        }
    }
    Ok(Answers::new(live))
}

/// Prints one frame. A rate needs two answers.
async fn once(args: &TopArgs, interval: Duration) -> Outcome {
    let mut answers = first(args).await?;
    sleep(interval).await;
    answers.add(ask(&args.socket.socket).await?);
    let mut view = View::new(args.service.clone().map_or(Page::Everything, Page::Service));
    let board = &answers.board;
    let rows = view.rows(board).len() + board.services.len() + 3 * board.conditions.len() + 12;
    let columns = terminal::columns().unwrap_or(PIPE_COLUMNS);
    let size = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    let mut buffer = Buffer::empty(Rect::new(0, 0, size(columns), size(rows)));
    let palette = Palette { colours: false };
    draw::draw(Screen { board, away: None, palette }, &mut view, &mut buffer);
    let text = draw::plain(&buffer);
    // Without the keys.
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let shown = lines[..lines.len().saturating_sub(1)].join("\n");
    print(&format!("{}\n", shown.trim_end()))
}

/// What ended the loop.
enum End {
    /// A key.
    Quit,
    /// A signal, by its number.
    Signal(i32),
}

async fn watch(args: &TopArgs, interval: Duration) -> Outcome {
    // Errors of the first answer are lines of an ordinary terminal.
    let answers = first(args).await?;
    let caught = Caught::new()?;
    let mut watching = Watching {
        view: View::new(Page::Services),
        answers,
        away: None,
        palette: Palette { colours: terminal::colours(&io::stdout()) },
        tty: Tty::take()?,
    };
    if let Some(service) = &args.service {
        watching.view = View::new(Page::Service(service.clone()));
    }
    let end = watching.run(caught, &args.socket.socket, interval).await;
    drop(watching);
    match end? {
        End::Quit => Ok(()),
        End::Signal(number) => Err(Failure::Said(u8::try_from(128 + number).unwrap_or(u8::MAX))),
    }
}

/// The terminal, with what is on it.
struct Tty {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    /// `None` while suspended.
    guard: Option<Guard>,
}

impl Tty {
    fn take() -> io::Result<Self> {
        let guard = Some(Guard::take(io::stdin())?);
        // Otherwise ratatui would draw on as many cells as the terminal reports, which may be none.
        let options = TerminalOptions { viewport: Viewport::Fixed(area()) };
        let backend = CrosstermBackend::new(BufWriter::new(io::stdout()));
        Ok(Self { terminal: Terminal::with_options(backend, options)?, guard })
    }

    /// Takes the terminal again, after another program had it.
    fn retake(&mut self) -> io::Result<()> {
        self.guard = None;
        self.guard = Some(Guard::take(io::stdin())?);
        self.clear()
    }

    /// Clears the screen, so that every cell is drawn. `Terminal::clear` would ask the terminal for its cursor, and wait while keys are read.
    fn clear(&mut self) -> io::Result<()> {
        self.terminal.resize(area())
    }

    /// Follows the terminal's size.
    fn fit(&mut self) -> io::Result<()> {
        if self.terminal.get_frame().area() == area() { Ok(()) } else { self.clear() }
    }

    /// Gives the terminal back and stops, until the shell continues this process. SIGCONT, which is caught, takes it again.
    fn suspend(&mut self) -> io::Result<()> {
        self.guard = None;
        // The stop is not caught, unlike SIGTSTP, which has a handler here.
        Ok(kill_process(getpid(), Signal::STOP)?)
    }
}

/// The cells of the terminal.
fn area() -> Rect {
    let (columns, rows) = terminal::size(io::stdout());
    Rect::new(0, 0, columns, rows)
}

/// The signals that are caught, so that the terminal is given back before they take effect.
struct Caught {
    ending: Vec<Signals>,
    suspending: Signals,
    continued: Signals,
}

impl Caught {
    fn new() -> io::Result<Self> {
        Ok(Self {
            ending: ENDING.map(signal).into_iter().collect::<io::Result<_>>()?,
            suspending: signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
            continued: signal(SignalKind::from_raw(Signal::CONT.as_raw()))?,
        })
    }
}

struct Watching {
    view: View,
    answers: Answers,
    away: Option<Away>,
    palette: Palette,
    tty: Tty,
}

type Asking = Pin<Box<dyn Future<Output = Result<Live, ClientError>>>>;

impl Watching {
    async fn run(&mut self, mut caught: Caught, socket: &Path, interval: Duration) -> io::Result<End> {
        let mut keys = EventStream::new();
        let mut asking: Option<Asking> = None;
        let mut next = Instant::now() + interval;
        loop {
            self.draw()?;
            tokio::select! {
                number = any_of(&mut caught.ending) => return Ok(End::Signal(number)),
                key = keys.next() => match key {
                    Some(Ok(event)) => match self.event(&event) {
                        Action::Quit => return Ok(End::Quit),
                        Action::Suspend => self.tty.suspend()?,
                        Action::Redraw => self.tty.clear()?,
                        Action::Draw => {}
                    },
                    Some(Err(error)) => return Err(error),
                    None => return Ok(End::Quit),
                },
                _ = caught.suspending.recv() => self.tty.suspend()?,
                _ = caught.continued.recv() => self.tty.retake()?,
                answer = answer_of(&mut asking) => {
                    asking = None;
                    self.answered(answer);
                }
                () = sleep_until(next), if asking.is_none() && !self.view.paused => {
                    next = Instant::now() + interval;
                    let socket = socket.to_owned();
                    asking = Some(Box::pin(async move { ask(&socket).await }));
                }
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        // Continued, but the signal has not arrived yet.
        if self.tty.guard.is_none() {
            return Ok(());
        }
        let screen = Screen { board: &self.answers.board, away: self.away.as_ref(), palette: self.palette };
        self.tty.fit()?;
        self.tty.terminal.draw(|frame| draw::draw(screen, &mut self.view, frame.buffer_mut()))?;
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Action {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.view.press(*key, &self.answers.board),
            _ => Action::Draw,
        }
    }

    /// The daemon may come back, and another release of it may give an answer that can be parsed: each failure is shown, and it is asked again.
    fn answered(&mut self, answer: Result<Live, ClientError>) {
        match answer {
            Ok(live) => {
                self.away = None;
                self.answers.add(live);
            }
            Err(error) => self.away = Some(Away::after(self.away.as_ref(), &error)),
        }
    }
}

async fn answer_of(asking: &mut Option<Asking>) -> Result<Live, ClientError> {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}

/// The number of the first of these signals that comes.
async fn any_of(signals: &mut [Signals]) -> i32 {
    let waiting = signals.iter_mut().zip(ENDING).map(|(signal, kind)| {
        Box::pin(async move {
            signal.recv().await;
            kind.as_raw_value()
        })
    });
    futures_util::future::select_all(waiting).await.0
}
