//! Checks whether an engine's socket accepts connections, and explains why it does not.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::EngineError;

/// The path of an engine's socket.
pub fn path_of(engine: &str) -> &Path {
    Path::new(engine.trim_start_matches("unix://"))
}

/// Name of an engine for messages: `Docker at /var/run/docker.sock`.
pub fn name(engine: &str) -> String {
    let path = path_of(engine).display().to_string();
    let kind = ["podman", "docker"].into_iter().find(|kind| path.to_lowercase().contains(kind));
    let kind = kind.map_or("the engine", |kind| if kind == "podman" { "Podman" } else { "Docker" });
    format!("{kind} at {path}")
}

/// The user that owns an engine's socket. Root if the owner cannot be read.
pub fn owner(engine: &str) -> u32 {
    fs::metadata(path_of(engine)).map_or(0, |socket| socket.uid())
}

/// Whether an engine's socket exists.
pub fn is_there(engine: &str) -> bool {
    path_of(engine).exists()
}

/// Connects to an engine's socket and disconnects. Never blocks: a full backlog is an error.
pub fn reach(engine: &str) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&socket, &SocketAddrUnix::new(path_of(engine))?)?)
}

/// Why an engine does not answer, and what to do.
pub fn describe(engine: &str, error: &EngineError) -> String {
    match reach(engine) {
        Err(cause) => unreachable(engine, &cause),
        Ok(()) => crate::chain(error),
    }
}

/// Why an engine's socket cannot be connected to, and what to do.
pub fn unreachable(engine: &str, cause: &io::Error) -> String {
    let path = path_of(engine);
    let shown = path.display();
    let socket = fs::metadata(path);
    match cause.kind() {
        io::ErrorKind::NotFound if path.starts_with("/run/user") || path.starts_with("/home") => format!(
            "no such file: {shown}; start the engine, or name its socket with `--engine` (under systemd, `ProtectHome=yes` hides it)"
        ),
        io::ErrorKind::NotFound => {
            format!("no such file: {shown}; start the engine, or name its socket with `--engine`")
        }
        io::ErrorKind::PermissionDenied => match socket.map_or(0, |socket| socket.uid()) {
            0 => format!("permission denied: {shown}; check for a denial by SELinux or AppArmor"),
            uid => format!(
                "permission denied: {shown} belongs to user {uid}, and the daemon has dropped CAP_DAC_OVERRIDE; let root connect, \
                 as with `SocketMode=0666` in that user's podman.socket (its directory keeps other users out)"
            ),
        },
        io::ErrorKind::ConnectionRefused if socket.is_ok_and(|socket| !socket.file_type().is_socket()) => {
            format!("not a socket: {shown}; name the engine's socket with `--engine`")
        }
        io::ErrorKind::ConnectionRefused => format!("connection refused: {shown}; start the engine"),
        io::ErrorKind::WouldBlock => {
            format!("the engine accepts no connections (its backlog is full): {shown}; restart it")
        }
        _ => format!("{cause}: {shown}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn each_cause_is_told_apart() {
        let dir = std::env::temp_dir().join(format!("pod-steer-engines-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let engine = |name: &str| format!("unix://{}", dir.join(name).display());
        let why = |name: &str| unreachable(&engine(name), &reach(&engine(name)).unwrap_err());
        assert!(why("none").starts_with("no such file: "), "{}", why("none"));
        fs::write(dir.join("file"), "").unwrap();
        assert!(why("file").starts_with("not a socket: "), "{}", why("file"));
        let listener = UnixListener::bind(dir.join("socket")).unwrap();
        reach(&engine("socket")).unwrap();
        drop(listener);
        assert!(why("socket").starts_with("connection refused: "), "{}", why("socket"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn engines_have_names() {
        assert_eq!(name("unix:///var/run/docker.sock"), "Docker at /var/run/docker.sock");
        assert_eq!(name("unix:///run/user/1000/podman/podman.sock"), "Podman at /run/user/1000/podman/podman.sock");
        assert_eq!(name("/run/x.sock"), "the engine at /run/x.sock");
    }
}
