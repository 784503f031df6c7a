//! The terminal while `top` has it: raw, on the alternate screen, without a cursor. It gets back its modes and its contents when the guard is
//! dropped, and before a panic is reported.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write as _},
    panic,
    sync::{Mutex, Once, PoisonError},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

/// To the alternate screen, with the cursor hidden.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
/// No colours; the cursor is shown; back to the screen before.
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// The terminal that is to be restored, and its modes.
static TAKEN: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// See the module. There is one at a time.
#[derive(Debug)]
pub(super) struct Guard(());

impl Guard {
    /// Takes the terminal that this descriptor is of.
    pub(super) fn take(terminal: impl AsFd) -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let modes = tcgetattr(&terminal)?;
        let mut raw = modes.clone();
        raw.make_raw();
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        let (terminal, _) = &*taken.insert((terminal, modes));
        write(terminal, ENTER);
        Ok(Self(()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, if it is taken. A terminal that is gone needs no restoring.
fn restore() {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((terminal, modes)) = taken {
        write(&terminal, LEAVE);
        let _ = tcsetattr(&terminal, OptionalActions::Now, &modes);
    }
}

fn write(terminal: &OwnedFd, bytes: &[u8]) {
    if let Ok(terminal) = terminal.try_clone() {
        let _ = std::fs::File::from(terminal).write_all(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, panic::catch_unwind};

    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::LocalModes,
    };

    use super::*;

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let terminal = open(ptsname(&main, Vec::new()).unwrap(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let modes = || tcgetattr(&terminal).unwrap();
        let before = modes();
        let is_raw = |modes: &Termios| !modes.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO);
        assert!(!is_raw(&before));
        let panicked = catch_unwind(|| {
            let _guard = Guard::take(&terminal).unwrap();
            assert!(is_raw(&tcgetattr(&terminal).unwrap()));
            panic!("for the test");
        });
        assert_eq!(*panicked.unwrap_err().downcast::<&str>().unwrap(), "for the test");
        let after = modes();
        assert_eq!(
            (after.input_modes, after.output_modes, after.control_modes, after.local_modes),
            (before.input_modes, before.output_modes, before.control_modes, before.local_modes)
        );
        let mut written = vec![0; ENTER.len() + LEAVE.len()];
        File::from(main).read_exact(&mut written).unwrap();
        assert_eq!(written, [ENTER, LEAVE].concat(), "it is restored once");
    }
}
