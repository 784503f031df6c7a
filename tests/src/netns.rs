//! Network namespaces without a name, which end with their descriptor.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::process::run;

/// One network namespace.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// A new namespace with `lo` up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<OwnedFd> {
            // SAFETY: a network namespace belongs to the thread; this one does nothing else and ends.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.context("making a network namespace (root is needed)")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let ns = Self(made.join().map_err(|_| anyhow!("the thread panicked"))??);
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// The namespace of a process.
    pub fn of_pid(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(Self(File::open(&path).with_context(|| format!("opening {path}"))?.into()))
    }

    /// Another handle on the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The listening ports there, of both families.
    pub fn listening_ports(&self) -> Result<BTreeSet<u16>> {
        let read = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let mut ports = BTreeSet::new();
        for table in self.run(|| ["tcp", "tcp6"].map(read)) {
            let table = table?;
            let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
            for fields in sockets.filter(|fields| fields[3] == "0A") {
                ports
                    .insert(u16::from_str_radix(fields[1].rsplit(':').next().context("a socket without a port")?, 16)?);
            }
        }
        Ok(ports)
    }

    /// Moves the calling thread. Only for threads that end there, so that no other code runs in the wrong namespace.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).context("entering a namespace")
    }

    /// Runs `f` on a thread inside the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().expect("a namespace that is held open can be entered");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        let ns = self.0.try_clone()?;
        // SAFETY: setns is one system call: it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || Ok(move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network))?));
        }
        Ok(command)
    }

    /// Runs `ip ARGS` inside; the arguments are separated by spaces.
    pub fn ip(&self, args: &str) -> Result<()> {
        run(self.command("ip")?.args(args.split(' '))).map(drop)
    }

    /// Connects two namespaces by a pair of interfaces, named `left` here and `right` there, and gives each its
    /// addresses (`10.0.0.1/24`, `fd00::1/64`).
    pub fn connect(
        &self,
        left: &str,
        left_addrs: &[&str],
        other: &Self,
        right: &str,
        right_addrs: &[&str],
    ) -> Result<()> {
        // By the path of this process's descriptor, since the namespace has no name.
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {left} type veth peer name {right} netns {path}"))?;
        for (ns, interface, addrs) in [(self, left, left_addrs), (other, right, right_addrs)] {
            for addr in addrs {
                // nodad: an IPv6 address is usable at once, without duplicate address detection.
                let nodad = if addr.contains(':') { " nodad" } else { "" };
                ns.ip(&format!("addr add {addr} dev {interface}{nodad}"))?;
            }
            ns.ip(&format!("link set {interface} up"))?;
        }
        Ok(())
    }

    /// Sets a sysctl of this namespace, `net.ipv4.ip_forward` say.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name);
        self.run(|| fs::write(&path, value)).with_context(|| format!("writing {value} to {path}"))
    }

    /// Whether this kernel has a sysctl.
    pub fn has_sysctl(&self, name: &str) -> bool {
        self.run(|| fs::exists(sysctl_path(name)).unwrap_or_default())
    }

    /// One of the namespace's counters of TCP, by its name in `/proc/net/netstat`.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        self.counter("netstat", "TcpExt", name)
    }

    /// The connections that were begun there: the first SYN of each has been sent.
    pub fn connects(&self) -> Result<u64> {
        self.snmp("Tcp", "ActiveOpens")
    }

    /// One of the namespace's counters of a protocol (`Ip`, `Tcp`), by its name in `/proc/net/snmp`.
    pub fn snmp(&self, protocol: &str, name: &str) -> Result<u64> {
        self.counter("snmp", protocol, name)
    }

    fn counter(&self, file: &str, protocol: &str, name: &str) -> Result<u64> {
        let text = self.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
        let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no counters of {protocol}"))?;
        let found = names.split(' ').zip(values.split(' ')).find(|(known, _)| *known == name);
        let (_, value) = found.with_context(|| format!("there is no counter {name}"))?;
        value.parse().with_context(|| format!("{name} is {value}"))
    }

    /// (device, inode): what identifies the namespace.
    pub fn id(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.0)?;
        ensure!(stat.st_ino != 0, "a namespace without an inode");
        Ok((stat.st_dev, stat.st_ino))
    }
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
