//! Settings. A flag overrides the environment, which overrides the file. All settings are validated before the daemon does anything;
//! reading files is the only I/O.

pub mod args;
mod changes;
mod paths;
mod services;

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use pod_steer_ebpf::BACKENDS_MAX_DEFAULT;
use serde::Deserialize;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

pub use changes::Changes;
pub use paths::{GivenPaths, Paths};

use args::{LogFormat, RunArgs};

use crate::{
    api::Access,
    settings::{PortPolicy, ServiceTables},
    text::{quoted, visible},
};

/// The default configuration file. It may be absent.
pub const DEFAULT_FILE: &str = "/etc/pod-steer.toml";
/// Default directory of files that are valid until the next boot.
pub const DEFAULT_RUNTIME_DIR: &str = "/run/pod-steer";
/// Default directory of files that survive a reboot.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/pod-steer";
/// Default directory of pins.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/pod-steer";
/// The API's socket, unless the runtime directory is another.
pub const DEFAULT_SOCKET: &str = "/run/pod-steer/api.sock";
/// The default engine, used if its socket exists.
const DEFAULT_ENGINE: &str = "unix:///var/run/docker.sock";

/// Errors in the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration `{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be parsed.
    #[error("the configuration `{}` is invalid in {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the error.
        message: String,
    },
    /// An address of an engine.
    #[error(
        "`{0}` is not the address of a container engine; give the path of its socket, as in unix:///var/run/docker.sock, or only `none`"
    )]
    Engine(String),
    /// A group.
    #[error("there is no group {0}; give a name from /etc/group or a number")]
    Group(String),
    /// The address for metrics.
    #[error(
        "metrics=`{0}` is not an address and a port; write it as in 127.0.0.1:9464 or [::1]:9464, or only the port"
    )]
    Metrics(String),
    /// One group for both roles.
    #[error(
        "`group` and `viewers` both name {0}; operators may read as well, so leave out `viewers` or name another group"
    )]
    SameGroup(String),
    /// A list of ports.
    #[error("allow-ports=`{0}` is not a list of ports; write it as in 80,443,8000-8999")]
    Ports(String),
    /// The table of a service.
    #[error("the configuration `{}` is invalid: {message}", path.display())]
    Service {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong.
        message: String,
    },
    /// A log level.
    #[error(
        "unknown log level {level}; use off, error, warn, info, debug, trace, or a list such as info,pod_steer::engine=debug"
    )]
    LogLevel {
        /// The part that is wrong, quoted.
        level: String,
    },
    /// A number.
    #[error("max-backends={0} is refused; write a number from 1 to 1048576")]
    BackendsMax(u32),
}

/// The file: the same names as the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    engine: Option<Vec<String>>,
    runtime_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    bpffs: Option<PathBuf>,
    socket: Option<PathBuf>,
    metrics: Option<String>,
    group: Option<String>,
    viewers: Option<String>,
    max_backends: Option<u32>,
    log_decisions: Option<bool>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
    allow_ports: Option<String>,
    trust_image_labels: Option<bool>,
    service: BTreeMap<String, toml::Table>,
}

/// Settings of `pod-steer run`, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunConfig {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Paths of the engines' sockets.
    pub engines: Vec<String>,
    /// True if the engines were named, false for the default.
    pub engines_named: bool,
    /// Directory of runtime files.
    pub runtime_dir: PathBuf,
    /// Directory of decisions and history.
    pub state_dir: PathBuf,
    /// Directory of pins.
    pub bpffs: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// Where metrics are served, besides the API's socket.
    pub metrics: Option<SocketAddr>,
    /// The groups that may use the API.
    pub access: Access,
    /// Maximum number of backends when the kernel state is created.
    pub backends_max: u32,
    /// Log every decision of the kernel program.
    pub log_decisions: bool,
    /// Log level or directives.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Ports that may be claimed.
    pub ports: PortPolicy,
    /// Treat labels of an image as labels of its containers.
    pub trust_image_labels: bool,
    /// The tables of services.
    pub services: ServiceTables,
}

impl RunConfig {
    /// Merges flags, environment (which clap has read into the flags) and file.
    pub fn resolve(args: RunArgs) -> Result<Self, ConfigError> {
        let path = paths::file(args.config.as_deref());
        let file = path.as_deref().map(read).transpose()?.unwrap_or_default();
        let services = services::read(&file.service, &user_id).map_err(|errors| ConfigError::Service {
            path: path.clone().unwrap_or_default(),
            message: errors.join("; "),
        })?;
        let given = GivenPaths {
            runtime_dir: args.runtime_dir,
            state_dir: args.state_dir,
            bpffs: args.bpffs,
            socket: args.socket,
        };
        let Paths { runtime_dir, state_dir, bpffs, socket } = Paths::complete(given, &file);
        let access = access(args.group.or(file.group), args.viewers.or(file.viewers))?;
        let backends_max = args.max_backends.or(file.max_backends).unwrap_or(BACKENDS_MAX_DEFAULT);
        if !(1..=1 << 20).contains(&backends_max) {
            return Err(ConfigError::BackendsMax(backends_max));
        }
        let named = if args.engine.is_empty() { file.engine } else { Some(args.engine) };
        let allowed = args.allow_ports.or(file.allow_ports);
        let ports = match allowed {
            Some(list) => PortPolicy::parse(&list).ok_or(ConfigError::Ports(list))?,
            None => PortPolicy::default(),
        };
        Ok(Self {
            ports,
            services,
            file: path,
            engines_named: named.is_some(),
            engines: engines(named)?,
            socket,
            metrics: args.metrics.or(file.metrics).map(metrics).transpose()?,
            runtime_dir,
            state_dir,
            bpffs,
            access,
            backends_max,
            log_level: log_level(args.log_level.or(file.log_level))?,
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            trust_image_labels: args.trust_image_labels || file.trust_image_labels.unwrap_or(false),
            log_decisions: args.log_decisions || file.log_decisions.unwrap_or(false),
        })
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count());
        // It repeats what the file has, which may be anything.
        let said = e.message().replace('\n', " ");
        let said = visible(&said);
        ConfigError::Syntax {
            path: path.to_owned(),
            message: match text.lines().nth(line - 1).map(str::trim).filter(|text| !text.is_empty()) {
                Some(text) => format!("line {line}, {}: {said}", quoted(text)),
                None => format!("line {line}: {said}"),
            },
        }
    })
}

/// Checks a level, or directives that each have one. `tracing` takes any other word for the name of a module, and would then log nothing
/// else.
fn log_level(given: Option<String>) -> Result<String, ConfigError> {
    let Some(given) = given else { return Ok("info".to_owned()) };
    let is_good = |directive: &str| match directive.rsplit_once('=') {
        // `LevelFilter` also parses numbers and the empty string.
        None => directive.starts_with(|c: char| c.is_ascii_alphabetic()) && directive.parse::<LevelFilter>().is_ok(),
        Some(_) => EnvFilter::try_new(directive).is_ok(),
    };
    match given.split(',').find(|directive| !is_good(directive.trim())) {
        Some(wrong) => Err(ConfigError::LogLevel { level: quoted(wrong.trim()) }),
        None => Ok(given.split(',').map(str::trim).collect::<Vec<_>>().join(",")),
    }
}

/// A port alone is one of the loopback address.
fn metrics(given: String) -> Result<SocketAddr, ConfigError> {
    let port = given.parse::<u16>().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let address = port.or_else(|_| given.parse()).ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| ConfigError::Metrics(visible(&given).into_owned()))
}

fn engines(named: Option<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let Some(named) = named else {
        let there = DEFAULT_ENGINE.strip_prefix("unix://").is_some_and(|path| Path::new(path).exists());
        return Ok(if there { vec![DEFAULT_ENGINE.to_owned()] } else { Vec::new() });
    };
    if named.iter().any(|engine| engine == "none") {
        return if named.len() == 1 { Ok(Vec::new()) } else { Err(ConfigError::Engine("none".to_owned())) };
    }
    let mut engines = Vec::new();
    for engine in named {
        if !engine.strip_prefix("unix://").is_some_and(|path| path.starts_with('/')) {
            return Err(ConfigError::Engine(engine));
        }
        if !engines.contains(&engine) {
            engines.push(engine);
        }
    }
    Ok(engines)
}

fn access(operators: Option<String>, viewers: Option<String>) -> Result<Access, ConfigError> {
    let access = Access {
        operators: operators.as_deref().map(group_id).transpose()?,
        viewers: viewers.as_deref().map(group_id).transpose()?,
    };
    match viewers {
        Some(group) if access.operators == access.viewers => Err(ConfigError::SameGroup(quoted(&group))),
        _ => Ok(access),
    }
}

/// The number of a group, by name or number.
fn group_id(group: &str) -> Result<u32, ConfigError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    listed_id("/etc/group", group).ok_or_else(|| ConfigError::Group(quoted(group)))
}

/// The number of a user.
fn user_id(user: &str) -> Option<u32> {
    listed_id("/etc/passwd", user)
}

/// The number of a name in one of the files whose lines begin with a name, a password and a number.
fn listed_id(file: &str, name: &str) -> Option<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1))??.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_sockets() {
        assert_eq!(engines(Some(vec!["none".into()])).unwrap(), Vec::<String>::new());
        let twice = vec!["unix:///a".to_owned(), "unix:///a".to_owned()];
        assert_eq!(engines(Some(twice)).unwrap(), ["unix:///a"]);
        for bad in ["tcp://host", "unix://relative", ""] {
            assert!(engines(Some(vec![bad.into()])).is_err(), "{bad}");
        }
        assert!(engines(Some(vec!["none".into(), "unix:///a".into()])).is_err());
    }

    #[test]
    fn metrics_are_served_on_this_machine_if_no_address_is_given() {
        for (given, meant) in [("9464", "127.0.0.1:9464"), ("0.0.0.0:80", "0.0.0.0:80"), ("[::1]:9464", "[::1]:9464")] {
            assert_eq!(metrics(given.to_owned()).unwrap().to_string(), meant);
        }
        for wrong in
            ["", "0", "x", ":9464", "127.0.0.1", "127.0.0.1:0", "::1:9464", "65536", "localhost:9464", "9464\n"]
        {
            let error = metrics(wrong.to_owned()).expect_err(wrong).to_string();
            assert!(error.contains("9464") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn a_group_has_one_role() {
        let access = |operators: Option<&str>, viewers: Option<&str>| {
            access(operators.map(str::to_owned), viewers.map(str::to_owned)).map_err(|error| error.to_string())
        };
        assert_eq!(access(Some("7"), Some("8")), Ok(Access { operators: Some(7), viewers: Some(8) }));
        assert_eq!(access(None, None), Ok(Access::default()));
        assert!(access(Some("0"), Some("root")).is_err_and(|error| error.contains("both name")));
        assert!(access(None, Some("no\x1bgroup")).is_err_and(|error| !error.contains('\x1b')));
    }

    #[test]
    fn log_levels_are_words_or_directives() {
        for (given, meant) in [
            ("debug", "debug"),
            ("WARN", "WARN"),
            ("off", "off"),
            ("info, pod_steer::engine=debug", "info,pod_steer::engine=debug"),
            ("pod_steer[session{id=1}]=trace", "pod_steer[session{id=1}]=trace"),
        ] {
            assert_eq!(log_level(Some(given.to_owned())).unwrap(), meant);
        }
        assert_eq!(log_level(None).unwrap(), "info");
        for wrong in ["nonsense", "", "5", "info,nonsense", "pod_steer=nonsense", "info,", "verbose"] {
            let error = log_level(Some(wrong.to_owned())).expect_err(wrong).to_string();
            assert!(error.contains("use off, error") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn flags_are_stronger_than_the_file() {
        let dir = std::env::temp_dir().join(format!("pod-steer-config-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("c.toml");
        fs::write(&path, "max-backends = 7\nruntime-dir = '/run/x'\nengine = ['none']\n").unwrap();
        let args = RunArgs { config: Some(path.clone()), max_backends: Some(9), ..RunArgs::default() };
        let config = RunConfig::resolve(args).unwrap();
        assert_eq!((config.backends_max, config.socket), (9, PathBuf::from("/run/x/api.sock")));
        fs::write(&path, "engine = []\nmax-backend = 7\n").unwrap();
        let args = RunArgs { config: Some(path), ..RunArgs::default() };
        let error = RunConfig::resolve(args).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("max-backend"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
