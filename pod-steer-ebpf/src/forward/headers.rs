//! The headers of a packet at a device. Everything is copied out of it first: a rewrite makes pointers into it invalid.

use core::ptr;

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, btf_maps::PerCpuArray, macros::btf_map, programs::TcContext};
use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, Flow, NONE, PROTO_TCP, Tuple};

use super::routes::Hop;

/// Of `skb->protocol`, in network byte order.
pub const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
pub const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;

/// Length of an IPv4 header without options, and of an IPv6 header.
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
/// How much of a TCP header is read in place: all up to the flags.
pub const TCP_READ: usize = 14;
/// Places in the IPv4 header.
pub const IPV4_CHECKSUM: usize = 10;
pub const IPV4_SOURCE: usize = 12;
pub const IPV4_DESTINATION: usize = 16;
/// Places in the IPv6 header.
pub const IPV6_SOURCE: usize = 8;
pub const IPV6_DESTINATION: usize = 24;
const ICMP_LEN: usize = 8;
/// Protocol numbers of ICMP, and of ICMP for IPv6.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// More fragments, and the offset of a fragment.
const IPV4_FRAGMENT: u32 = 0x3fff;
/// The offset alone.
const IPV4_OFFSET: u32 = 0x1fff;
/// In [`Work::fragment`]: the identifier of the packet, that this is a fragment, and that it is not the first.
pub const FRAGMENT_ID: u32 = 0xffff;
const IS_FRAGMENT: u32 = 1 << 16;
const IS_LATER: u32 = 1 << 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are skipped. A packet with more is left to the kernel.
const EXTENSIONS_MAX: usize = 4;

pub const FIN: u32 = 1;
pub const SYN: u32 = 2;
pub const RST: u32 = 4;
pub const ACK: u32 = 16;

/// What a program works on for one packet. It is too large for the stack, which is 512 bytes for all functions.
#[repr(C)]
pub struct Work {
    /// Addresses and ports of the packet.
    pub tuple: Tuple,
    /// What they become.
    pub to: Tuple,
    /// An entry for the maps of flows.
    pub flow: Flow,
    /// Where the TCP header begins.
    pub tcp: u32,
    /// Flags of the TCP header.
    pub flags: u32,
    /// Sequence number of the packet, in network byte order.
    pub sequence: u32,
    /// [`Flow::device`] of the packet's flow.
    pub device: u32,
    /// The next hop behind `device`.
    pub hop: Hop,
    /// The backend into or out of whose namespace the packet is handed over, or [`NONE`].
    pub peer: u32,
    /// Where the IP header begins.
    pub l2: u32,
    /// Not zero if the time of the flow's last packet was written, which is once a second.
    pub is_due: u32,
    /// [`Flow::flags`] with this packet.
    pub noted: u32,
    /// Not zero if the connection has ended, or was reset.
    pub is_over: u32,
    /// Where the header of an error of ICMP begins; zero if the packet is none. Then `tuple` is the packet that it quotes.
    pub icmp: u32,
    /// Where the quoted packet begins.
    pub quoted: u32,
    /// Of a SYN: [`FORMER_KEPT`] and others, the entries that were found under its keys.
    pub former: u32,
    /// Not zero if the packet came by a bridge.
    pub bridge: u32,
    /// The source that the packet has, if it is not that of `tuple`.
    pub wire: [u32; 4],
    /// Not zero if it is that.
    pub is_translated: u32,
    /// Not zero for a fragment of an IPv4 packet. All but the first have no TCP header.
    pub fragment: u32,
}

/// In [`Work::former`]: an entry of the client's direction that nothing evicts, one that may be evicted, and one of the reply's direction that
/// nothing evicts.
pub const FORMER_KEPT: u32 = 1;
pub const FORMER_PENDING: u32 = 2;
pub const FORMER_REPLY: u32 = 4;

/// One for each processor. Packets are handled with softirqs disabled, so no other packet comes between.
#[btf_map]
static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

impl Work {
    /// Reads the headers of a packet whose IP header begins at `l2`, given `skb->protocol`. `None` if it
    /// is neither a TCP packet nor an error about one, or a fragment of an IPv6 packet.
    #[inline(always)]
    pub fn of(ctx: &TcContext, l2: usize, protocol: u32) -> Option<&'static mut Self> {
        let work = WORK.get_ptr_mut(0)?;
        // SAFETY: the verifier checked the pointer, and nothing else uses the entry meanwhile.
        let work = unsafe { &mut *work };
        if work.read(ctx, l2, protocol) { Some(work) } else { None }
    }

    /// The same for a packet that the first look has found to be of TCP, without options, extension headers or fragments: it is read in
    /// place, which is faster.
    #[inline(always)]
    pub fn of_plain(ctx: &TcContext, l2: usize, protocol: u32) -> Option<&'static mut Self> {
        let work = WORK.get_ptr_mut(0)?;
        // SAFETY: as above.
        let work = unsafe { &mut *work };
        if work.read_plain(ctx.as_ptr().cast(), l2, protocol) { Some(work) } else { None }
    }

    #[inline(never)]
    fn read_plain(&mut self, skb: *mut __sk_buff, l2: usize, protocol: u32) -> bool {
        // SAFETY: the context is valid for the whole run. Volatile: LLVM would make the fields arguments, which the verifier rejects.
        let (ip, end) = unsafe {
            let (data, end) =
                (ptr::read_volatile(&raw const (*skb).data), ptr::read_volatile(&raw const (*skb).data_end));
            (data as usize + l2, end as usize)
        };
        let length = if protocol == ETH_P_IP { IPV4_LEN } else { IPV6_LEN };
        if ip + length + TCP_READ > end {
            return false;
        }
        // SAFETY: all of these bytes are in the packet, as was compared.
        let header = unsafe {
            if protocol == ETH_P_IP {
                self.tuple.source = [ptr::read_unaligned((ip + IPV4_SOURCE) as *const u32), 0, 0, 0];
                self.tuple.destination = [ptr::read_unaligned((ip + IPV4_DESTINATION) as *const u32), 0, 0, 0];
                self.tuple.family = FAMILY_V4;
            } else {
                self.tuple.source = ptr::read_unaligned((ip + IPV6_SOURCE) as *const [u32; 4]);
                self.tuple.destination = ptr::read_unaligned((ip + IPV6_DESTINATION) as *const [u32; 4]);
                self.tuple.family = FAMILY_V6;
            }
            ptr::read_unaligned((ip + length) as *const [u16; 7])
        };
        (self.tuple.reply, self.tuple.pad) = (0, [0; 2]);
        self.begin(l2, 0);
        self.set_tcp(&header, (l2 + length) as u32);
        true
    }

    /// Sets what is not known yet.
    #[inline(always)]
    fn begin(&mut self, l2: usize, fragment: u32) {
        (self.fragment, self.device, self.peer, self.l2) = (fragment, 0, NONE, l2 as u32);
        self.hop = Hop::UNKNOWN;
    }

    /// Sets what a TCP header at this place says.
    #[inline(always)]
    fn set_tcp(&mut self, header: &[u16; 7], at: u32) {
        (self.tuple.source_port, self.tuple.destination_port) = (header[0], header[1]);
        self.to = self.tuple;
        (self.tcp, self.icmp) = (at, 0);
        self.flags = u16::from_be(header[6]).into();
        self.sequence = u32::from(header[2]) | u32::from(header[3]) << 16;
    }

    #[inline(never)]
    fn read(&mut self, ctx: &TcContext, l2: usize, protocol: u32) -> bool {
        let ip = match protocol {
            ETH_P_IP => Ip::v4(ctx, l2),
            ETH_P_IPV6 => Ip::v6(ctx, l2),
            _ => None,
        };
        let Some(ip) = ip else { return false };
        self.begin(l2, ip.fragment);
        match ip.protocol {
            PROTO_TCP if self.is_later() => {
                (self.tuple, self.flags, self.icmp) = (ip.tuple, 0, 0);
                true
            }
            PROTO_TCP => self.tcp(ctx, ip).is_some(),
            ICMP | ICMPV6 if ip.fragment == 0 => self.error(ctx, &ip).is_some(),
            _ => false,
        }
    }

    /// A fragment without the ports.
    pub fn is_later(&self) -> bool {
        self.fragment & IS_LATER != 0
    }

    #[inline(always)]
    fn tcp(&mut self, ctx: &TcContext, ip: Ip) -> Option<()> {
        let header: [u16; 7] = ctx.load(ip.end).ok()?;
        self.tuple = ip.tuple;
        self.set_tcp(&header, ip.end as u32);
        Some(())
    }

    /// An error of ICMP, which quotes the beginning of a TCP packet.
    #[inline(always)]
    fn error(&mut self, ctx: &TcContext, ip: &Ip) -> Option<()> {
        let kind: [u8; 2] = ctx.load(ip.end).ok()?;
        let quoted = ip.end + ICMP_LEN;
        let inner = match (ip.protocol, kind[0]) {
            (ICMP, 3 | 11 | 12) if ip.tuple.family == FAMILY_V4 => Ip::v4(ctx, quoted),
            (ICMPV6, 1..=4) if ip.tuple.family == FAMILY_V6 => Ip::v6(ctx, quoted),
            _ => None,
        }?;
        if inner.protocol != PROTO_TCP || inner.fragment & IS_LATER != 0 {
            return None;
        }
        let ports: [u16; 2] = ctx.load(inner.end).ok()?;
        self.tuple = Tuple { source_port: ports[0], destination_port: ports[1], ..inner.tuple };
        (self.tcp, self.icmp, self.quoted) = (inner.end as u32, ip.end as u32, quoted as u32);
        self.flags = 0;
        Some(())
    }

    /// A SYN without ACK: it begins a connection.
    pub fn begins(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

/// What an IP header says.
pub struct Ip {
    /// Without ports.
    pub tuple: Tuple,
    pub protocol: u8,
    /// [`Work::fragment`].
    pub fragment: u32,
    /// Where the header of that protocol begins.
    pub end: usize,
}

impl Ip {
    /// The header at this place; `None` if it is none.
    #[inline(always)]
    pub fn v4(ctx: &TcContext, at: usize) -> Option<Self> {
        let ip: [u32; 5] = ctx.load(at).ok()?;
        let version = u32::from_be(ip[0]) >> 24;
        let (words, second) = (version & 15, u32::from_be(ip[1]));
        if version >> 4 != 4 || words < 5 {
            return None;
        }
        let later = if second & IPV4_OFFSET == 0 { 0 } else { IS_LATER };
        let fragment = if second & IPV4_FRAGMENT == 0 { 0 } else { second >> 16 | IS_FRAGMENT | later };
        let (source, destination) = ([ip[3], 0, 0, 0], [ip[4], 0, 0, 0]);
        let tuple = Tuple { source, destination, family: FAMILY_V4, ..Tuple::default() };
        let protocol = (u32::from_be(ip[2]) >> 16) as u8;
        Some(Self { tuple, protocol, fragment, end: at + 4 * words as usize })
    }

    /// The same. Extension headers are skipped.
    #[inline(always)]
    pub fn v6(ctx: &TcContext, at: usize) -> Option<Self> {
        let ip: [u32; 10] = ctx.load(at).ok()?;
        let (mut protocol, mut end) = ((u32::from_be(ip[1]) >> 8) as u8, at + IPV6_LEN);
        for _ in 0..EXTENSIONS_MAX {
            if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
                break;
            }
            let extension: [u8; 2] = ctx.load(end).ok()?;
            protocol = extension[0];
            end += 8 * (usize::from(extension[1]) + 1);
        }
        let (source, destination) = ([ip[2], ip[3], ip[4], ip[5]], [ip[6], ip[7], ip[8], ip[9]]);
        let tuple = Tuple { source, destination, family: FAMILY_V6, ..Tuple::default() };
        Some(Self { tuple, protocol, fragment: 0, end })
    }
}
