//! Arguments of the commands that move traffic. What is a list or a duration stays text here and is read where an error
//! can be one line.

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use super::SocketArgs;

/// `pod-steer rollback`, `pause` and `unpause`
#[derive(Clone, Debug, Args)]
pub struct ServiceArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Name of the service
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: String,
}

/// How an operation's end is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// `pod-steer deploy`
#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The version that is to get all new connections
    pub version: String,
    /// How many of its backends must be ready [default: all that exist]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub backends: Option<u32>,
    /// How long they may take to be ready
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true)]
    pub timeout: String,
    /// How long the connections of the old version may take to end
    #[arg(long, value_name = "TIME", default_value = "30s", allow_hyphen_values = true)]
    pub drain_timeout: String,
    /// Stop the old containers at the end
    #[arg(long)]
    pub stop_old: bool,
    /// Stop them only after this time, so that a rollback finds them; means --stop-old too
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub keep_old: Option<String>,
    /// How to print the end
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// `pod-steer canary`
#[derive(Clone, Debug, Args)]
pub struct CanaryArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// The version that is to get more and more new connections
    pub version: String,
    /// Its shares, one after the other
    #[arg(long, value_name = "PERCENTS", default_value = "1%,5%,25%,100%", allow_hyphen_values = true)]
    pub steps: String,
    /// How long each step lasts
    #[arg(long, value_name = "TIME", default_value = "2m", allow_hyphen_values = true)]
    pub every: String,
    /// How long its backends may take to be ready
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true)]
    pub timeout: String,
    /// Return when it has begun; it goes on by itself
    #[arg(long)]
    pub detach: bool,
    /// How to print the end
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// `pod-steer shift`
#[derive(Clone, Debug, Args)]
pub struct ShiftArgs {
    /// The service.
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Shares of the versions, relative to each other; a version that is not named gets nothing
    #[arg(value_name = "VERSION=WEIGHT")]
    pub weights: Vec<String>,
    /// Send the clients of a network to a version, whatever the weights; again for several
    #[arg(long, value_name = "NETWORK=VERSION")]
    pub from: Vec<String>,
    /// Treat the clients of a network as all others again; again for several
    #[arg(long, value_name = "NETWORK")]
    pub no_from: Vec<String>,
    /// Let every backend count by its own weight again, whatever its version
    #[arg(long)]
    pub balance: bool,
}

/// `pod-steer drain` and `resume`
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
    /// Of this service alone
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// How to print it
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
