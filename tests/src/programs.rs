//! BPF programs that tests write by hand: the system calls that load and attach them.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

/// An instruction: operation, destination and source register, offset, and immediate value.
pub fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
    let registers = u64::from(src << 4 | dst) << 8;
    u64::from(code) | registers | u64::from(offset as u16) << 16 | u64::from(immediate as u32) << 32
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
    made(bpf(BPF_PROG_LOAD, &words))
}

/// Attaches it to a namespace or a cgroup, as long as the link is open.
pub fn attach(program: &OwnedFd, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let words = [program.as_raw_fd() as u32, target.as_raw_fd() as u32, attach_type, 0];
    made(bpf(BPF_LINK_CREATE, &words))
}

/// bpf(2)
pub fn bpf<T>(command: libc::c_long, attributes: &[T]) -> io::Result<RawFd> {
    // SAFETY: the attributes are live for the call, with their true size, and what they point to is live in the callers.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as RawFd) }
}

/// What a call of [`bpf`] has made.
pub fn made(fd: io::Result<RawFd>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us.
    fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}
