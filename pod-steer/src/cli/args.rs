//! The arguments of the command line. No I/O and no decisions here.

pub mod explain;
pub mod options;
pub mod rollout;
pub mod sockets;
pub mod trace;
pub mod up;
pub mod web;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};

use crate::config::{
    DEFAULT_BPFFS, DEFAULT_SOCKET,
    args::{LogFormat, RunArgs},
};
use explain::ExplainArgs;
use options::OptionArgs;
use rollout::{CanaryArgs, DeployArgs, DrainArgs, HistoryArgs, PartArgs, PauseArgs, ServiceArgs, ShiftArgs};
use sockets::SocketsArgs;
use trace::TraceArgs;
use up::UpArgs;
use web::WebArgs;

/// Many containers, one port: a kernel program chooses the listening socket for each new connection.
#[derive(Debug, Parser)]
#[command(name = "pod-steer", version = crate::version::LINE.as_str(), arg_required_else_help = true)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: follow container engines and steer new connections to their containers
    Run(Box<RunArgs>),
    /// Run a command as a backend: pod-steer exec --service NAME --ports PORTS -- COMMAND
    ///
    /// The command runs in a new cgroup. If the caller's cgroup belongs to root, and it or one of its ancestors is delegated (systemd:
    /// Delegate=yes), the new cgroup is created below the caller's: the limits and BPF programs there apply to the command. Otherwise
    /// it is created below pod-steer's own cgroup, and the limits of the caller's cgroup do not hold. Therefore only operators may use
    /// `exec`.
    Exec(ExecArgs),
    /// Make a backend of a process that already listens
    Register(RegisterArgs),
    /// Show services and their backends, with their shares and states
    Status(StatusArgs),
    /// Watch services, versions and backends live: connections a second, shares, accept queues, conditions, operations
    Top(TopArgs),
    /// Serve a page for a browser on this machine: traffic, operations, history and events, as they happen
    ///
    /// It prints an address that can be opened once; only the browser that opens it sees the page. The page shows what this user may see,
    /// and changes nothing without --allow-orders. From another machine, reach it through `ssh -L`, with the same port at both ends.
    Web(WebArgs),
    /// Move all new connections to a version once it is ready, and wait for the old connections to end
    Deploy(DeployArgs),
    /// Move to a version step by step; rolls back automatically if it fails
    Canary(CanaryArgs),
    /// Set the versions' shares of new connections
    Shift(ShiftArgs),
    /// Undo the last deploy, canary or shift; aborts one that is still running
    Rollback(ServiceArgs),
    /// Stop new connections to a service, a version or one backend
    Drain(DrainArgs),
    /// End a drain
    Resume(PartArgs),
    /// Hold new connections to a service instead of refusing them
    ///
    /// A listener of pod-steer accepts the clients where it can share the servers' port; their connections go to the servers when the
    /// pause ends. Elsewhere SYNs are discarded, and clients retransmit them. The command says which it is for each port.
    Pause(PauseArgs),
    /// End a pause
    Unpause(ServiceArgs),
    /// Put a service to sleep: stop its containers until a client comes
    ///
    /// Clients are held from then on. The first one has the containers started again, and all get their answers as soon as these
    /// listen. Refused while a connection is open. The label `pod-steer.idle=15m` does the same after a time without a connection.
    Idle(ServiceArgs),
    /// Start the containers of a service that sleeps
    Wake(ServiceArgs),
    /// Show past orders: operator, order, time and outcome
    History(HistoryArgs),
    /// Print events as they happen, until interrupted
    Events(EventsArgs),
    /// Print metrics for Prometheus; without a daemon, those that the kernel keeps
    Metrics(MetricsArgs),
    /// Show the listening sockets of backends: their tables, accept queues and processes; with --live their connections
    ///
    /// Without a daemon, the pinned sockets are shown. The states of backends are then unknown, and only the network namespace of this
    /// command is looked at.
    Sockets(SocketsArgs),
    /// Show which socket the kernel programs choose for a client's packet, and why: pod-steer explain tcp SOURCE DESTINATION
    ///
    /// The programs that are attached are run on the packet of a new connection, with the tables that they use. That counts nothing and
    /// reaches no server. No daemon is needed.
    Explain(ExplainArgs),
    /// Print each choice of the kernel programs as it happens: client, backend, slot and reason; until interrupted
    ///
    /// Programs that report the choices are attached behind those that choose, as long as this command runs. Reasons: steered, forwarded,
    /// paused, refused_no_backend, passed_no_backend, passed_no_daemon, assign_eexist, by_network, network_no_backend, stale_slots,
    /// not_forwarded. No daemon is needed.
    Trace(TraceArgs),
    /// Replace the containers of a Compose service by new ones: start them beside the old ones, deploy, remove the old ones
    ///
    /// If that fails, or is interrupted, the new containers are removed and the old ones serve as before. Uses `docker compose` or
    /// `docker-compose`, and `docker`.
    Up(Box<UpArgs>),
    /// Check whether this machine meets pod-steer's requirements
    Doctor(DoctorArgs),
    /// Check a configuration file, or print a commented one
    #[command(subcommand)]
    Config(ConfigCommand),
    /// End all steering and remove everything that pod-steer created
    Unload(UnloadArgs),
    /// Hold the listener of paused services; started by the daemon
    #[command(hide = true)]
    HoldPause,
    /// Hold the clients of a paused service; started by the daemon
    #[command(hide = true)]
    HoldClients {
        /// Keep the listeners of the process that started this one
        #[arg(long)]
        keep: bool,
        /// Keep the listeners of the other processes of a cgroup
        #[arg(long, conflicts_with = "keep")]
        join: bool,
    },
    /// Print the OpenAPI 3.1 description of the API
    Openapi,
    /// Print the reference of labels, configuration keys and conditions, in Markdown
    Reference,
    /// Print the version
    Version,
}

/// How to reach the daemon.
#[derive(Clone, Debug, Args)]
pub struct SocketArgs {
    /// Path of the daemon's API socket
    #[arg(long, env = "POD_STEER_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
}

/// What a backend serves; the flags have the names of the labels.
#[derive(Clone, Debug, Args)]
pub struct BackendArgs {
    /// Name of the service
    #[arg(long)]
    pub service: String,
    /// Ports as in `docker run -p`: `[IP:]PORT[:CONTAINER-PORT]`, also ranges and comma-separated lists
    #[arg(long)]
    pub ports: String,
    /// Version of the service
    #[arg(long)]
    pub version: Option<String>,
    /// Share of new connections, relative to the other backends [default: 1]
    #[arg(long)]
    pub weight: Option<u32>,
    /// Options of the service.
    #[command(flatten)]
    pub options: OptionArgs,
    /// Name shown in `status` [default: generated]
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
    /// Pid of the process
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
    /// Show only this service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: StatusFormat,
}

/// `pod-steer top`
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Begin with the versions and backends of this service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// Time between two requests to the daemon
    #[arg(long, value_name = "TIME", default_value = "1s", allow_hyphen_values = true)]
    pub interval: String,
    /// Print everything once, after one interval, and exit; needs no terminal
    #[arg(long)]
    pub once: bool,
}

/// How `status` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// The most important columns; names are shortened to fit the terminal.
    Table,
    /// All columns, nothing shortened.
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
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: LogFormat,
}

/// `pod-steer metrics`
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Directory of pinned programs and maps, which is read if no daemon runs
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

/// `pod-steer doctor`: the settings of `run` that it checks
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Socket of a container engine; may be repeated; `none` for no engine [default: as for `run`]
    #[arg(long, env = "POD_STEER_ENGINE", value_name = "URL", value_delimiter = ',')]
    pub engine: Vec<String>,
    /// Configuration file [default: /etc/pod-steer.toml if it exists]
    #[arg(long, env = "POD_STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory, on a BPF file system, for pinned programs and maps [default: /sys/fs/bpf/pod-steer]
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
}

/// `pod-steer config`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file: prints the error with its line and exits with 2, or prints `ok`
    Check {
        /// The file [default: /etc/pod-steer.toml]
        file: Option<PathBuf>,
    },
    /// Print a configuration file with every key, explained and commented out
    Example,
}

/// `pod-steer unload`
#[derive(Clone, Debug, Args)]
pub struct UnloadArgs {
    /// The daemon's configuration file, read for the paths below [default: /etc/pod-steer.toml if it exists]
    #[arg(long, env = "POD_STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Path of the daemon's API socket [default: api.sock in the runtime directory]
    #[arg(long, env = "POD_STEER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Directory of pinned programs and maps [default: /sys/fs/bpf/pod-steer]
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Directory of the daemon's runtime files [default: /run/pod-steer]
    #[arg(long, env = "POD_STEER_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Directory of decisions and history [default: /var/lib/pod-steer]
    #[arg(long, env = "POD_STEER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}
