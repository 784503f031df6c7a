//! A program on a terminal of its own: a pseudo-terminal, whose other end is read as a terminal would read it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, Signal, ioctl_tiocsctty, kill_process, setsid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};
use vt100::Parser;

use crate::wait;

/// A program and its terminal. Dropping it kills the program.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    main: File,
    terminal: OwnedFd,
    before: Termios,
    screen: Arc<Mutex<Emulator>>,
}

/// The terminal's contents.
struct Emulator {
    parser: Parser,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("contents", &self.parser.screen().contents()).finish()
    }
}

impl Pty {
    /// Starts a command in a session of its own, whose terminal reports this size. One that reports none has 80 columns and 24 rows.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Result<Self> {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&main)?;
        unlockpt(&main)?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(ptsname(&main, Vec::new())?, flags, Mode::empty()).context("opening the terminal")?;
        tcsetwinsize(&terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
        let before = tcgetattr(&terminal)?;
        let end = || -> Result<std::process::Stdio> { Ok(terminal.try_clone()?.into()) };
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        // SAFETY: two system calls, which neither allocate nor take a lock.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let main = File::from(main);
        let or = |number, default| if number == 0 { default } else { number };
        let emulator = Emulator { parser: Parser::new(or(rows, 24), or(columns, 80), 0) };
        let screen = Arc::new(Mutex::new(emulator));
        let (mut output, shown) = (main.try_clone()?, Arc::clone(&screen));
        // It ends when no process has the terminal open.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                shown.parser.process(&bytes[..count]);
            }
        });
        Ok(Self { child, main, terminal, before, screen })
    }

    /// Types.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.main.write_all(keys.as_bytes()).context("typing")
    }

    /// Looks at the terminal.
    pub fn see<T>(&self, look: impl FnOnce(&vt100::Screen) -> T) -> T {
        look(self.screen.lock().unwrap_or_else(PoisonError::into_inner).parser.screen())
    }

    /// The text on the terminal.
    pub fn text(&self) -> String {
        self.see(vt100::Screen::contents)
    }

    /// Waits until the text on the terminal is as described, and returns what was found.
    pub fn wait_for<T>(&self, what: &str, look: impl Fn(&str) -> Option<T>) -> Result<T> {
        wait::until(what, || look(&self.text())).with_context(|| format!("the terminal shows\n{}", self.text()))
    }

    /// Waits until the terminal shows a text.
    pub fn wait_text(&self, part: &str) -> Result<()> {
        self.wait_for(part, |text| text.contains(part).then_some(()))
    }

    /// Changes the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let mut screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.parser.screen_mut().set_size(rows, columns);
        Ok(tcsetwinsize(&self.terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits until a signal has stopped the program.
    pub fn wait_stopped(&self) -> Result<()> {
        let stat = format!("/proc/{}/status", self.child.id());
        let is_stopped = || Ok(std::fs::read_to_string(&stat)?.contains("State:\tT").then_some(()));
        wait::until_ok("the program on the terminal to stop", is_stopped)
    }

    /// Waits until the program has ended.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let found = wait::until_ok("the program on the terminal to end", || Ok(self.child.try_wait()?));
        found.map_err(|error| anyhow!("{error}; the terminal shows\n{}", self.text()))
    }

    /// Whether the terminal is as it was before the program: its modes, the main screen, the cursor.
    pub fn is_as_before(&self) -> Result<bool> {
        let (now, before) = (tcgetattr(&self.terminal)?, &self.before);
        let modes = (now.input_modes, now.output_modes, now.control_modes, now.local_modes)
            == (before.input_modes, before.output_modes, before.control_modes, before.local_modes);
        Ok(modes && self.see(|screen| !screen.alternate_screen() && !screen.hide_cursor()))
    }

    /// Waits until it is.
    pub fn wait_as_before(&self) -> Result<()> {
        wait::until_ok("the terminal to be as it was", || Ok(self.is_as_before()?.then_some(())))
            .with_context(|| self.text())
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
