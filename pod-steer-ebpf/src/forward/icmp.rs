//! Errors of ICMP about forwarded packets: a packet was too large, or its destination cannot be reached. The error quotes the beginning of
//! the packet, which the receiver has to know again: so what is quoted is translated as the packet itself was.

use core::ffi::c_long;

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::bpf_csum_diff,
    programs::TcContext,
};
use pod_steer_ebpf::{FAMILY_V4, FLOW_PEER, Flow, Tuple};

use super::{
    headers::{IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE, Work},
    known,
    rewrite::ipv4_header_address,
};
use crate::maps::{FLOWS, PENDING};

/// Of the ICMP header.
const CHECKSUM: usize = 2;

/// Finds what the quoted packet was before it was rewritten. An error that comes in is about a packet of the server, one that leaves is about
/// a packet of the client. `work.tuple` is the quoted packet. False if it is none of a forwarded connection.
#[inline(never)]
pub fn find(work: &mut Work, comes_in: bool) -> bool {
    let mut key = work.tuple.reversed();
    key.reply = u8::from(!comes_in);
    // SAFETY: the tuple is copied, and never changes.
    let found = unsafe { FLOWS.get(&key) }.or_else(|| unsafe { PENDING.get(&key) });
    let Some(flow) = found.filter(|flow| is_forwarded(flow)) else { return false };
    work.to = flow.to.reversed();
    if comes_in {
        // An error about a packet of the server goes where the client's packets go.
        known::go(work, 0, flow.flags, flow.backend);
    }
    true
}

/// Whether the packets of a flow leave by the host's routes. Errors about others, and about packets of a socket here, need no translation.
#[inline(always)]
fn is_forwarded(flow: &Flow) -> bool {
    known::towards(flow).is_some() && (flow.device == 0 || flow.flags & FLOW_PEER != 0)
}

/// Translates an error whose IP header begins at `l2`. One that comes in gets the server's address too. False if it fails midway.
#[inline(never)]
pub fn translate(ctx: &TcContext, l2: usize, work: &Work, comes_in: bool) -> bool {
    let done =
        if work.tuple.family == FAMILY_V4 { ipv4(ctx, l2, work, comes_in) } else { ipv6(ctx, l2, work, comes_in) };
    done.and_then(|()| ports(ctx, work)).is_ok()
}

/// The checksum of ICMP covers what is quoted. There, the change of an address and that of the header's checksum cancel out.
#[inline(always)]
fn ipv4(ctx: &TcContext, l2: usize, work: &Work, comes_in: bool) -> Result<(), c_long> {
    let (from, to, quoted) = (&work.tuple, &work.to, work.quoted as usize);
    ipv4_header_address(ctx, quoted, IPV4_SOURCE, from.source[0], to.source[0])?;
    ipv4_header_address(ctx, quoted, IPV4_DESTINATION, from.destination[0], to.destination[0])?;
    if comes_in { ipv4_header_address(ctx, l2, IPV4_DESTINATION, from.source[0], to.source[0]) } else { Ok(()) }
}

/// The checksum of ICMPv6 covers the addresses of its own packet too.
#[inline(always)]
fn ipv6(ctx: &TcContext, l2: usize, work: &Work, comes_in: bool) -> Result<(), c_long> {
    let (from, to, quoted) = (&work.tuple, &work.to, work.quoted as usize);
    let checksum = work.icmp as usize + CHECKSUM;
    let difference = |old: &[u32; 4], new: &[u32; 4]| {
        // SAFETY: both are 16 bytes that the helper only reads.
        unsafe { bpf_csum_diff(old.as_ptr().cast_mut(), 16, new.as_ptr().cast_mut(), 16, 0) as u64 }
    };
    let (source, destination) = (difference(&from.source, &to.source), difference(&from.destination, &to.destination));
    ctx.l4_csum_replace(checksum, 0, source, 0)?;
    ctx.store(quoted + IPV6_SOURCE, &to.source, 0)?;
    ctx.l4_csum_replace(checksum, 0, destination, 0)?;
    ctx.store(quoted + IPV6_DESTINATION, &to.destination, 0)?;
    if !comes_in {
        return Ok(());
    }
    ctx.l4_csum_replace(checksum, 0, source, BPF_F_PSEUDO_HDR.into())?;
    ctx.store(l2 + IPV6_DESTINATION, &to.source, BPF_F_RECOMPUTE_CSUM.into())
}

#[inline(always)]
fn ports(ctx: &TcContext, work: &Work) -> Result<(), c_long> {
    let (from, to): (&Tuple, &Tuple) = (&work.tuple, &work.to);
    for (at, old, new) in [(0, from.source_port, to.source_port), (2, from.destination_port, to.destination_port)] {
        if old != new {
            ctx.l4_csum_replace(work.icmp as usize + CHECKSUM, old.into(), new.into(), 2)?;
            ctx.store(work.tcp as usize + at, &new, 0)?;
        }
    }
    Ok(())
}
