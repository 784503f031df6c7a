//! An object of its own, which is loaded only while idle connections are looked for: an iterator over the TCP sockets of a network
//! namespace (`iter/tcp` with `bpf_get_socket_cookie`, Linux 5.12), which tells of each connection whether its client waits for an answer.
//!
//! The times of `tcp_info` do not tell: they count in the kernel's ticks of up to 10 ms, so a client that sends its next request
//! in the tick of the answer before looks like one that was answered. The order is in two sequence numbers. `snd_wl1` is that of the
//! last segment that acknowledged something new. A client that has been answered acknowledges the answer, after all that it has
//! sent: `snd_wl1` is then `rcv_nxt`. If it has sent more since, `rcv_nxt` is ahead.
#![no_std]
#![no_main]
#![allow(missing_docs)]

use core::ptr;

use aya_ebpf::{
    bindings::tcp_sock,
    cty::c_void,
    helpers::{bpf_get_socket_cookie, bpf_seq_write, bpf_skc_to_tcp_sock},
};
use pod_steer_ebpf::Heard;

/// Offsets of fields of `struct tcp_sock`, from the kernel's BTF.
#[unsafe(no_mangle)]
static RCV_NXT: u32 = 0;
#[unsafe(no_mangle)]
static SND_WL1: u32 = 0;

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    sk: *mut c_void,
}

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
pub struct Meta {
    seq: *mut c_void,
}

/// # Safety
/// Only the kernel calls it, with its own context.
#[unsafe(link_section = "iter/tcp")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn heard(context: *const Context) -> i32 {
    // SAFETY: guaranteed by the kernel; the pointers in it are valid for the whole run, or null at the end of the iteration.
    let (meta, sk) = unsafe { ((*context).meta, (*context).sk) };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: `sk` is a socket of the iteration. The helper returns null for one that is no full TCP socket.
    let tcp: *mut tcp_sock = unsafe { bpf_skc_to_tcp_sock(sk) };
    if tcp.is_null() {
        return 0;
    }
    // SAFETY: the helper returned it. The constants are offsets of words in it, or the kernel refuses the program.
    let record = unsafe {
        Heard {
            cookie: bpf_get_socket_cookie(tcp.cast()),
            rcv_nxt: word(tcp.cast(), ptr::read_volatile(&raw const RCV_NXT)),
            snd_wl1: word(tcp.cast(), ptr::read_volatile(&raw const SND_WL1)),
        }
    };
    // SAFETY: `meta` is valid; the record is a local value without padding.
    unsafe {
        let seq = (*meta).seq;
        bpf_seq_write(seq.cast(), (&raw const record).cast_mut().cast(), size_of::<Heard>() as u32);
    }
    0
}

/// # Safety
/// There is a word at this offset.
#[inline(always)]
unsafe fn word(of: *const u8, offset: u32) -> u32 {
    // SAFETY: guaranteed by the caller.
    unsafe { ptr::read_volatile(of.add(offset as usize).cast::<u32>()) }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_seq_write` is only for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
