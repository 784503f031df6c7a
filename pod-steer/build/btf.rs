//! Leaves the source lines out of BTF (`Documentation/bpf/btf.rst`): the verifier's log would name them. They are most of it.

use std::collections::HashMap;

/// Magic number of BTF, as an object for a little-endian machine begins.
const LITTLE: [u8; 2] = [0x9f, 0xeb];
/// A type: its name, its kind with the number of its parts, its size or another type.
const TYPE_BYTES: usize = 12;
/// In `.BTF.ext`, for each section: its name, and the number of its functions.
const SECTION_BYTES: usize = 8;

/// `.BTF` with the names of types and sections, and `.BTF.ext` with functions only. `None` if they are no such.
pub fn without_lines(btf: &[u8], ext: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let is_little = btf.first_chunk() == Some(&LITTLE);
    let from = |bytes: [u8; 4]| if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
    let to = |word: u32| if is_little { word.to_le_bytes() } else { word.to_be_bytes() };
    let word = |of: &[u8], at: usize| Some(from(*of.get(at..)?.first_chunk()?));
    let header = word(btf, 4)? as usize;
    let (types, types_bytes) = (header + word(btf, 8)? as usize, word(btf, 12)? as usize);
    let strings = header + word(btf, 16)? as usize;
    // Offset 0 is the empty name.
    let (mut kept, mut moved) = (vec![0], HashMap::from([(0, 0)]));
    let mut keep = |of: &mut [u8], at: usize| {
        let old = word(of, at)?;
        let new = *moved.entry(old).or_insert(kept.len() as u32);
        if new as usize == kept.len() {
            let name = btf.get(strings + old as usize..)?.split_inclusive(|byte| *byte == 0).next()?;
            kept.extend_from_slice(name);
        }
        of.get_mut(at..at + 4)?.copy_from_slice(&to(new));
        Some(())
    };

    let mut made = btf.get(..strings)?.to_vec();
    let mut at = types;
    while at < types + types_bytes {
        let info = word(btf, at + 4)?;
        let (parts, part_bytes, is_named) = parts(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        keep(&mut made, at)?;
        at += TYPE_BYTES;
        for _ in 0..parts {
            if is_named {
                keep(&mut made, at)?;
            }
            at += part_bytes;
        }
    }

    // The functions come first, then the lines, then relocations against the kernel's types, of which there are none.
    let (header, offset, length) = (word(ext, 4)? as usize, word(ext, 8)?, word(ext, 12)?);
    let functions = header + offset as usize;
    let end = functions + length as usize;
    let mut made_ext = ext.get(..end)?.to_vec();
    for other in made_ext.get_mut(16..header)?.chunks_exact_mut(8) {
        other.copy_from_slice(&[to(offset + length), to(0)].concat());
    }
    let record_bytes = word(ext, functions)? as usize;
    let mut at = functions + 4;
    while at < end {
        keep(&mut made_ext, at)?;
        at += SECTION_BYTES + record_bytes * word(ext, at + 4)? as usize;
    }

    made.get_mut(20..24)?.copy_from_slice(&to(kept.len() as u32));
    made.extend(kept);
    Some((made, made_ext))
}

/// What follows a type: the number of its parts, the size of each, and whether each begins with a name. `None` for a kind that is not known.
fn parts(kind: u32, parts: usize) -> Option<(usize, usize, bool)> {
    Some(match kind {
        // An integer, a variable, a tag of a declaration.
        1 | 14 | 17 => (1, 4, false),
        // A pointer, a forward declaration, a name, qualifiers, a function, a floating-point number, a tag of a type.
        2 | 7..=12 | 16 | 18 => (0, 0, false),
        // An array.
        3 => (1, 12, false),
        // Members of a struct or a union, values of an enumeration of 64 bits.
        4 | 5 | 19 => (parts, 12, true),
        // Values of an enumeration, parameters.
        6 | 13 => (parts, 8, true),
        // Variables of a section.
        15 => (parts, 12, false),
        _ => return None,
    })
}
