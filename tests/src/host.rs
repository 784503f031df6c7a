//! A test's own host: namespaces for network, mounts and cgroups, with cgroup v2 and a bpffs at their usual places, and a directory. All
//! processes that are started in it are in its cgroup, and end with it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{cgroup2, netns::NetNs, process::Process, tools};

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// A host. Dropping it ends its processes and removes its mounts, cgroups and files.
#[derive(Debug)]
pub struct Host {
    keeper: Child,
    dir: PathBuf,
    cgroup: PathBuf,
    net: NetNs,
    mount_ns: OwnedFd,
    cgroup_ns: OwnedFd,
    /// `cgroup.procs` of the cgroup that the host's processes start in.
    procs: OwnedFd,
}

impl Host {
    /// A new host with `lo` up.
    pub fn new() -> Result<Self> {
        let (name, dir) = loop {
            let name = format!("pod-steer-test-{}-{}", std::process::id(), HOSTS.fetch_add(1, Ordering::Relaxed));
            let dir = std::env::temp_dir().join(&name);
            match fs::create_dir(&dir) {
                Ok(()) => break (name, dir),
                // A test that was killed has left it, and its pid is in use again.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
            }
        };
        let mut keeper = Command::new(tools::host_keeper()?);
        // Its own process group: the terminal's Ctrl-C must not end it before it has cleaned up.
        keeper.arg(&name).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut keeper = keeper.spawn().context("starting the host keeper")?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("no pipe from the keeper")?).read_line(&mut line)?;
        if line != "ready\n" {
            // The keeper has printed the reason.
            let _ = fs::remove_dir_all(&dir);
            anyhow::bail!("the host keeper failed: {}", keeper.wait()?);
        }
        let ns = |kind: &str| -> Result<OwnedFd> { Ok(File::open(format!("/proc/{}/ns/{kind}", keeper.id()))?.into()) };
        let (mount_ns, cgroup_ns) = (ns("mnt")?, ns("cgroup")?);
        let cgroup = cgroup2::mount_point()?.join(&name);
        let procs = File::options().write(true).open(cgroup.join(cgroup2::PROCESSES).join("cgroup.procs"))?.into();
        let net = NetNs::of_pid(keeper.id())?;
        Ok(Self { keeper, dir, cgroup, net, mount_ns, cgroup_ns, procs })
    }

    /// A command that will run as a process of this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        let (net, mount_ns) = (self.net.try_clone()?, self.mount_ns.try_clone()?);
        let (cgroup_ns, procs) = (self.cgroup_ns.try_clone()?, self.procs.try_clone()?);
        // SAFETY: a write and three setns, nothing but system calls: no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&procs, b"0")?;
                move_into_link_name_space(cgroup_ns.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
                move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(move_into_link_name_space(mount_ns.as_fd(), Some(LinkNameSpaceType::Mount))?)
            });
        }
        Ok(command)
    }

    /// As [`Self::command`], in another network namespace than the host's own.
    pub fn command_in(&self, net: &NetNs, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.command(program)?;
        let net = net.try_clone()?;
        // SAFETY: setns is one system call: it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || Ok(move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?));
        }
        Ok(command)
    }

    /// Starts a command in this host, with its output in files of the host's directory.
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(command, &self.dir, name)
    }

    /// The host's network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// A directory for the host's files. Short: the paths of unix sockets are limited.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the host's own file systems, of which `/run` is one, as seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.keeper.id()))
    }

    /// The host's cgroup as the test sees it; the host sees it as the root.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A new network namespace that is connected to this host's, for clients with addresses of their own.
    pub fn new_client(&self) -> Result<Client> {
        let ns = NetNs::new()?;
        ns.sysctl("net.ipv4.ip_local_port_range", "10240 65535")?;
        let client = Client {
            ns,
            host_ip4: Ipv4Addr::new(10, 77, 0, 1).into(),
            ip4: Ipv4Addr::new(10, 77, 0, 2).into(),
            host_ip6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into(),
            ip6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2).into(),
        };
        let host_addrs = [format!("{}/24", client.host_ip4), format!("{}/64", client.host_ip6)];
        let addrs = [format!("{}/24", client.ip4), format!("{}/64", client.ip6)];
        let (host_addrs, addrs) = (host_addrs.each_ref().map(String::as_str), addrs.each_ref().map(String::as_str));
        self.net.connect("client0", &host_addrs, &client.ns, "eth0", &addrs)?;
        client.ns.ip(&format!("route add default via {}", client.host_ip4))?;
        Ok(client)
    }
}

/// A network namespace for clients with addresses of their own.
#[derive(Debug)]
pub struct Client {
    /// The namespace.
    pub ns: NetNs,
    /// The client's own address.
    pub ip4: IpAddr,
    /// The client's own IPv6 address.
    pub ip6: IpAddr,
    /// The host's address on the way to the client.
    pub host_ip4: IpAddr,
    /// The host's IPv6 address on the way to the client.
    pub host_ip6: IpAddr,
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of its standard input is the keeper's signal to undo everything.
        drop(self.keeper.stdin.take());
        let undone = self.keeper.wait().context("waiting for the host keeper").and_then(|status| {
            ensure!(status.success(), "host {} was not undone completely: {status}", self.dir.display());
            Ok(())
        });
        match undone {
            Err(error) if std::thread::panicking() => eprintln!("{error:#}"),
            undone => undone.expect("a host leaves nothing behind"),
        }
    }
}
