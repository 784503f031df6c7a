//! Runs iptables(8) and nft(8).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::rules::Step;

/// Where the program is: a directory that only root writes to.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Seconds for which it waits for another one.
const WAIT_S: &str = "5";
/// Characters of its error that are shown.
const LINE_MAX: usize = 200;

/// One of the programs that manage rules.
pub struct Tool {
    name: &'static str,
    path: PathBuf,
}

impl Tool {
    /// The program of this name, if it is installed. One of the legacy kind only where its tables are in use: it would make them.
    pub fn find(name: &'static str) -> Option<Self> {
        let tables = if name.starts_with("ip6") { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
        if name.ends_with("-legacy") && fs::read_to_string(tables).map_or(true, |names| names.is_empty()) {
            return None;
        }
        installed(name).map(|path| Self { name, path })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The rules of a chain of a table; `None` is the filter table.
    pub fn list(&self, table: Option<&str>, chain: &str) -> Result<String, String> {
        self.run(table, ["-S", chain])
    }

    /// Changes a chain of a table.
    pub fn take(&self, table: Option<&str>, step: &Step) -> Result<(), String> {
        self.run(table, step.arguments()).map(drop)
    }

    /// The command line of a change.
    pub fn command(&self, table: Option<&str>, step: &Step) -> String {
        let table = table.map(|table| format!("-t {table} ")).unwrap_or_default();
        format!("{} {table}{}", self.name, step.arguments().join(" "))
    }

    fn run<S: AsRef<std::ffi::OsStr>>(
        &self,
        table: Option<&str>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, String> {
        let mut command = Command::new(&self.path);
        command.env_clear().args(["-w", WAIT_S]);
        command.args(table.into_iter().flat_map(|table| ["-t", table])).args(arguments).stdin(Stdio::null());
        printed(&mut command)
    }
}

/// The rules of a table, if nft(8) is installed and there is such a table.
pub fn nft_table(family: &str, table: &str) -> Option<String> {
    let mut command = Command::new(installed("nft")?);
    command.env_clear().args(["list", "table", family, table]).stdin(Stdio::null());
    printed(&mut command).ok()
}

/// The devices of default routes in the network namespace of the calling thread.
pub fn uplinks() -> BTreeSet<String> {
    // proc(5) and `net/ipv6/route.c`: a destination of zeros, and for IPv6 a length of zero.
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    let (v4, v6) = (read("route"), read("ipv6_route"));
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let v4 = v4.lines().map(fields).filter(|of| of.len() > 7 && of[1] == "00000000" && of[7] == "00000000");
    let v6 = v6.lines().map(fields).filter(|of| of.len() > 9 && of[1] == "00" && of[9] != "lo");
    v4.map(|of| of[0].clone()).chain(v6.map(|of| of[9].clone())).collect()
}

fn installed(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists())
}

/// What a command prints, or its error.
fn printed(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(crate::text::shown(line, LINE_MAX))
}
