//! Points at which a test lets the daemon die: `POD_STEER_ABORT_AT=stored` ends it there by SIGKILL. These instants last
//! microseconds, and no test would ever hit them from outside. `POD_STEER_FAIL_AT` lets a step of an upgrade fail. Nothing
//! else depends on the variables; a user who can set them for the daemon can end the daemon anyway.
#![forbid(unsafe_code)]

use std::{io, sync::LazyLock};

use rustix::process::{Signal, getpid, kill_process};

/// Where. Named by the variable in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A decision is in the ledger, and the kernel has nothing of it.
    Stored,
    /// Its tables are built on the side that nobody uses.
    Built,
    /// The kernel follows it, and the old tables are there still.
    Switched,
    /// The maps of a new layout are made.
    MapsMade,
    /// They are filled.
    MapsFilled,
    /// It is decided that they are to be used.
    MapsReady,
    /// The programs of another build than the attached ones are loaded.
    ProgramsLoaded,
    /// Half of the links have their new program.
    HalfReplaced,
    /// All of them have it.
    Replaced,
    /// What was written to the old maps meanwhile is in the new ones.
    CarriedOver,
    /// The old maps have given up their place.
    HalfSwapped,
    /// The new ones have it.
    Swapped,
}

/// Read once.
static CHOSEN: LazyLock<Option<Point>> = LazyLock::new(|| parse(&std::env::var("POD_STEER_ABORT_AT").ok()?));
/// Read once.
static FAILS: LazyLock<Option<Point>> = LazyLock::new(|| parse(&std::env::var("POD_STEER_FAIL_AT").ok()?));

fn parse(name: &str) -> Option<Point> {
    match name {
        "stored" => Some(Point::Stored),
        "built" => Some(Point::Built),
        "switched" => Some(Point::Switched),
        "programs-loaded" => Some(Point::ProgramsLoaded),
        "half-replaced" => Some(Point::HalfReplaced),
        "replaced" => Some(Point::Replaced),
        "maps-made" => Some(Point::MapsMade),
        "maps-filled" => Some(Point::MapsFilled),
        "maps-ready" => Some(Point::MapsReady),
        "carried-over" => Some(Point::CarriedOver),
        "half-swapped" => Some(Point::HalfSwapped),
        "swapped" => Some(Point::Swapped),
        _ => None,
    }
}

/// Ends the process if this is the point that a test has chosen.
pub fn here(point: Point) {
    if *CHOSEN == Some(point) {
        // As `kill -9` does: nothing is flushed, nothing is undone.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// The same, or fails if a test has chosen that.
pub fn or_fail(point: Point) -> io::Result<()> {
    here(point);
    if *FAILS == Some(point) { Err(io::Error::other("POD_STEER_FAIL_AT lets it fail")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_points_have_names() {
        assert_eq!(parse("built"), Some(Point::Built));
        assert_eq!((parse(""), parse("1")), (None, None));
    }
}
