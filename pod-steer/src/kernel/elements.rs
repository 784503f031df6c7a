//! The elements of any map as bytes, for maps of another layout than this daemon's types have. The kernel gives their
//! lengths, so no key or value is read or written beyond its end.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for bytes of any length")]

use std::{
    io, iter,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use super::bpf::{self, MapInfo};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// Map types with one value for each CPU: `BPF_MAP_TYPE_PERCPU_HASH`, `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PER_CPU: [u32; 2] = [5, 6];
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;

/// A key or a value.
pub(super) type Bytes = Vec<u8>;

/// The part of `union bpf_attr` for elements (`include/uapi/linux/bpf.h`).
#[repr(C)]
struct Attributes {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An open map.
pub(super) struct Elements {
    fd: OwnedFd,
    pub info: MapInfo,
    /// Size of all values of a key together, in bytes.
    value_bytes: usize,
}

impl Elements {
    /// Opens the map that is pinned at `pin`.
    pub fn open(pin: &Path) -> io::Result<Self> {
        Self::of(bpf::open(pin)?)
    }

    pub fn of(fd: OwnedFd) -> io::Result<Self> {
        let info = bpf::map_info(&fd)?;
        let value = info.value_size();
        let value_bytes = if PER_CPU.contains(&info.kind) {
            // The kernel aligns each CPU's value to eight bytes.
            value.next_multiple_of(8) * aya::util::nr_cpus().map_err(|(_, error)| error)?
        } else {
            value
        };
        Ok(Self { fd, info, value_bytes })
    }

    fn call(&self, command: libc::c_long, key: Option<&[u8]>, value: *mut u8, flags: u64) -> io::Result<()> {
        assert!(key.is_none_or(|key| key.len() == self.info.key_size()), "a key of this map");
        let mut attributes = Attributes {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value: value as u64,
            flags,
        };
        // SAFETY: the key has the map's length. `value` points to as many bytes as the command reads or writes: the
        // callers below ensure that. Both live during the call.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>() as libc::c_uint)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The value of a key, if there is one. For a map per CPU, the values of all CPUs in a row.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        let mut value = vec![0; self.value_bytes];
        match self.call(BPF_MAP_LOOKUP_ELEM, Some(key), value.as_mut_ptr(), 0) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Writes a value unless the key has one.
    pub fn add(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match self.update(key, value, NO_EXIST) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            added => added,
        }
    }

    fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert!(value.len() == self.value_bytes, "a value of this map");
        self.call(BPF_MAP_UPDATE_ELEM, Some(key), value.as_ptr().cast_mut(), flags)
    }

    /// Removes a key, which may be gone already.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        match self.call(BPF_MAP_DELETE_ELEM, Some(key), std::ptr::null_mut(), 0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every key. If the current key of a hash is removed meanwhile, the kernel starts again, so a key may come twice.
    pub fn keys(&self) -> impl Iterator<Item = io::Result<Bytes>> {
        let mut last: Option<Bytes> = None;
        iter::from_fn(move || {
            let mut next = vec![0; self.info.key_size()];
            match self.call(BPF_MAP_GET_NEXT_KEY, last.as_deref(), next.as_mut_ptr(), 0) {
                Ok(()) => {
                    last = Some(next.clone());
                    Some(Ok(next))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => Some(Err(error)),
            }
        })
    }

    /// The sum over all CPUs of a value of 64-bit numbers.
    pub fn sum(&self, key: &[u8]) -> io::Result<Bytes> {
        let values = self.get(key)?.unwrap_or_default();
        let each = self.info.value_size();
        Ok(values.chunks_exact(each.next_multiple_of(8)).fold(vec![0; each], |sum, cpu| added(&sum, &cpu[..each])))
    }
}

/// Adds 64-bit numbers one by one. The result is as long as `to`; missing numbers of `more` count as zero.
pub(super) fn added(to: &[u8], more: &[u8]) -> Bytes {
    each(to, more, u64::wrapping_add)
}

/// Subtracts 64-bit numbers one by one.
pub(super) fn subtracted(from: &[u8], less: &[u8]) -> Bytes {
    each(from, less, u64::wrapping_sub)
}

fn each(left: &[u8], right: &[u8], result: fn(u64, u64) -> u64) -> Bytes {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_ne_bytes)
    };
    let results = (0..left.len() / 8).map(|index| result(word(left, index * 8), word(right, index * 8)));
    results.flat_map(u64::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Bytes {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn counters_of_different_lengths_are_added() {
        assert_eq!(added(&words(&[1, 2]), &words(&[3, u64::MAX])), words(&[4, 1]));
        assert_eq!(added(&words(&[1, 2, 0]), &words(&[3, 4])), words(&[4, 6, 0]), "more counters");
        assert_eq!(added(&words(&[1]), &words(&[3, 4])), words(&[4]), "fewer counters");
        assert_eq!(subtracted(&words(&[4, 1]), &words(&[3, u64::MAX])), words(&[1, 2]));
    }
}
