//! Notes for the next daemon, and for `pod-steer metrics` without one. The kernel keeps them as long as the steering that they
//! describe, so they cannot be lost alone, and they need no room on a file system.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{HashMap, Map, MapData};
use pod_steer_ebpf::{NOTE_BYTES, NoteKey};

use super::{Kernel, KernelError, Result, counters::read_only};

/// Size of the length at the beginning of the first part.
const LENGTH_BYTES: usize = size_of::<u32>();

/// The notes, each identified by its kind and an index.
pub struct Notes(HashMap<MapData, NoteKey, [u8; NOTE_BYTES]>);

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notes")
    }
}

impl Kernel {
    /// A handle on the notes.
    pub fn notes(&self) -> Result<Notes> {
        let opened = MapData::from_pin(self.dir.join("maps/NOTES")).and_then(|data| Map::HashMap(data).try_into());
        opened.map(Notes).map_err(KernelError::map("open", "NOTES"))
    }
}

impl Notes {
    /// Opens the notes that are pinned below `dir`, for reading only, whether a daemon runs or not.
    pub fn open(dir: &Path) -> Result<Self> {
        read_only(dir, "NOTES", Map::HashMap).map(Self)
    }

    /// Writes a note, replacing the one before it. The first part, with the length, is written last: a note that was
    /// cut off fails to parse.
    pub fn write(&mut self, kind: u32, index: u32, text: &[u8]) -> Result<()> {
        let parts = parts(text);
        for (part, bytes) in parts.iter().enumerate().rev() {
            let key = NoteKey { kind, index, part: part as u32, pad: 0 };
            self.0.insert(key, bytes, 0).map_err(KernelError::map("write a note to", "NOTES"))?;
        }
        self.remove_from(kind, index, parts.len() as u32);
        Ok(())
    }

    /// Removes a note.
    pub fn remove(&mut self, kind: u32, index: u32) {
        self.remove_from(kind, index, 0);
    }

    fn remove_from(&mut self, kind: u32, index: u32, first: u32) {
        let mut part = first;
        while self.0.remove(&NoteKey { kind, index, part, pad: 0 }).is_ok() {
            part += 1;
        }
    }

    /// All notes of a kind, by their index.
    pub fn read(&self, kind: u32) -> BTreeMap<u32, Vec<u8>> {
        let keys = self.0.keys().flatten().filter(|key| key.kind == kind);
        let indices: BTreeSet<u32> = keys.map(|key| key.index).collect();
        let part = |index: u32, part: u32| self.0.get(&NoteKey { kind, index, part, pad: 0 }, 0).ok();
        indices.into_iter().filter_map(|index| Some((index, join(|number| part(index, number))?))).collect()
    }
}

/// Splits a note into parts.
fn parts(text: &[u8]) -> Vec<[u8; NOTE_BYTES]> {
    let bytes: Vec<u8> = (text.len() as u32).to_ne_bytes().into_iter().chain(text.iter().copied()).collect();
    let part = |chunk: &[u8]| {
        let mut part = [0; NOTE_BYTES];
        part[..chunk.len()].copy_from_slice(chunk);
        part
    };
    bytes.chunks(NOTE_BYTES).map(part).collect()
}

/// Joins the parts of a note; `None` if one is missing.
fn join(mut part: impl FnMut(u32) -> Option<[u8; NOTE_BYTES]>) -> Option<Vec<u8>> {
    let mut bytes = part(0)?.to_vec();
    let length = u32::from_ne_bytes(bytes.get(..LENGTH_BYTES)?.try_into().ok()?) as usize;
    let mut number = 1;
    while bytes.len() < LENGTH_BYTES + length {
        bytes.extend(part(number)?);
        number += 1;
    }
    bytes.get(LENGTH_BYTES..LENGTH_BYTES + length).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_split_and_joined() {
        for length in [0, 1, NOTE_BYTES - LENGTH_BYTES, NOTE_BYTES - LENGTH_BYTES + 1, 5000] {
            let text: Vec<u8> = (0..length).map(|number| number as u8).collect();
            let parts = parts(&text);
            assert_eq!(parts.len(), (length + LENGTH_BYTES).div_ceil(NOTE_BYTES));
            assert_eq!(join(|part| parts.get(part as usize).copied()), Some(text), "{length}");
            if parts.len() > 1 {
                assert_eq!(join(|part| parts.get(part as usize).copied().filter(|_| part == 0)), None, "truncated");
            }
        }
        assert_eq!(join(|_| None), None);
    }
}
