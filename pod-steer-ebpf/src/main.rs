//! The kernel programs, from the top down. `lookup` chooses the socket of a new connection. `migrate` moves the queue
//! of a closing listener. `bind` and `users` let unmodified servers share a port. `listen` registers their sockets
//! within the limits of `quota` and counts their connections. `forward` hands packets to backends in other namespaces. `own` steers a backend's connections to itself. `maps`
//! holds everything that the programs share with the daemon.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic addition on this target")]
#![allow(missing_docs)]

mod bind;
mod choose;
mod ends;
mod forward;
mod listen;
mod lookup;
mod maps;
mod migrate;
mod own;
mod packet;
mod quota;
mod rules;
mod table;
mod users;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Only GPL-compatible programs may call the helpers that assign sockets and set socket options.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
