//! A real Docker engine in a test's own host.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    container::{Container, Docker, Spec},
    host::Host,
    image::Image,
    process::{Process, output},
    wait,
};

/// Where an engine keeps its containers, in its host: in memory, where a container is made and removed in a fraction of the time.
const DATA: &str = "/run/docker-data";

/// The containers of a host's engine that have ended, with their exit codes and what they wrote to standard error. For messages: it
/// says why a server is not there.
pub fn ended_containers(host: &Host) -> String {
    let mut text = String::new();
    for dir in
        fs::read_dir(host.path(DATA).join("containers")).into_iter().flatten().flatten().map(|entry| entry.path())
    {
        let config = fs::read(dir.join("config.v2.json")).unwrap_or_default();
        let Ok(config) = serde_json::from_slice::<Value>(&config) else { continue };
        let state = &config["State"];
        if state["Running"] != false || state["FinishedAt"].as_str().is_none_or(|at| at.starts_with("0001-")) {
            continue;
        }
        text += &format!("\ncontainer {} ended with {}", config["Name"], state["ExitCode"]);
        let log = dir.file_name().map(|id| dir.join(format!("{}-json.log", id.display())));
        let log = log.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for line in lines.filter(|line| line["stream"] == "stderr") {
            text += &format!(": {}", line["log"].as_str().unwrap_or_default().trim_end());
        }
    }
    text
}

/// How an engine is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether it publishes ports, by iptables and docker-proxy, as an engine out of the box does.
    publishes: bool,
    /// More arguments of `dockerd`.
    arguments: Vec<String>,
    /// The root directory of another release; `None` for that of the machine.
    root: Option<PathBuf>,
}

impl Options {
    /// An engine as it comes out of the box: it sets rules of the firewall, and containers can publish ports (`-p`).
    pub fn publishing() -> Self {
        Self { publishes: true, ..Self::default() }
    }

    /// More arguments of `dockerd`.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// The engine of another root directory, with its libraries, its containerd and its iptables.
    pub fn root(self, root: PathBuf) -> Self {
        Self { root: Some(root), ..self }
    }
}

/// Makes another root directory the root of a mount namespace, with the host's devices, processes, `/sys`, `/run` and test directory, and
/// runs `dockerd` there. A plain chroot is not enough, because runc changes the root of a container's mount namespace itself.
const IN_ROOT: &str = r#"
set -e
root=$1; dir=$2; shift 2
mount --bind "$root" "$root"
cd "$root"
mkdir -p dev proc sys run tmp mnt var etc/docker
for at in dev proc sys run; do mount --rbind /$at $at; done
for at in tmp etc/docker; do mount -t tmpfs -o mode=755 none $at; done
[ -e var/run ] || ln -s /run var/run
mkdir -p "$root$dir"
mount --rbind "$dir" "$root$dir"
pivot_root . mnt
cd /
exec /usr/sbin/dockerd "$@"
"#;

fn wait_until_ready(process: &Process, docker: &Docker) -> Result<()> {
    wait::until_ok("dockerd to answer", || {
        let answer = output(docker.command().args(["version"]))?;
        Ok(answer.status.success().then_some(()))
    })
    .with_context(|| process.stderr())
}

/// `dockerd`, with data, sockets and configuration of its own.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    docker: Docker,
    /// Its mount namespace, where its containers' network namespaces are mounted: a later process of it needs them.
    mounts: File,
    /// Those of its next start.
    options: Mutex<Options>,
    imported: Mutex<BTreeSet<Image>>,
}

impl Engine {
    /// Starts an engine in a host and waits until it answers.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, Options::default())
    }

    /// The same. Containers on its bridge reach other networks and can publish ports (`-p`).
    pub fn start_publishing(host: &Host) -> Result<Self> {
        Self::start_with(host, Options::publishing())
    }

    /// The same, with these options.
    pub fn start_with(host: &Host, options: Options) -> Result<Self> {
        let dir = host.dir().join("docker");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("daemon.json"), "{}")?;
        let docker = Docker::new(dir.join("docker.sock"), &[]);
        let process = Self::launch(host, &docker, &options, None)?;
        wait_until_ready(&process, &docker)?;
        let mounts = File::open(format!("/proc/{}/ns/mnt", process.pid()))?;
        Ok(Self { process, docker, mounts, options: Mutex::new(options), imported: Mutex::default() })
    }

    /// Stops the engine and starts it again, as an upgrade does. Its containers keep running meanwhile (`--live-restore`).
    pub fn restart(&mut self, host: &Host) -> Result<()> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(wait::STUCK)?;
        let options = self.options.lock().expect("no thread panics with them").clone();
        self.process = Self::launch(host, &self.docker, &options, Some(&self.mounts))?;
        wait_until_ready(&self.process, &self.docker)
    }

    /// Sets the further arguments of its next start.
    pub fn set_arguments(&self, arguments: &[&str]) {
        let mut options = self.options.lock().expect("no thread panics with them");
        options.arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// Sends the engine a signal: SIGSTOP makes it hang, SIGKILL ends it. Its containers keep running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    fn launch(host: &Host, docker: &Docker, options: &Options, mounts: Option<&File>) -> Result<Process> {
        let dir = host.dir().join("docker");
        let mut command = match &options.root {
            None => host.command("dockerd")?,
            Some(root) => Self::in_root(host, root, mounts)?,
        };
        command.arg("--config-file").arg(dir.join("daemon.json"));
        command.args(["--data-root", DATA, "--exec-root"]).arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid")).arg("--host").arg(docker.url());
        if !options.publishes {
            // The host's only networks are its own; nothing is published or translated.
            command.arg("--iptables=false");
        }
        if options.root.is_none() {
            command.arg("--ip6tables=false");
        }
        command.args(["--live-restore", "--log-level", "warn"]).args(&options.arguments);
        host.start("dockerd", &mut command)
    }

    /// `dockerd` in its own root directory. A restarted one needs the mounts of the one before. Its namespace is entered by a descriptor: since
    /// 6.18, a kernel gives namespaces their numbers by CPU, and mounts only one with a higher number than that of the namespace it is mounted in.
    fn in_root(host: &Host, root: &Path, mounts: Option<&File>) -> Result<Command> {
        let mut command = match mounts {
            Some(mounts) => {
                let mut command = host.command("nsenter")?;
                command.arg(format!("--mount=/proc/{}/fd/{}", std::process::id(), mounts.as_raw_fd()));
                command.arg("/usr/sbin/dockerd");
                command
            }
            None => {
                let mut command = host.command("unshare")?;
                command.args(["--mount", "sh", "-c", IN_ROOT, "sh"]).arg(root).arg(host.dir());
                command
            }
        };
        // Clients of the machine may be older than the engine.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DOCKER_MIN_API_VERSION", "1.24");
        Ok(command)
    }

    /// The engine's own pid, of which its docker-proxies are children.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The `docker` command for this engine.
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The engine's address: `unix:///...`.
    pub fn url(&self) -> String {
        self.docker.url()
    }

    /// Makes an image known, once.
    pub fn import(&self, image: Image) -> Result<()> {
        let mut imported = self.imported.lock().expect("no thread panics while it imports");
        if imported.insert(image) {
            self.docker.import(image)?;
        }
        Ok(())
    }

    /// Creates a container, importing its image if need be.
    pub fn create_container(&self, spec: &Spec) -> Result<Container> {
        self.import(spec.image())?;
        self.docker.create(spec)
    }

    /// Starts a container, importing its image if need be.
    pub fn start_container(&self, spec: &Spec) -> Result<Container> {
        let container = self.create_container(spec)?;
        container.start()?;
        Ok(container)
    }
}
