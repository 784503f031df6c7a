//! The daemon's log on standard error. If standard error fails (closed pipe, full disk) or blocks (a pipe without a reader), lines are
//! dropped and counted, and the daemon continues. The count is logged once a line can be written again.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Mutex, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tracing::warn;

/// A pipe that poll(2) reports writable takes this much without blocking (`PIPE_BUF`); so does a socket.
const CHUNK_BYTES: usize = 4096;
/// Time to wait for a sink that has worked so far, before lines are dropped.
const STALL_MAX: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Log lines that were dropped, and the state of the sink.
#[derive(Debug, Default)]
struct State {
    lost: u64,
    error: Option<Errno>,
    /// Only the first part of the last line was written.
    is_in_line: bool,
}

static STATE: Mutex<State> = Mutex::new(State { lost: 0, error: None, is_in_line: false });

/// Writes whole log lines to standard error and never fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSink;

impl io::Write for LogSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let recovered = {
            // No code under the lock can panic.
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            state.write_line(io::stderr().as_fd(), line)
        };
        if let Some((lines, error)) = recovered {
            // Without the lock: this is a log line of its own.
            warn!(lines, %error, "log lines were lost because standard error could not be written");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// Writes a line or counts it as lost. Returns what was lost before, once a line has been written again.
    fn write_line(&mut self, sink: BorrowedFd<'_>, line: &[u8]) -> Option<(u64, io::Error)> {
        let wait = if self.lost == 0 { STALL_MAX } else { NO_WAIT };
        let end_of_part: &[u8] = if self.is_in_line { b"\n" } else { b"" };
        let mut written = 0;
        let done = write_all(sink, end_of_part, wait, &mut 0).and_then(|()| {
            self.is_in_line = false;
            write_all(sink, line, wait, &mut written)
        });
        match done {
            Ok(()) => {
                let error = self.error.take();
                let lost = std::mem::take(&mut self.lost);
                error.filter(|_| lost > 0).map(|error| (lost, error.into()))
            }
            Err(error) => {
                self.is_in_line |= written > 0;
                self.lost += 1;
                self.error = Some(error);
                None
            }
        }
    }
}

/// Writes without blocking, or fails.
fn write_all(sink: BorrowedFd<'_>, bytes: &[u8], wait: Timespec, written: &mut usize) -> Result<(), Errno> {
    while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
        let mut fds = [PollFd::from_borrowed_fd(sink, PollFlags::OUT)];
        match poll(&mut fds, Some(&wait)) {
            Ok(0) => return Err(Errno::AGAIN),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        // poll(2) also reports a pipe without a reader; the write then fails.
        if !fds[0].revents().is_empty() {
            match rustix::io::write(sink, &rest[..rest.len().min(CHUNK_BYTES)]) {
                Ok(count) => *written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _},
    };

    use super::*;

    #[test]
    fn a_stalled_pipe_loses_lines_and_says_how_many() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut state = State::default();
        let line = [b'x'; 10_000];
        let mut sent = 0;
        while state.lost == 0 {
            assert!(state.write_line(writer.as_fd(), &line).is_none());
            sent += 1;
            assert!(sent < 1000, "a pipe takes no end of lines");
        }
        assert!(state.is_in_line, "the last line fitted in part");
        assert!(state.write_line(writer.as_fd(), b"lost\n").is_none());
        // What fits depends on how lines fill pages; a page is free after this in any case.
        assert!(reader.read(&mut [0; 65_536]).unwrap() > 4096);
        let (lost, error) = state.write_line(writer.as_fd(), b"good\n").expect("it works again");
        assert_eq!((lost, error.kind()), (2, io::ErrorKind::WouldBlock));
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"\ngood\n"), "what came after half a line is a line of its own");
    }

    #[test]
    fn a_sink_that_fails_is_tried_with_every_line() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut state = State::default();
        assert!(state.write_line(writer.as_fd(), b"a\n").is_none());
        assert_eq!((state.lost, state.error), (1, Some(Errno::PIPE)));
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(state.write_line(full.as_fd(), b"b\n").is_none());
        assert_eq!((state.lost, state.error), (2, Some(Errno::NOSPC)));
        let null = File::options().write(true).open("/dev/null").unwrap();
        let (lost, error) = state.write_line(null.as_fd(), b"c\n").expect("it works again");
        assert_eq!((lost, error.raw_os_error()), (2, Some(libc::ENOSPC)));
        assert!(state.write_line(null.as_fd(), b"d\n").is_none());
        assert!(LogSink.write_all(b"").is_ok());
    }
}
