//! Paused services: SYNs are given to a listener that drops them, so that clients wait in their own retries.
//!
//! The listener belongs to a process of its own, in a cgroup of its own: were it the daemon's, the daemon's death would
//! close it, and clients would be refused.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs},
};
use tracing::{info, warn};

use super::{control::Control, exec_cgroups::base_cgroup};
use crate::{cgroups, confine, ids::SocketCookie, process_set::ProcessSet, sys};

/// Name of the cgroup, beside those of `exec`.
pub(super) const CGROUP: &str = "paused";

impl Control {
    fn pause_cgroup(&self) -> PathBuf {
        base_cgroup(self.cgroups.mount(), &self.pins.dir).join(CGROUP)
    }

    /// Whether a service is paused.
    pub(super) fn is_pausing(&self) -> bool {
        self.world.decisions.values().any(|decision| decision.paused)
    }

    /// Whether this is where the holder of the listener is.
    pub(super) fn is_pause_cgroup(&self, path: &Path) -> bool {
        path == self.pause_cgroup()
    }

    /// Sees to it that the listener is there: the one that an earlier daemon made, or a new one.
    pub(super) fn ensure_pause(&mut self) -> Result<(), String> {
        if self.world.pause_cookie.is_some_and(|cookie| self.kernel.is_listening(cookie)) {
            return Ok(());
        }
        let cgroup = self.pause_cgroup();
        let found = ProcessSet::of_cgroup(&cgroup).listeners(|_| true);
        let cookie = match found.into_iter().find(|socket| self.kernel.is_listening(socket.cookie)) {
            Some(socket) => socket.cookie,
            None => {
                self.hold_pause(&cgroup).map_err(|e| format!("the listener of paused services cannot be made: {e}"))?
            }
        };
        self.world.pause_cookie = Some(cookie);
        self.touch();
        Ok(())
    }

    fn hold_pause(&mut self, cgroup: &Path) -> io::Result<SocketCookie> {
        self.end_pause_holder();
        let listener = silent_listener()?;
        let cookie = sys::socket_cookie(&listener)?;
        self.kernel.register_pause(cookie, &listener).map_err(io::Error::other)?;
        fs::create_dir_all(cgroup)?;
        let holder = Command::new("/proc/self/exe")
            .arg("hold-pause")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // Whatever ends the daemon with its cgroup does not end the holder. It is our child: its pid cannot be another's.
        let (pid, holder) = (holder.id(), self.orders.pause_holder.insert(holder));
        fs::write(cgroup.join("cgroup.procs"), pid.to_string()).inspect_err(|_| drop(holder.kill()))?;
        info!(pid, "holds the listener of paused services");
        // Should it end, another is wanted at once.
        self.cgroups.watch_empty(cgroup);
        Ok(cookie)
    }

    /// Another listener, if the one of a paused service is gone.
    pub(super) fn keep_pause(&mut self) {
        self.keep_holds();
        let listens = |cookie| self.kernel.is_listening(cookie);
        if self.is_pausing()
            && !self.world.pause_cookie.is_some_and(listens)
            && let Err(error) = self.ensure_pause()
        {
            warn!(%error, "clients of paused services are refused");
        }
    }

    /// Ends the holder of the listener when no service is paused any more.
    pub(super) fn leave_pause(&mut self) {
        self.leave_holds();
        // Not while a table may still lead to the listener: the kernel would refuse the clients of a socket that is closed.
        if self.world.pause_cookie.is_none() || self.is_pausing() || self.dirty.is_stale() {
            return;
        }
        self.world.pause_cookie = None;
        self.end_pause_holder();
    }

    pub(super) fn end_pause_holder(&mut self) {
        end_holder(&self.pause_cgroup());
        if let Some(mut holder) = self.orders.pause_holder.take() {
            let _ = holder.wait();
        }
    }
}

/// Longest wait for the holder to be gone once it is killed.
const END_MAX: Duration = Duration::from_secs(1);

/// Ends the holder of the listener, if there is one, and removes its cgroup.
pub(super) fn end_holder(cgroup: &Path) {
    if !cgroup.exists() {
        return;
    }
    if let Err(error) = fs::write(cgroup.join("cgroup.kill"), "1") {
        warn!(%error, "the holder of the listener of paused services goes on");
    }
    let begun = Instant::now();
    while !cgroups::is_empty(cgroup) && begun.elapsed() < END_MAX {
        thread::sleep(Duration::from_millis(1));
    }
    let _ = fs::remove_dir(cgroup);
}

/// The process that holds the listener, if it is our child.
pub(super) type Holder = Child;

/// A listener that never answers. It takes clients of both families: an IPv6 socket at an IPv4 address is not IPv6-only.
fn silent_listener() -> io::Result<OwnedFd> {
    let mapped = SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), 0);
    let ip4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let open = |family, addr: SocketAddr| -> io::Result<OwnedFd> {
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sys::drop_everything(socket.as_fd())?;
        bind(&socket, &addr)?;
        listen(&socket, 1)?;
        Ok(socket)
    };
    // A machine without IPv6 has no clients of that family either.
    open(AddressFamily::INET6, mapped).or_else(|_| open(AddressFamily::INET, ip4))
}

/// `pod-steer hold-pause`: keeps its standard input open until it is ended. It holds also if it cannot be confined: without it,
/// clients would be refused.
pub fn hold() -> ! {
    let _ = rustix::process::setsid();
    // What the daemon inherited from its own parent, perhaps.
    let _ = sys::close_from(3);
    give_up();
    loop {
        thread::park();
    }
}

/// Gives up everything that a process does not need that only waits to be ended.
pub(super) fn give_up() {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    let _ = set_capabilities(None, none);
    let _ = set_no_new_privs(true);
    let _ = confine::restrict_idle();
}
