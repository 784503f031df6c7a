//! Listening sockets, opened as an ordinary server opens them. They accept until the server is told to stop.

use std::{
    io::{self, Write as _},
    net::TcpListener,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt},
    time::{ClockId, clock_gettime},
};

use crate::{
    args::{Args, Listen},
    connection,
    journal::Journal,
    stop::Stop,
};

/// `SD_LISTEN_FDS_START`.
const FIRST_INHERITED: i32 = 3;

/// Opens the listener and prints `socket-name ADDRESS`, from `getsockname`, and `listening NANOSECONDS ADDRESS PROTOCOL`, with the time
/// at which `listen` returned, from which tests measure how long steering takes.
pub fn open(wanted: &Listen, args: &Args) -> io::Result<TcpListener> {
    let addr = wanted.addr;
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (socket, protocol) = socket(family, args.mptcp)?;
    // Go, Python, nginx and busybox all set SO_REUSEADDR; none of them sets SO_REUSEPORT unless told to.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if args.reuseport {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, args.v6only || wanted.v6only)?;
    }
    if let Some(device) = &wanted.device {
        bind_to_device(&socket, device)?;
    }
    bind(&socket, &addr).map_err(|errno| io::Error::new(errno.kind(), format!("bind {addr}: {errno}")))?;
    listen(&socket, args.backlog).map_err(|errno| io::Error::new(errno.kind(), format!("listen {addr}: {errno}")))?;
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec * 1_000_000_000 + now.tv_nsec;
    let listener = TcpListener::from(socket);
    let name = listener.local_addr()?;
    let mut out = io::stdout().lock();
    writeln!(out, "socket-name {name}\nlistening {now_ns} {addr} {protocol}")?;
    out.flush()?;
    Ok(listener)
}

/// The inherited listeners. Other inherited sockets, such as UDP or unix sockets, are left alone.
pub fn inherited(count: i32) -> io::Result<Vec<(Listen, TcpListener)>> {
    let mut listeners = Vec::new();
    for number in FIRST_INHERITED..FIRST_INHERITED.saturating_add(count) {
        // SAFETY: the server's caller passes this descriptor to it, and no other code of this process owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let tcp = sockopt::socket_protocol(&socket)? == Some(ipproto::TCP);
        if !tcp || !sockopt::socket_acceptconn(&socket)? {
            std::mem::forget(socket);
            continue;
        }
        let listener = TcpListener::from(socket);
        let name = listener.local_addr()?;
        let mut out = io::stdout().lock();
        writeln!(out, "socket-name {name}\nlistening 0 {name} inherited")?;
        out.flush()?;
        listeners.push((Listen { addr: name, device: None, v6only: false }, listener));
    }
    Ok(listeners)
}

fn socket(family: AddressFamily, mptcp: bool) -> io::Result<(OwnedFd, &'static str)> {
    if mptcp && let Ok(socket) = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP)) {
        return Ok((socket, "mptcp"));
    }
    Ok((socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?, "tcp"))
}

fn bind_to_device(socket: &OwnedFd, device: &str) -> io::Result<()> {
    let (name, length) = (device.as_ptr().cast(), device.len() as libc::socklen_t);
    // SAFETY: the pointer and the length are those of a live string.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Accepts until told to stop, then closes the listener with whatever its queue holds, as `http.Server.Shutdown` does.
pub fn accept_all(
    listener: TcpListener,
    wanted: &Listen,
    args: &Arc<Args>,
    journal: Option<&Journal>,
    stop: &Arc<Stop>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let name = if args.tell_listener { format!("{}@{wanted}", args.name) } else { args.name.clone() };
    let name: Arc<str> = name.into();
    loop {
        let mut ready = [PollFd::new(&listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if stop.told() {
            return Ok(());
        }
        thread::sleep(args.accept_delay);
        if let Some(journal) = journal {
            journal.about_to_accept()?;
        }
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // Woken for a connection that was reset meanwhile.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                if let Some(journal) = journal {
                    journal.nothing()?;
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(journal) = journal {
            journal.accepted(peer)?;
        }
        let guard = stop.connection();
        let (args, stop, name) = (Arc::clone(args), Arc::clone(stop), Arc::clone(&name));
        thread::spawn(move || {
            let _guard = guard;
            // A client may close early; the test notices that on its side.
            if let Err(error) = connection::serve(stream, peer, &name, &args, &stop) {
                eprintln!("connection of {peer}: {error:?}");
            }
        });
    }
}
