//! A tunnel between two namespaces: a tun device in each, whose packets have no Ethernet header, and threads that carry them.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::netns::NetNs;

/// Larger than each packet.
const PACKET_MAX: usize = 65_536;

/// A tunnel. It ends with its value.
#[derive(Debug)]
pub struct Tunnel {
    ends: [NetNs; 2],
    name: String,
}

impl Tunnel {
    /// Makes a device of this name in both namespaces, and brings it up.
    pub fn new(left: &NetNs, right: &NetNs, name: &str) -> Result<Self> {
        let devices = [Arc::new(open(left, name)?), Arc::new(open(right, name)?)];
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (Arc::clone(&devices[from]), Arc::clone(&devices[to]));
            thread::spawn(move || carry(&from, &to));
        }
        left.ip(&format!("link set {name} up"))?;
        right.ip(&format!("link set {name} up"))?;
        Ok(Self { ends: [left.try_clone()?, right.try_clone()?], name: name.to_owned() })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // A thread that reads from a device ends with it.
        for end in &self.ends {
            let _ = end.ip(&format!("link del {}", self.name));
        }
    }
}

fn carry(mut from: &File, mut to: &File) {
    let mut packet = vec![0; PACKET_MAX];
    while let Ok(length) = from.read(&mut packet) {
        // A device that is down takes none.
        let _ = to.write(&packet[..length]);
    }
}

fn open(net: &NetNs, name: &str) -> Result<File> {
    net.run(|| {
        let device = File::options().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
        // SAFETY: integers and pointers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the descriptor is open, and the request is of the type that this one takes.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(done == 0, "making the device {name}: {}", std::io::Error::last_os_error());
        Ok(device)
    })
}
