//! System calls that fail for one process, as on a machine with an exhausted resource. A seccomp(2) filter does it, so no other process
//! is affected.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use rustix::process::{Resource, Rlimit, setrlimit};

/// A system call, and the error number that it fails with.
pub type Refusal = (libc::c_long, i32);

/// No inotify watch is left (`fs.inotify.max_user_watches`).
pub const NO_WATCHES: Refusal = (libc::SYS_inotify_add_watch, libc::ENOSPC);
/// No inotify instance is left (`fs.inotify.max_user_instances`).
pub const NO_INSTANCES: Refusal = (libc::SYS_inotify_init1, libc::EMFILE);

/// Makes the system call fail for the command and all that it starts.
pub fn refuse(command: &mut Command, (call, errno): Refusal) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        // The number of the system call is the first word of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: one system call, with a program that lives in the closure: no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            let set = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program);
            if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
    }
}

/// Limits the open files of the command and all that it starts.
pub fn limit_files(command: &mut Command, files: u64) {
    let limit = Rlimit { current: Some(files), maximum: Some(files) };
    // SAFETY: one system call: it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?));
    }
}
