//! The command line. Parsing does no I/O.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

pub const USAGE: &str = "usage: named-server --name NAME --listen ADDR:PORT[%DEVICE][,v6only] [--listen ...] [--fds N]
    [--v6only] [--mptcp] [--backlog N] [--accept-delay-ms N] [--answer-delay-ms N] [--requests-max N] [--raw]
    [--journal PATH] [--status-file PATH] [--only-host] [--tell-listener] [--reuseport]
    [--deaf] [--stop-delay-ms N] [--lock PATH] [--listen-delay-ms N] [--fault error|reset|close|hang|slow=MS --fault-every N]
   or: named-server --ask ADDR:PORT";

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct Listen {
    pub addr: SocketAddr,
    /// `SO_BINDTODEVICE`.
    pub device: Option<String>,
    /// `IPV6_V6ONLY` on an IPv6 listener.
    pub v6only: bool,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, v6only) = text.strip_suffix(",v6only").map_or((text, false), |text| (text, true));
        // An address with a scope has its own percent sign, inside the brackets.
        let (addr, device) = match text.rsplit_once('%') {
            Some((addr, device)) if !device.contains(']') => (addr, Some(device.to_owned())),
            _ => (text, None),
        };
        Ok(Self { addr: addr.parse().map_err(|error| format!("{error}"))?, device, v6only })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        self.device.iter().try_for_each(|device| write!(f, "%{device}"))?;
        f.write_str(if self.v6only { ",v6only" } else { "" })
    }
}

/// What a request may meet instead of its answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The status 500.
    Error,
    /// A reset.
    Reset,
    /// The end of the connection.
    Close,
    /// Nothing, until its client leaves.
    Hang,
    /// Its answer, later by this.
    Slow(Duration),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "error" => Self::Error,
            "reset" => Self::Reset,
            "close" => Self::Close,
            "hang" => Self::Hang,
            _ => {
                let ms = text.strip_prefix("slow=").and_then(|ms| ms.parse().ok());
                Self::Slow(Duration::from_millis(ms.ok_or("it is no fault")?))
            }
        })
    }
}

#[derive(Debug)]
pub struct Args {
    /// What the server answers.
    pub name: String,
    pub listen: Vec<Listen>,
    /// Inherited listeners, from descriptor 3 on, as sd_listen_fds(3) has them.
    pub fds: i32,
    /// `IPV6_V6ONLY` on all IPv6 listeners; without it they are dual-stack.
    pub v6only: bool,
    /// Open MPTCP sockets, and TCP ones where that fails, as Go does since 1.24.
    pub mptcp: bool,
    pub backlog: i32,
    /// Wait so long before each `accept`: connections then pile up in the queue.
    pub accept_delay: Duration,
    /// Wait so long before each answer, so that requests are in flight for a known time.
    pub answer_delay: Duration,
    /// Close a connection after so many requests, and say so in the last answer, as nginx's `keepalive_requests` does.
    pub requests_max: u32,
    /// Write the answer at once and close, without HTTP.
    pub raw: bool,
    /// Where accepted connections are recorded.
    pub journal: Option<PathBuf>,
    /// The file with the status of the answers, read for every answer; 200 while it does not exist.
    pub status_file: Option<PathBuf>,
    /// Ask for `SO_REUSEPORT`, as the listeners of a managed server have it.
    pub reuseport: bool,
    /// Answer `NAME@LISTENER`, with the listener as it was given.
    pub tell_listener: bool,
    /// Answer 421 to requests whose `Host` is not the server's name.
    pub only_host: bool,
    /// Ignore SIGTERM and SIGINT.
    pub deaf: bool,
    /// Keep accepting connections for so long after SIGTERM, then stop.
    pub stop_delay: Duration,
    /// Lock this file while it runs, and exit if another process has locked it: such a server must not run twice.
    pub lock: Option<PathBuf>,
    /// Wait so long before it listens.
    pub listen_delay: Duration,
    /// What every so manieth request meets.
    pub fault: Option<Fault>,
    pub fault_every: u64,
}

impl Args {
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            name: String::new(),
            listen: Vec::new(),
            fds: 0,
            v6only: false,
            mptcp: false,
            // The backlog of Go and most servers; the kernel limits it to net.core.somaxconn.
            backlog: 4096,
            accept_delay: Duration::ZERO,
            answer_delay: Duration::ZERO,
            requests_max: u32::MAX,
            raw: false,
            journal: None,
            status_file: None,
            only_host: false,
            deaf: false,
            stop_delay: Duration::ZERO,
            lock: None,
            listen_delay: Duration::ZERO,
            fault: None,
            fault_every: 1,
            tell_listener: false,
            reuseport: false,
        };
        while let Some(flag) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{flag} wants a value"));
            match flag.as_str() {
                "--name" => parsed.name = value()?,
                "--listen" => parsed.listen.push(parse(&flag, &value()?)?),
                "--fds" => parsed.fds = parse(&flag, &value()?)?,
                "--v6only" => parsed.v6only = true,
                "--mptcp" => parsed.mptcp = true,
                "--backlog" => parsed.backlog = parse(&flag, &value()?)?,
                "--accept-delay-ms" => parsed.accept_delay = Duration::from_millis(parse(&flag, &value()?)?),
                "--answer-delay-ms" => parsed.answer_delay = Duration::from_millis(parse(&flag, &value()?)?),
                "--requests-max" => parsed.requests_max = parse(&flag, &value()?)?,
                "--raw" => parsed.raw = true,
                "--status-file" => parsed.status_file = Some(value()?.into()),
                "--deaf" => parsed.deaf = true,
                "--stop-delay-ms" => parsed.stop_delay = Duration::from_millis(parse(&flag, &value()?)?),
                "--lock" => parsed.lock = Some(value()?.into()),
                "--listen-delay-ms" => parsed.listen_delay = Duration::from_millis(parse(&flag, &value()?)?),
                "--fault" => parsed.fault = Some(parse(&flag, &value()?)?),
                "--fault-every" => parsed.fault_every = parse::<u64>(&flag, &value()?)?.max(1),
                "--reuseport" => parsed.reuseport = true,
                "--tell-listener" => parsed.tell_listener = true,
                "--only-host" => parsed.only_host = true,
                "--journal" => parsed.journal = Some(value()?.into()),
                _ => return Err(format!("unknown argument {flag}")),
            }
        }
        if parsed.name.is_empty() || parsed.name.contains(char::is_whitespace) {
            return Err("--name wants one word".into());
        }
        if parsed.listen.is_empty() && parsed.fds == 0 {
            return Err("--listen is missing".into());
        }
        if parsed.journal.is_some() && parsed.listen.len() as i32 + parsed.fds > 1 {
            // Two accepting threads would mix their records.
            return Err("--journal wants a single --listen".into());
        }
        Ok(parsed)
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{flag} {value}: {error}"))
}
