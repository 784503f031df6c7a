//! The layout changes of the later releases to which tests upgrade.

use super::{Bytes, Step};

/// The value gets 64 more bits, which are zero.
fn longer(key: Bytes, value: Bytes) -> Option<(Bytes, Bytes)> {
    Some((key, [value, vec![0; 8]].concat()))
}

/// A ring is not filled.
fn emptied(_: Bytes, _: Bytes) -> Option<(Bytes, Bytes)> {
    None
}

pub(super) const STEPS: &[Step] = &[
    Step { to: 8, map: "RULES", convert: longer },
    Step { to: 8, map: "TABLE_RULES", convert: longer },
    Step { to: 8, map: "SOCKETS", convert: longer },
    Step { to: 8, map: "EVENTS", convert: emptied },
    #[cfg(feature = "test-layout-more")]
    Step { to: 9, map: "TABLES", convert: longer },
];
