//! The build of a loaded program. It is stored in a small map that is bound to each program (`BPF_PROG_BIND_MAP`, Linux
//! 5.10). So it lives as long as the program, and no file can disagree with it.
//!
//! The kernel's own tag of a program does not identify a build: it leaves out which map an instruction uses, and every
//! constant.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher as _},
    os::fd::AsFd as _,
    sync::Arc,
};

use aya::{
    maps::{Array, Map, MapData},
    programs::ProgramFd,
};

use super::{KernelError, Result, bpf, object::OBJECT};

const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// Name of the map in the kernel, which keeps 15 bytes.
const MAP: &str = "POD_STEER_BUILD";
const BYTES: usize = 64;
/// Number of hexadecimal digits of the hash, in front of the version.
const DIGITS: usize = 16;

/// The hash of an object with its constants, and the version of pod-steer that loaded it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Build([u8; BYTES]);

impl Build {
    /// The build of the programs that this process loads with these constants.
    pub fn own(log_level: u8) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(OBJECT);
        hasher.write_u8(log_level);
        Self::of(hasher.finish(), env!("CARGO_PKG_VERSION"))
    }

    fn of(hash: u64, version: &str) -> Self {
        let mut bytes = [0; BYTES];
        let text = format!("{hash:0DIGITS$x} {version}");
        bytes.iter_mut().zip(text.bytes()).for_each(|(byte, text)| *byte = text);
        Self(bytes)
    }

    /// The build of a loaded program; `None` for programs of versions that did not record it.
    pub fn of_program(program: u32) -> std::io::Result<Option<Self>> {
        for id in bpf::maps_of(bpf::program(program)?)? {
            if bpf::map_info(bpf::map(id)?)?.name != MAP {
                continue;
            }
            let map = MapData::from_id(id).and_then(|map| Array::<_, [u8; BYTES]>::try_from(Map::Array(map)));
            let build = map.and_then(|map| map.get(&0, 0)).map_err(std::io::Error::other)?;
            return Ok(Some(Self(build)));
        }
        Ok(None)
    }

    /// Whether both have the same programs, whatever version loaded them.
    pub fn is_same(self, other: Self) -> bool {
        self.0[..DIGITS] == other.0[..DIGITS]
    }
}

/// For the log.
impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = String::from_utf8_lossy(&self.0);
        f.write_str(text.trim_end_matches('\0'))
    }
}

/// The map that holds the build, for programs that are about to be loaded.
#[derive(Clone)]
pub(super) struct BuildMap {
    pub build: Build,
    map: Arc<MapData>,
}

impl BuildMap {
    pub fn make(build: Build) -> Result<Self> {
        let failed = || KernelError::map("create", MAP);
        let definition = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, size_of::<u32>() as u32, BYTES as u32, 1, 0);
        let map = MapData::create(definition, MAP, None).map_err(failed())?;
        let again = map
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(KernelError::io("duplicate the descriptor of the map", MAP))?;
        let writable = MapData::from_fd(again).and_then(|map| Array::<_, [u8; BYTES]>::try_from(Map::Array(map)));
        writable.and_then(|mut map| map.set(0, build.0, 0)).map_err(failed())?;
        Ok(Self { build, map: Arc::new(map) })
    }

    /// Binds the map to a program.
    pub fn bind(&self, program: &ProgramFd) -> Result<()> {
        bpf::bind_map(program.as_fd(), self.map.fd().as_fd()).map_err(KernelError::io("bind the program's map", MAP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_compared_without_their_version() {
        let build = Build::of(0xABC, "1.2.3");
        assert_eq!(build.to_string(), "0000000000000abc 1.2.3");
        assert!(build.is_same(Build::of(0xABC, "1.2.4")) && !build.is_same(Build::of(0xABD, "1.2.3")));
        assert!(Build::own(0).is_same(Build::own(0)) && !Build::own(0).is_same(Build::own(4)));
        assert_eq!(Build::of(1, &"9".repeat(200)).to_string().len(), BYTES);
    }
}
