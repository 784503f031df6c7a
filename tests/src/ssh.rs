//! A real sshd in a test's host, Dropbear: Debian has it as a package of programs alone, which starts no service. Its client is OpenSSH's.

use std::{
    fs,
    io::Read as _,
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    accounts::Account,
    host::Host,
    process::{Process, run},
    tools, wait,
};

/// Where it listens: the host's network namespace is its own.
const ADDRESS: &str = "127.0.0.1:22";

/// The requirements of these tests.
pub fn needed() -> Result<(), String> {
    tools::root_and(&["dropbear", "dropbearkey", "ssh", "ssh-keygen"])
}

/// An sshd that one key may log in to, as one user.
#[derive(Debug)]
pub struct Sshd {
    _process: Process,
    /// The line of `known_hosts` by which clients know it.
    pub known_host: String,
    /// The private key of its client.
    pub client_key: PathBuf,
}

impl Sshd {
    /// Starts it. `options` stand before the client's key in `authorized_keys`, as in `restrict,command="..."`.
    pub fn start(host: &Host, account: &Account, options: &str) -> Result<Self> {
        let dir = host.dir().join("ssh");
        fs::create_dir_all(&dir)?;
        let (host_key, client_key) = (dir.join("host"), dir.join("client"));
        let program = |name: &str| tools::find(name).with_context(|| format!("{name} is not installed"));
        let said = run(Command::new(program("dropbearkey")?).args(["-t", "ed25519", "-f"]).arg(&host_key))?;
        let public = said.lines().find(|line| line.starts_with("ssh-ed25519 ")).context("no public key")?;
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "client", "-f"]).arg(&client_key))?;
        let client = fs::read_to_string(client_key.with_extension("pub"))?;

        let keys = account.home(host).join(".ssh");
        fs::create_dir_all(&keys)?;
        let authorized = keys.join("authorized_keys");
        fs::write(&authorized, [options, " ", &client].concat().trim_start())?;
        for (path, mode) in [(&keys, 0o700), (&authorized, 0o600)] {
            chown(path, Some(account.id), Some(account.id))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        let mut command = host.command(program("dropbear")?)?;
        // In the foreground, its log on standard error, without passwords.
        command.args(["-F", "-E", "-s", "-p", ADDRESS, "-r"]).arg(&host_key).arg("-P").arg(dir.join("pid"));
        let process = host.start("dropbear", &mut command)?;
        wait::until_ok("sshd to answer", || {
            let greeting = host.net().run(|| {
                let mut greeting = [0; 4];
                TcpStream::connect(ADDRESS)?.read_exact(&mut greeting).map(|()| greeting)
            });
            Ok(greeting.is_ok_and(|greeting| &greeting == b"SSH-").then_some(()))
        })
        .with_context(|| process.stderr())?;
        let key: Vec<&str> = public.split(' ').take(2).collect();
        Ok(Self { _process: process, known_host: format!("127.0.0.1 {}\n", key.join(" ")), client_key })
    }
}
