//! Another `sk_lookup` program than pod-steer's: a namespace may have several, and Linux runs them in the order in which they
//! were attached.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpListener,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
    thread,
};

use anyhow::{Context as _, Result};

use crate::{
    netns::NetNs,
    programs::{BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, attach, bpf, create_map, instruction, load},
};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_SK_RELEASE: i32 = 86;
const BPF_SK_ASSIGN: i32 = 124;
/// Where `local_port` is in `struct bpf_sk_lookup`.
const LOCAL_PORT: i16 = 60;

/// A server that answers `foreign`, and a program that chooses its socket for every connection to a port. Dropping this detaches the
/// program; the server's thread ends with the test.
#[derive(Debug)]
pub struct ForeignLookup {
    /// The link of the program.
    _link: OwnedFd,
}

impl ForeignLookup {
    /// Attaches it to a namespace.
    pub fn attach(net: &NetNs, port: u16) -> Result<Self> {
        let listener = net.run(|| TcpListener::bind("127.0.0.1:0")).context("listening")?;
        let sockets = create_map(BPF_MAP_TYPE_SOCKMAP, 4, 8, 1).context("making a socket map")?;
        update(&sockets, listener.as_raw_fd()).context("putting the listener into it")?;
        thread::spawn(move || answer(&listener));
        let program = program(sockets.as_raw_fd(), port);
        let program = load(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, &program).context("loading the program")?;
        Ok(Self { _link: attach(&program, net.as_fd(), BPF_SK_LOOKUP).context("attaching the program")? })
    }
}

fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nforeign\n");
    }
}

fn program(sockets: RawFd, port: u16) -> Vec<u64> {
    vec![
        // r6 = context; if its port is another: pass.
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x61, 3, 6, LOCAL_PORT, 0),
        instruction(0x55, 3, 0, 14, port.into()),
        // r0 = the socket under key 0, if there is one.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, 1, 0, sockets),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, BPF_MAP_LOOKUP_ELEM),
        instruction(0x15, 0, 0, 7, 0),
        // Assign it, and release the reference.
        instruction(0xbf, 7, 0, 0, 0),
        instruction(0xbf, 1, 6, 0, 0),
        instruction(0xbf, 2, 0, 0, 0),
        instruction(0xb7, 3, 0, 0, 0),
        instruction(0x85, 0, 0, 0, BPF_SK_ASSIGN),
        instruction(0xbf, 1, 7, 0, 0),
        instruction(0x85, 0, 0, 0, BPF_SK_RELEASE),
        // SK_PASS.
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

fn update(map: &OwnedFd, socket: RawFd) -> io::Result<()> {
    let (key, value) = (0u32, socket as u64);
    let mut words = [map.as_raw_fd() as u64, &raw const key as u64, &raw const value as u64, 0];
    bpf(BPF_MAP_UPDATE_ELEM, &mut words).map(drop)
}
