//! The kernel programs. They read top to bottom: `lookup` chooses the socket of a new connection, `migrate` finds a new
//! home for what waits in a closing listener, `bind` lets unmodified servers share a port, `listen` registers their
//! sockets within the limits of `quota` and counts their connections, `own` leads a backend's connections to itself. `maps` is everything they share with the daemon.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]
#![allow(missing_docs)]

mod bind;
mod ends;
mod listen;
mod lookup;
mod maps;
mod migrate;
mod own;
mod quota;
mod table;
mod users;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that assign sockets and set socket options are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
