//! BPF programs that tests write by hand: the system calls that load, attach and pin them.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_CREATE: libc::c_long = 28;

/// The type of programs that choose a socket.
pub const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
/// Where they are attached.
pub const BPF_SK_LOOKUP: u32 = 36;

/// An instruction: operation, destination and source register, offset, and immediate value.
pub fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let registers = u64::from(src << 4 | dst) << 8;
    u64::from(code) | registers | u64::from(offset as u16) << 16 | u64::from(immediate as u32) << 32
}

/// Makes a map: its type, bytes of a key and of a value, and entries.
pub fn create_map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    made(bpf(BPF_MAP_CREATE, &mut [kind, key, value, entries]))
}

/// Loads a program.
pub fn load(kind: u32, attach_type: u32, program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    // type and number of instructions, instructions, licence; then nothing up to the expected attach type at byte 68.
    let mut words = [0u64; 9];
    words[0] = u64::from(kind) | (program.len() as u64) << 32;
    words[1] = program.as_ptr() as u64;
    words[2] = license.as_ptr() as u64;
    words[8] = u64::from(attach_type) << 32;
    made(bpf(BPF_PROG_LOAD, &mut words))
}

/// Attaches it to a namespace or a cgroup, as long as the link is open.
pub fn attach(program: &OwnedFd, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut words = [program.as_raw_fd() as u32, target.as_raw_fd() as u32, attach_type, 0];
    made(bpf(BPF_LINK_CREATE, &mut words))
}

/// Pins a map, a program or a link.
pub fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &mut [path.as_ptr() as u64, object.as_raw_fd() as u64]).map(drop)
}

/// Opens what is pinned.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    made(bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0]))
}

/// bpf(2). Some commands write into their attributes.
pub fn bpf<T>(command: libc::c_long, attributes: &mut [T]) -> io::Result<RawFd> {
    // SAFETY: the attributes are live for the call, with their true size, and what they point to is live in the callers.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as RawFd) }
}

/// What a call of [`bpf`] has made.
pub fn made(fd: io::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
