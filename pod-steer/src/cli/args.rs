//! The command line, as it is written. No I/O and no decisions here.

pub mod options;
pub mod rollout;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};

use crate::config::{
    DEFAULT_SOCKET,
    args::{LogFormat, RunArgs},
};
use options::OptionArgs;
use rollout::{CanaryArgs, DeployArgs, HistoryArgs, PartArgs, ServiceArgs, ShiftArgs};

/// Many containers, one port: the kernel chooses whose listening socket gets each new connection.
#[derive(Debug, Parser)]
#[command(name = "pod-steer", version = crate::version::LINE.as_str(), arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: follow container engines and steer new connections to their containers
    Run(Box<RunArgs>),
    /// Run a command as a backend: pod-steer exec --service NAME --ports PORTS -- COMMAND
    ///
    /// The command runs in a cgroup of its own. Where the caller's cgroup, or one above it, is delegated (systemd: Delegate=yes) and the
    /// caller's belongs to root, the new one is made below the caller's: all limits and BPF programs there hold for the command. Anywhere
    /// else it is made in pod-steer's own cgroup, and the limits of the caller's cgroup do not hold. Therefore only operators
    /// may use `exec`.
    Exec(ExecArgs),
    /// Make a process that already listens a backend
    Register(RegisterArgs),
    /// Show services and their backends, with their shares and states
    Status(StatusArgs),
    /// Move all new connections to a version once it is ready, and wait until those of the others end
    Deploy(DeployArgs),
    /// Move to a version step by step; rolls back automatically if it fails
    Canary(CanaryArgs),
    /// Set the versions' shares of new connections
    Shift(ShiftArgs),
    /// Undo the last deploy, canary or shift; aborts one that is still running
    Rollback(ServiceArgs),
    /// Stop new connections to a service, a version or one backend
    Drain(PartArgs),
    /// End a drain
    Resume(PartArgs),
    /// Make new connections to a service wait, without refusing any
    Pause(ServiceArgs),
    /// End a pause
    Unpause(ServiceArgs),
    /// Show past orders: operator, order, time and outcome
    History(HistoryArgs),
    /// Print events as they happen, until interrupted
    Events(EventsArgs),
    /// Check whether this machine has what pod-steer needs
    Doctor(DoctorArgs),
    /// End all steering and remove everything that pod-steer made
    Unload(UnloadArgs),
    /// Hold the listener of paused services; started by the daemon
    #[command(hide = true)]
    HoldPause,
    /// Print the OpenAPI 3.1 description of the API
    Openapi,
    /// Print the reference of labels and configuration keys, in Markdown
    Reference,
    /// Print the version
    Version,
}

/// Where the daemon listens.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// The daemon's socket
    #[arg(long, env = "POD_STEER_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// What a backend serves: the words of the labels.
#[derive(Clone, Debug, Args)]
pub struct BackendArgs {
    /// Name of the service
    #[arg(long)]
    pub service: String,
    /// Ports as in `docker -p`: `[IP:]PORT[:CONTAINER-PORT]`, ranges and lists too
    #[arg(long)]
    pub ports: String,
    /// Version of the service
    #[arg(long)]
    pub version: Option<String>,
    /// Share of new connections, relative to the others [default: 1]
    #[arg(long)]
    pub weight: Option<u32>,
    /// Options of the service.
    #[command(flatten)]
    pub options: OptionArgs,
    /// Name for people [default: made up]
    #[arg(long)]
    pub name: Option<String>,
}

/// `pod-steer exec`
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// The backend.
    #[command(flatten)]
    pub backend: BackendArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// `pod-steer register`
#[derive(Clone, Debug, Args)]
pub struct RegisterArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// The process
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// The backend.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// `pod-steer status`
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Only this service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: StatusFormat,
}

/// How `status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// The most important columns; names are cut where the terminal is too narrow for them.
    Table,
    /// All columns, nothing cut.
    Wide,
    /// For programs.
    Json,
}

/// `pod-steer events`
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// How to print them
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// `pod-steer doctor`: the settings of `run` that it looks at
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Address of a container engine; again for several; `none` for none [default: as `run`]
    #[arg(long, env = "POD_STEER_ENGINE", value_name = "URL", value_delimiter = ',')]
    pub engine: Vec<String>,
    /// Settings [default: /etc/pod-steer.toml if it is there]
    #[arg(long, env = "POD_STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to pin programs and maps [default: /sys/fs/bpf/pod-steer]
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
}

/// `pod-steer unload`
#[derive(Clone, Debug, Args)]
pub struct UnloadArgs {
    /// The daemon's settings, which say where everything is [default: /etc/pod-steer.toml if it is there]
    #[arg(long, env = "POD_STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's socket [default: api.sock in the runtime directory]
    #[arg(long, env = "POD_STEER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where programs and maps are pinned [default: /sys/fs/bpf/pod-steer]
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Where the daemon keeps its files [default: /run/pod-steer]
    #[arg(long, env = "POD_STEER_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Where it keeps decisions and history [default: /var/lib/pod-steer]
    #[arg(long, env = "POD_STEER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}
