//! Arguments of the commands that move traffic. Lists and durations stay text here; `given` parses them, with errors of one line.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use super::SocketArgs;

/// `pod-steer pause`
#[derive(Clone, Debug, Args)]
pub struct PauseArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Refuse clients after this time, also those that are held [default: no limit]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub max: Option<String>,
}

/// `pod-steer rollback`, `unpause`, `idle` and `wake`
#[derive(Clone, Debug, Args)]
pub struct ServiceArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Name of the service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: String,
}

/// The output format of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What happens to connections that are open at the deadline of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AtDeadline {
    /// They stay open, and the command exits with 3
    #[default]
    Leave,
    /// They are reset: requests in flight are lost
    Reset,
}

/// How the old connections of a drain are brought to an end.
#[derive(Clone, Debug, Args)]
pub struct EndingArgs {
    /// Close connections that have been idle for this long (1s if no TIME is given), by their own server: it sees the end of its client's data.
    /// 0s closes none [default: as the service's option drain.close-idle says]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s", allow_hyphen_values = true)]
    pub close_idle: Option<String>,
    /// Close connections that have been open for this long between two requests, though they are never idle for long. 0s closes none for its
    /// age [default: as the service's option drain.max-age says]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub max_age: Option<String>,
    /// Close at most so many a second [default: evenly until the deadline]
    #[arg(long, value_name = "NUMBER/s", allow_hyphen_values = true)]
    pub rate: Option<String>,
    /// What happens to connections that are open at the deadline
    #[arg(long, value_name = "WHAT", default_value = "leave")]
    pub at_deadline: AtDeadline,
}

/// `pod-steer deploy`
#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Version that gets all new connections
    pub version: String,
    /// Number of its backends that must be ready [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub backends: Option<u32>,
    /// Time limit for them to become ready
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true)]
    pub timeout: String,
    /// Time limit for the connections of the old version to end; with --recreate 5s if not given
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        default_value_if("recreate", "true", "5s"),
        allow_hyphen_values = true
    )]
    pub drain_timeout: String,
    /// How they end.
    #[command(flatten)]
    pub ending: EndingArgs,
    /// Stop the old version first, and start the version's containers, which exist and do not run, once it has ended
    ///
    /// For applications that must never run twice. Clients are held meanwhile. If the version fails, it is stopped, and the old one
    /// is started again.
    #[arg(long, conflicts_with_all = ["stop_old", "keep_old"])]
    pub recreate: bool,
    /// With --recreate: also if some clients cannot be held; their SYNs are discarded, and they repeat them
    #[arg(long, requires = "recreate")]
    pub allow_drop: bool,
    /// With --recreate: refuse clients that have been held for so long [default: hold them until a version serves]
    #[arg(long, value_name = "TIME", requires = "recreate", allow_hyphen_values = true)]
    pub max_hold: Option<String>,
    /// Compare the version for this long with what the old one did before, and go back if it treats its clients worse
    ///
    /// The old version is observed for up to 30s first. It is stopped after that, if it is to be.
    #[arg(long, value_name = "TIME", conflicts_with = "recreate", allow_hyphen_values = true)]
    pub watch: Option<String>,
    /// With --watch: how much later its answers may begin (99% of them) than those of the old version
    #[arg(long, value_name = "PERCENT", default_value = "25%", requires = "watch", allow_hyphen_values = true)]
    pub max_slowdown: String,
    /// Stop the old version's containers once all of its connections have ended
    #[arg(long)]
    pub stop_old: bool,
    /// Stop them this long after the drain instead, so that a rollback is possible until then; implies --stop-old
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub keep_old: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// Whether the versions of a canary are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Judge {
    /// Roll back if the version is worse; go on if a step has too few connections to tell
    #[default]
    On,
    /// Roll back also if nothing in a step could be judged
    Required,
    /// Go by the state of the backends alone
    Off,
}

/// `pod-steer canary`
#[derive(Clone, Debug, Args)]
pub struct CanaryArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Version that gets a growing share of new connections
    pub version: String,
    /// Its share of new connections at each step
    #[arg(long, value_name = "PERCENTS", default_value = "1%,5%,25%,100%", allow_hyphen_values = true)]
    pub steps: String,
    /// Duration of each step
    #[arg(long, value_name = "TIME", default_value = "2m", allow_hyphen_values = true)]
    pub every: String,
    /// Time limit for its backends to become ready
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true)]
    pub timeout: String,
    /// Compare how the versions treat their clients, in each step
    #[arg(long, value_name = "WHETHER", default_value = "on")]
    pub judge: Judge,
    /// How much later its answers may begin (99% of them) than those of the other versions
    #[arg(long, value_name = "PERCENT", default_value = "25%", allow_hyphen_values = true)]
    pub max_slowdown: String,
    /// Return as soon as it has begun; the daemon continues it
    #[arg(long)]
    pub detach: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// `pod-steer shift`
#[derive(Clone, Debug, Args)]
pub struct ShiftArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Shares of the versions, relative to each other; a version that is not listed gets none
    #[arg(value_name = "VERSION=WEIGHT")]
    pub weights: Vec<String>,
    /// Send the clients of a network to a version, regardless of the weights; may be repeated
    #[arg(long, value_name = "NETWORK=VERSION")]
    pub from: Vec<String>,
    /// Remove the --from rule of a network; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub no_from: Vec<String>,
    /// Remove the shares of versions: each backend gets a share by its own weight again
    #[arg(long)]
    pub balance: bool,
}

/// `pod-steer drain`
#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// What is drained.
    #[command(flatten)]
    pub part: PartArgs,
    /// Wait until its connections have ended, at most this long [default: do not wait]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub drain_timeout: Option<String>,
    /// How they end.
    #[command(flatten)]
    pub ending: EndingArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// `pod-steer resume`
#[derive(Clone, Debug, Args)]
pub struct PartArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Only this version
    #[arg(long, value_parser = NonEmptyStringValueParser::new(), conflicts_with = "backend")]
    pub version: Option<String>,
    /// Only this backend, by its name or id
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub backend: Option<String>,
}

/// `pod-steer history`
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Show only this service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: HistoryFormat,
}

/// How `history` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HistoryFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}
