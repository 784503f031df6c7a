//! What the programs of a judgement read of a segment: where its data is, whether it is new, and the first line of an answer by HTTP/1.

use core::ptr;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_tcp_sock},
    helpers::generated::bpf_tcp_sock as bpf_tcp_sock_of,
    programs::SkBuffContext,
};
use pod_steer_ebpf::PROTO_TCP;

/// The class of answers that others follow, and what stands for the one that no other by HTTP follows.
pub const PROVISIONAL: u8 = 1;
pub const SWITCHES: u8 = 101;
/// The length of `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

/// The data of a segment.
pub struct Payload {
    /// Its offset in the packet.
    pub at: u32,
    pub sequence: u32,
}

/// The data of a packet's TCP segment, if it has any. The packet begins with its IP header.
#[inline(always)]
pub fn payload(ctx: &SkBuffContext) -> Option<Payload> {
    let first: u8 = ctx.load(0).ok()?;
    let (header, protocol): (u32, u8) = match first >> 4 {
        4 => (u32::from(first & 15) * 4, ctx.load(9).ok()?),
        6 => (40, ctx.load(6).ok()?),
        _ => return None,
    };
    if protocol != PROTO_TCP {
        return None;
    }
    let sequence: u32 = ctx.load(header as usize + 4).ok()?;
    let words: u8 = ctx.load(header as usize + 12).ok()?;
    let at = header + u32::from(words >> 4) * 4;
    if ctx.len() <= at { None } else { Some(Payload { at, sequence: u32::from_be(sequence) }) }
}

/// The first digit of the status of an answer by HTTP/1, if it is one.
#[inline(always)]
pub fn status_class(ctx: &SkBuffContext, at: u32) -> Option<u8> {
    let line: [u8; STATUS_LINE] = ctx.load(at as usize).ok()?;
    let digit = line[9].wrapping_sub(b'0');
    let is_http = line[0] == b'H'
        && line[1] == b'T'
        && line[2] == b'T'
        && line[3] == b'P'
        && line[4] == b'/'
        && line[5] == b'1'
        && line[6] == b'.'
        && line[8] == b' ';
    // The one that switches protocols (101) is the last one by HTTP.
    let digit = if digit == PROVISIONAL && line[10] == b'0' && line[11] == b'1' { SWITCHES } else { digit };
    if is_http { Some(digit) } else { None }
}

/// Whether a segment has been sent before: the kernel counts one that is new only after this program.
#[inline(always)]
pub fn is_repeated(sk: *mut bpf_sock, sequence: u32) -> bool {
    // SAFETY: the socket is valid for the whole run.
    let tcp: *mut bpf_tcp_sock = unsafe { bpf_tcp_sock_of(sk) };
    // SAFETY: it is not null, and as valid as its socket.
    !tcp.is_null() && unsafe { ptr::read_volatile(&raw const (*tcp).snd_nxt) } != sequence
}

/// Whether a segment that ends with this sequence number brings something that has not arrived before.
#[inline(always)]
pub fn is_ahead(sk: *mut bpf_sock, end: u32) -> bool {
    // SAFETY: the socket is valid for the whole run.
    let tcp: *mut bpf_tcp_sock = unsafe { bpf_tcp_sock_of(sk) };
    // SAFETY: it is not null, and as valid as its socket.
    tcp.is_null() || unsafe { end.wrapping_sub(ptr::read_volatile(&raw const (*tcp).rcv_nxt)) as i32 } > 0
}
