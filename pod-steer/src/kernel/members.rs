//! The offsets of members of the kernel's structs, from its BTF (`Documentation/bpf/btf.rst`). aya reads the same file, and shows no members.
#![forbid(unsafe_code)]

/// Magic number of BTF in this machine's byte order.
const MAGIC: u16 = 0xeb9f;
/// `BTF_KIND_STRUCT`
const STRUCT: u32 = 4;
/// A type: its name, its kind with the number of its parts, its size or another type.
const TYPE_BYTES: usize = 12;
/// A member: its name, its type, its offset.
const MEMBER_BYTES: usize = 12;
/// If the top bit of a struct's information is set, the low bits of a member's offset are the offset, and the others a width.
const OFFSET_BITS: u32 = 0x00ff_ffff;

/// The offset of a member of a struct in bytes; nothing if there is no such member, it is a bit field, or this is no BTF.
pub(super) fn offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    let word = |at: usize| Some(u32::from_ne_bytes(btf.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = word(4)? as usize;
    let types = header.checked_add(word(8)? as usize)?;
    let end = types.checked_add(word(12)? as usize)?;
    let names = header.checked_add(word(16)? as usize)?;
    let is_named = |name: u32, wanted: &str| {
        let rest = names.checked_add(name as usize).and_then(|at| btf.get(at..)).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = types;
    while at < end {
        let (name, info) = (word(at)?, word(at + 4)?);
        let (kind, parts, has_widths) = (info >> 24 & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        let first = at + TYPE_BYTES;
        if kind == STRUCT && is_named(name, structure) {
            for number in 0..parts {
                let at = first + number * MEMBER_BYTES;
                if is_named(word(at)?, member) {
                    let bits = word(at + 8)?;
                    let (bits, width) = if has_widths { (bits & OFFSET_BITS, bits >> 24) } else { (bits, 0) };
                    return (width == 0 && bits % 8 == 0).then_some(bits / 8);
                }
            }
        }
        at = first.checked_add(parts_bytes(kind, parts)?)?;
    }
    None
}

/// The size of what follows a type; nothing for a kind that is not known, after which nothing can be found.
fn parts_bytes(kind: u32, parts: usize) -> Option<usize> {
    Some(match kind {
        // An integer, a variable, a tag of a declaration.
        1 | 14 | 17 => 4,
        // A pointer, a forward declaration, a name, qualifiers, a function, a floating-point number, a tag of a type.
        2 | 7..=12 | 16 | 18 => 0,
        // An array.
        3 => 12,
        // Members of a struct or a union, variables of a section, values of an enumeration of 64 bits.
        4 | 5 | 15 | 19 => parts * 12,
        // Values of an enumeration, parameters.
        6 | 13 => parts * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_this_kernel_are_found() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        // `sk_refcnt` and others are macros; these are not, and the first one of `sock` is the struct that all sockets have.
        assert_eq!(offset(&btf, "sock", "__sk_common"), Some(0));
        assert_eq!(offset(&btf, "tcp_sock", "inet_conn"), Some(0));
        let (rcv_nxt, snd_wl1) = (offset(&btf, "tcp_sock", "rcv_nxt"), offset(&btf, "tcp_sock", "snd_wl1"));
        assert!(rcv_nxt.is_some_and(|at| at % 4 == 0) && snd_wl1.is_some_and(|at| at % 4 == 0) && rcv_nxt != snd_wl1);
        assert_eq!(offset(&btf, "tcp_sock", "no_such_member"), None);
        assert_eq!(offset(&btf, "no_such_struct", "rcv_nxt"), None);
    }

    #[test]
    fn what_is_no_btf_has_no_members() {
        let btf = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        for length in [0, 1, 4, 23, 24, 100, 5_000] {
            assert_eq!(offset(&btf[..length], "tcp_sock", "rcv_nxt"), None, "{length}");
        }
        assert_eq!(offset(&[0xff; 4_096], "tcp_sock", "rcv_nxt"), None);
    }
}
