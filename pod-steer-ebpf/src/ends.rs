//! Both ends of a connection, as programs of different types see them.

use core::ptr;

use aya_ebpf::programs::SockOpsContext;
use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, OwnConnection};

/// Both ends of a connection. IPv4 addresses are in the first four bytes, whatever the family of the socket.
pub struct Ends {
    pub family: u8,
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
}

impl Ends {
    #[inline(always)]
    pub fn new(family: u32, ip4: [u32; 2], ip6: [[u32; 4]; 2], ports: [u16; 2]) -> Self {
        let [local_port, remote_port] = ports;
        let [local, remote] = ip6;
        // An IPv6 socket may be connected over IPv4.
        let is_mapped = remote[0] == 0 && remote[1] == 0 && remote[2] == 0xFFFFu32.to_be();
        if family == u32::from(FAMILY_V4) || is_mapped {
            let [local, remote] = [bytes(&[ip4[0], 0, 0, 0]), bytes(&[ip4[1], 0, 0, 0])];
            return Self { family: FAMILY_V4, local, remote, local_port, remote_port };
        }
        Self { family: FAMILY_V6, local: bytes(&local), remote: bytes(&remote), local_port, remote_port }
    }

    #[inline(always)]
    pub fn of(ctx: &SockOpsContext) -> Self {
        let ops = ctx.ops;
        // SAFETY: the context is valid for the whole run; volatile and unconditional, as in `lookup`.
        unsafe {
            Self::new(
                ptr::read_volatile(&raw const (*ops).family),
                [ptr::read_volatile(&raw const (*ops).local_ip4), ptr::read_volatile(&raw const (*ops).remote_ip4)],
                [ptr::read_volatile(&raw const (*ops).local_ip6), ptr::read_volatile(&raw const (*ops).remote_ip6)],
                [ctx.local_port() as u16, remote_port(ctx)],
            )
        }
    }

    /// The connection whose client is at the local end.
    #[inline(always)]
    pub fn outgoing(&self, netns_cookie: u64) -> OwnConnection {
        OwnConnection {
            netns_cookie,
            source: self.local,
            destination: self.remote,
            source_port: self.local_port,
            destination_port: self.remote_port,
            family: self.family,
            pad: [0; 3],
        }
    }

    /// The connection whose client is at the remote end.
    #[inline(always)]
    pub fn incoming(&self, netns_cookie: u64) -> OwnConnection {
        OwnConnection {
            netns_cookie,
            source: self.remote,
            destination: self.local,
            source_port: self.remote_port,
            destination_port: self.local_port,
            family: self.family,
            pad: [0; 3],
        }
    }
}

/// The remote port in host byte order. The context has it in network byte order in a 32-bit word.
#[inline(always)]
pub fn remote_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(ctx.remote_port()) as u16
}

#[inline(always)]
pub fn bytes(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
