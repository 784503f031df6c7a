//! Seccomp(2) filters for the daemon and for the process that holds the listener of pauses. Threads and children inherit them.
//!
//! The daemon is not restricted by Landlock. A process in a Landlock domain may not examine one outside of it
//! (`security_ptrace_access_check`): measured on 6.18, `readlink` of `/proc/PID/fd/N` and `/proc/PID/ns/net` fails with EACCES and
//! pidfd_getfd(2) with EPERM. The daemon needs both to find a container's listeners.

use std::collections::BTreeMap;

use landlock::{ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, Scope};
use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Errors of confining a process.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The filter of system calls.
    #[error("the kernel refuses a seccomp filter (it needs CONFIG_SECCOMP_FILTER): {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// A part of the filter.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// The rules on files and ports.
    #[error("the kernel refuses the Landlock rules: {0}")]
    Landlock(#[from] landlock::RulesetError),
}

/// System calls of every program here: memory, threads, signals, time, descriptors.
const BASE: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// System calls of the daemon besides [`BASE`], [`CHILD`] and [`GUARDED`].
const DAEMON: &[c_long] = &[
    // Threads and the daemon's own process.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clone3,
    libc::SYS_getpriority,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getppid,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_membarrier,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_set_tid_address,
    libc::SYS_setpriority,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_times,
    // musl's abort(3).
    libc::SYS_tkill,
    libc::SYS_umask,
    libc::SYS_uname,
    // Events.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Files: the store, the runtime directory, cgroups, pins, /proc.
    libc::SYS_chdir,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Other processes, by descriptors.
    libc::SYS_kill,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // The kernel programs and maps.
    libc::SYS_bpf,
];

/// System calls of the daemon's only child until it has installed its own filter: for the start of the program, `prctl` and Landlock.
const CHILD: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_setsid,
];

/// Calls with the same purpose that only older architectures have.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_fork,
    libc::SYS_getdents,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[c_long] = &[];

/// A call that is allowed only with some values of one argument.
struct Guarded {
    call: c_long,
    argument: u8,
    allowed: &'static [(SeccompCmpOp, c_int)],
}

const GUARDED: [Guarded; 3] = [
    // Threads and children, in no new namespace.
    Guarded { call: libc::SYS_clone, argument: 0, allowed: &[(SeccompCmpOp::MaskedEq(NAMESPACES), 0)] },
    // A container's network namespace, and no other kind.
    Guarded { call: libc::SYS_setns, argument: 1, allowed: &[(SeccompCmpOp::Eq, libc::CLONE_NEWNET)] },
    Guarded {
        call: libc::SYS_socket,
        argument: 0,
        allowed: &[
            (SeccompCmpOp::Eq, libc::AF_UNIX),
            (SeccompCmpOp::Eq, libc::AF_INET),
            (SeccompCmpOp::Eq, libc::AF_INET6),
            (SeccompCmpOp::Eq, libc::AF_NETLINK),
        ],
    },
];

const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Limits the daemon, its threads and its children to these system calls; all others fail with EPERM. Call it before any other thread is
/// started; `no_new_privs` must be set.
pub fn restrict_daemon() -> Result<(), ConfineError> {
    let calls = [BASE, DAEMON, CHILD, LEGACY].concat();
    let mut rules: Rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    for Guarded { call, argument, allowed } in GUARDED {
        let rule = |(op, value): &(SeccompCmpOp, c_int)| {
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op.clone(), *value as u64)?;
            SeccompRule::new(vec![condition])
        };
        rules.insert(call, allowed.iter().map(rule).collect::<Result<_, _>>()?);
    }
    // A filter cannot read the flags of clone3, which are in memory. Without it, the C library calls clone.
    let no_clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    seccompiler::apply_filter(&filter(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?)?;
    seccompiler::apply_filter(&allow_only(rules)?)?;
    Ok(())
}

/// Limits this process, which only waits to be ended: it can open no file, no port and no other process.
pub fn restrict_idle() -> Result<(), ConfineError> {
    // Best effort: older kernels know fewer kinds of access.
    let abi = ABI::V6;
    let rules = Ruleset::default().handle_access(AccessFs::from_all(abi))?.handle_access(AccessNet::from_all(abi))?;
    rules.scope(Scope::from_all(abi))?.create()?.restrict_self()?;
    seccompiler::apply_filter(&allow_only(BASE.iter().map(|call| (*call, Vec::new())).collect())?)?;
    Ok(())
}

fn allow_only(rules: Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    filter(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn filter(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, others, these, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{fs, io, net::TcpListener, os::fd::AsFd as _, thread};

    use rustix::{
        io::Errno,
        net::{AddressFamily, SocketType, socket},
        thread::{LinkNameSpaceType, move_into_link_name_space, set_no_new_privs},
    };

    use super::*;

    /// Runs on a new thread, because a filter stays on its thread.
    fn confined<T: Send>(restrict: fn() -> Result<(), ConfineError>, tried: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                set_no_new_privs(true).unwrap();
                restrict().unwrap();
                tried()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn the_daemon_makes_the_calls_that_it_needs_and_no_others() {
        confined(restrict_daemon, || {
            TcpListener::bind("127.0.0.1:0").unwrap();
            fs::read_to_string("/proc/self/status").unwrap();
            thread::spawn(|| ()).join().unwrap();
            assert_eq!(socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap_err(), Errno::PERM);
            let mounts = fs::File::open("/proc/self/ns/mnt").unwrap();
            let entered = move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount));
            assert_eq!(entered.unwrap_err(), Errno::PERM);
        });
    }

    #[test]
    fn the_holder_of_a_pause_opens_nothing() {
        let (file, socket) =
            confined(restrict_idle, || (fs::File::open("/dev/null"), TcpListener::bind("127.0.0.1:0")));
        for error in [file.unwrap_err(), socket.unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
