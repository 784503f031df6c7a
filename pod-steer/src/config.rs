//! Settings. A flag overrides the environment, which overrides the file. All settings are validated before the daemon does anything;
//! reading files is the only I/O.

pub mod args;
mod changes;
pub mod commented;
mod file;
mod paths;
mod services;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use pod_steer_ebpf::BACKENDS_MAX_DEFAULT;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

pub use changes::Changes;
pub use paths::{GivenPaths, Paths};

use args::{LogFormat, RunArgs};
use file::Faults;

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
    /// The file is wrong.
    #[error("the configuration `{}` is invalid in {}", path.display(), faults.join("; in "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that was found: the line, what is wrong, and the remedy.
        faults: Vec<String>,
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
        let (file, source) = path.as_deref().map(file::read).transpose()?.unwrap_or_default();
        let mut wrong = Faults::default();
        let services = services::read(&file.service, &user_id).unwrap_or_else(|faults| {
            source.locate_all(&mut wrong, faults);
            ServiceTables::default()
        });
        let given = GivenPaths {
            runtime_dir: args.runtime_dir,
            state_dir: args.state_dir,
            bpffs: args.bpffs,
            socket: args.socket,
        };
        let Paths { runtime_dir, state_dir, bpffs, socket } = Paths::complete(given, &file);
        let operators = source.choose(&mut wrong, "group", args.group, file.group, |group| group_id(&group));
        let viewers =
            source.choose(&mut wrong, "viewers", args.viewers, file.viewers, |group| viewers(&group, operators));
        let named = Some(args.engine).filter(|engines| !engines.is_empty());
        let engines = source.choose(&mut wrong, "engine", named, file.engine, engines);
        let backends_max =
            source.choose(&mut wrong, "max-backends", args.max_backends, file.max_backends, backends_max);
        let ports = source.choose(&mut wrong, "allow-ports", args.allow_ports, file.allow_ports, |list| {
            PortPolicy::parse(&list).ok_or_else(|| ConfigError::Ports(visible(&list).into_owned()))
        });
        let level = source.choose(&mut wrong, "log-level", args.log_level, file.log_level, |level| log_level(&level));
        let metrics = source.choose(&mut wrong, "metrics", args.metrics, file.metrics, metrics);
        wrong.check(&source)?;
        Ok(Self {
            ports: ports.unwrap_or_default(),
            services,
            file: path,
            engines_named: engines.is_some(),
            engines: engines.unwrap_or_else(default_engines),
            socket,
            metrics,
            runtime_dir,
            state_dir,
            bpffs,
            access: Access { operators, viewers },
            backends_max: backends_max.unwrap_or(BACKENDS_MAX_DEFAULT),
            log_level: level.unwrap_or_else(|| "info".to_owned()),
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            trust_image_labels: args.trust_image_labels || file.trust_image_labels.unwrap_or(false),
            log_decisions: args.log_decisions || file.log_decisions.unwrap_or(false),
        })
    }
}

/// Checks a level, or directives that each have one. `tracing` takes any other word for the name of a module, and would then log nothing
/// else.
fn log_level(given: &str) -> Result<String, ConfigError> {
    let is_good = |directive: &str| match directive.rsplit_once('=') {
        // `LevelFilter` also parses numbers and the empty string.
        None => directive.starts_with(|c: char| c.is_ascii_alphabetic()) && directive.parse::<LevelFilter>().is_ok(),
        Some(_) => directive.parse::<Targets>().is_ok(),
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

fn backends_max(number: u32) -> Result<u32, ConfigError> {
    if (1..=1 << 20).contains(&number) { Ok(number) } else { Err(ConfigError::BackendsMax(number)) }
}

fn default_engines() -> Vec<String> {
    let there = DEFAULT_ENGINE.strip_prefix("unix://").is_some_and(|path| Path::new(path).exists());
    if there { vec![DEFAULT_ENGINE.to_owned()] } else { Vec::new() }
}

fn engines(named: Vec<String>) -> Result<Vec<String>, ConfigError> {
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

/// The number of the viewers' group, which must not be that of the operators.
fn viewers(group: &str, operators: Option<u32>) -> Result<u32, ConfigError> {
    let id = group_id(group)?;
    if operators == Some(id) { Err(ConfigError::SameGroup(quoted(group))) } else { Ok(id) }
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
        assert_eq!(engines(vec!["none".into()]).unwrap(), Vec::<String>::new());
        let twice = vec!["unix:///a".to_owned(), "unix:///a".to_owned()];
        assert_eq!(engines(twice).unwrap(), ["unix:///a"]);
        for bad in ["tcp://host", "unix://relative", ""] {
            assert!(engines(vec![bad.into()]).is_err(), "{bad}");
        }
        assert!(engines(vec!["none".into(), "unix:///a".into()]).is_err());
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
        assert_eq!(viewers("8", Some(7)).ok(), Some(8));
        assert_eq!(viewers("8", None).ok(), Some(8));
        assert!(viewers("root", Some(0)).is_err_and(|error| error.to_string().contains("both name")));
        assert!(viewers("no\x1bgroup", None).is_err_and(|error| !error.to_string().contains('\x1b')));
    }

    #[test]
    fn log_levels_are_words_or_directives() {
        for (given, meant) in [
            ("debug", "debug"),
            ("WARN", "WARN"),
            ("off", "off"),
            ("info, pod_steer::engine=debug", "info,pod_steer::engine=debug"),
        ] {
            assert_eq!(log_level(given).unwrap(), meant);
        }
        for wrong in
            ["nonsense", "", "5", "info,nonsense", "pod_steer=nonsense", "info,", "verbose", "x[span{id=1}]=info"]
        {
            let error = log_level(wrong).expect_err(wrong).to_string();
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
        let args = RunArgs { config: Some(path.clone()), ..RunArgs::default() };
        let error = RunConfig::resolve(args).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("max-backend"), "{error}");
        // Everything that is wrong is named at once: keys, types, and then values.
        for (text, lines) in [
            (
                "engine = []\nmax-backend = 7\nlog-level = 5\n",
                ["line 2, \"max-backend = 7\"", "line 3, \"log-level = 5\""],
            ),
            (
                "engine = ['x']\nlog-level = 'no'\n[service.web]\nfallback = 'drop'\n",
                ["line 1: `x`", "line 2: unknown log level"],
            ),
            ("max-backends = 0\n[service.web]\nfallback = 'drop'\n", ["line 1: max-backends", "line 3: "]),
        ] {
            fs::write(&path, text).unwrap();
            let args = RunArgs { config: Some(path.clone()), ..RunArgs::default() };
            let Err(ConfigError::Invalid { faults, .. }) = RunConfig::resolve(args) else { panic!("{text}") };
            assert!(faults.len() >= lines.len(), "{faults:?}");
            assert!(lines.iter().zip(&faults).all(|(line, fault)| fault.starts_with(line)), "{faults:?}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
