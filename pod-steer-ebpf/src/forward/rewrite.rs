//! Rewrites the addresses and ports of a packet, and its checksums.

use core::ffi::c_long;

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::bpf_csum_diff,
    programs::TcContext,
};
use pod_steer_ebpf::{FAMILY_V4, Tuple};

use super::headers::{IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE};

/// Of the TCP header.
const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const TCP_CHECKSUM: usize = 16;

/// Makes a packet of `to` out of one of `from`, whose IP header begins at `l2` and whose TCP header at `tcp`. What is equal in both is not
/// touched. False if it fails midway.
#[inline(never)]
pub fn rewrite(ctx: &TcContext, l2: usize, from: &Tuple, to: &Tuple, tcp: u32) -> bool {
    addresses(ctx, l2, from, to, tcp as usize).and_then(|()| ports(ctx, from, to, tcp as usize)).is_ok()
}

#[inline(always)]
fn addresses(ctx: &TcContext, l2: usize, from: &Tuple, to: &Tuple, tcp: usize) -> Result<(), c_long> {
    let checksum = tcp + TCP_CHECKSUM;
    if from.family == FAMILY_V4 {
        ipv4_address(ctx, checksum, l2, IPV4_SOURCE, from.source[0], to.source[0])?;
        ipv4_address(ctx, checksum, l2, IPV4_DESTINATION, from.destination[0], to.destination[0])
    } else {
        ipv6_address(ctx, checksum, l2 + IPV6_SOURCE, &from.source, &to.source)?;
        ipv6_address(ctx, checksum, l2 + IPV6_DESTINATION, &from.destination, &to.destination)
    }
}

#[inline(always)]
fn ports(ctx: &TcContext, from: &Tuple, to: &Tuple, tcp: usize) -> Result<(), c_long> {
    port(ctx, tcp + TCP_CHECKSUM, tcp + SOURCE_PORT, from.source_port, to.source_port)?;
    port(ctx, tcp + TCP_CHECKSUM, tcp + DESTINATION_PORT, from.destination_port, to.destination_port)
}

#[inline(always)]
fn ipv4_address(ctx: &TcContext, checksum: usize, l2: usize, at: usize, old: u32, new: u32) -> Result<(), c_long> {
    if old == new {
        return Ok(());
    }
    ctx.l4_csum_replace(checksum, old.into(), new.into(), u64::from(BPF_F_PSEUDO_HDR) | 4)?;
    ipv4_header_address(ctx, l2, at, old, new)
}

/// Replaces an address at this place of an IPv4 header that begins at `l2`, and nothing beyond the header.
#[inline(always)]
pub fn ipv4_header_address(ctx: &TcContext, l2: usize, at: usize, old: u32, new: u32) -> Result<(), c_long> {
    if old == new {
        return Ok(());
    }
    ctx.l3_csum_replace(l2 + IPV4_CHECKSUM, old.into(), new.into(), 4)?;
    ctx.store(l2 + at, &new, 0)
}

/// IPv6 has no checksum of its own, so the difference is not cancelled in that of the whole packet: the helper adds it.
#[inline(always)]
fn ipv6_address(ctx: &TcContext, checksum: usize, at: usize, old: &[u32; 4], new: &[u32; 4]) -> Result<(), c_long> {
    // LLVM fails to compile a comparison of the arrays for this target.
    if (old[0] ^ new[0]) | (old[1] ^ new[1]) | (old[2] ^ new[2]) | (old[3] ^ new[3]) == 0 {
        return Ok(());
    }
    // SAFETY: both are 16 bytes that the helper only reads.
    let difference = unsafe {
        let (old, new) = (old.as_ptr().cast_mut(), new.as_ptr().cast_mut());
        bpf_csum_diff(old, 16, new, 16, 0)
    };
    ctx.l4_csum_replace(checksum, 0, difference as u64, BPF_F_PSEUDO_HDR.into())?;
    ctx.store(at, new, BPF_F_RECOMPUTE_CSUM.into())
}

#[inline(always)]
fn port(ctx: &TcContext, checksum: usize, at: usize, old: u16, new: u16) -> Result<(), c_long> {
    if old == new {
        return Ok(());
    }
    ctx.l4_csum_replace(checksum, old.into(), new.into(), 2)?;
    ctx.store(at, &new, 0)
}
