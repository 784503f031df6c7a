//! Points at which tests kill the daemon: `POD_STEER_ABORT_AT=stored` ends it there by SIGKILL. These instants last microseconds, too
//! short to hit from outside. `POD_STEER_FAIL_AT` makes a step of an upgrade fail. Nothing else reads these variables; a user who can set
//! them for the daemon can kill it anyway.
#![forbid(unsafe_code)]

use std::{io, sync::LazyLock};

use rustix::process::{Signal, getpid, kill_process};

/// The points. The variables name them in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A decision is in the ledger and not in the kernel.
    Stored,
    /// Its tables are built on the side that is not in use.
    Built,
    /// The switch is written, and the old tables still exist.
    Switched,
    /// The maps of a new layout are made.
    MapsMade,
    /// They are filled.
    MapsFilled,
    /// The decision to use them is stored.
    MapsReady,
    /// The programs of another build than the attached ones are loaded.
    ProgramsLoaded,
    /// Half of the links have their new program.
    HalfReplaced,
    /// All of them have it.
    Replaced,
    /// Changes of the old maps since the copy are in the new ones.
    CarriedOver,
    /// The old maps are unpinned.
    HalfSwapped,
    /// The new maps are pinned in their place.
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
        // Like `kill -9`: nothing is flushed or undone.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// As [`here`], but fails if a test has chosen that.
pub fn or_fail(point: Point) -> io::Result<()> {
    here(point);
    if *FAILS == Some(point) { Err(io::Error::other("failed on purpose: POD_STEER_FAIL_AT")) } else { Ok(()) }
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
