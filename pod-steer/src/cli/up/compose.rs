//! The Compose file and its program: `docker compose`, or `docker-compose` where that is not installed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use rustix::{
    fs::{FlockOperation, MemfdFlags, flock, memfd_create},
    io::Errno,
};

use super::programs::run;
use crate::cli::args::up::UpArgs;

/// The names of a Compose file, in the order in which Compose looks for them.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];

/// The label by which the next `up` compares a container whose labels were amended.
pub(super) const CONFIG_HASH: &str = "pod-steer-up.config-hash";

/// A project.
#[derive(Debug)]
pub(super) struct Compose {
    /// The program, and its options that name the project.
    words: Vec<String>,
    /// The files, as far as they are known.
    files: Vec<PathBuf>,
    /// Whether Compose is told the files: it finds its default ones itself.
    are_given: bool,
    /// Held as long as this command works on the project.
    _lock: File,
}

impl Compose {
    /// Finds the program and the files.
    pub async fn find(args: &UpArgs) -> Result<Self> {
        let are_given = !args.file.is_empty();
        let files = if are_given { args.file.clone() } else { default_files(Path::new("."))? };
        let lock = lock(&files[0])?;
        let mut words = program().await;
        if are_given {
            words.extend(flags(&files)?);
        }
        if let Some(name) = &args.project_name {
            words.extend(["-p".to_owned(), name.clone()]);
        }
        if let Some(file) = &args.env_file {
            let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
            words.extend(["--env-file".to_owned(), file.to_owned()]);
        }
        Ok(Self { words, files, are_given, _lock: lock })
    }

    async fn run(&self, arguments: &[&str], what: &'static str) -> Result<String> {
        run(self.words.iter().cloned().chain(arguments.iter().map(ToString::to_string)).collect(), what).await
    }

    /// The services of the files, and the hash of the configuration of each, which its containers have as a label. An error in a file is
    /// found here.
    pub async fn services(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.run(&["config", "--hash", "*"], "config").await?;
        let pair =
            |line: &str| line.split_once(' ').map(|(service, hash)| (service.to_owned(), hash.trim().to_owned()));
        lines(&answer)
            .iter()
            .map(|line| pair(line).with_context(|| format!("it is no hash of a service: {line}")))
            .collect()
    }

    /// The ids of the project's containers in any state.
    pub async fn ids(&self) -> Result<Vec<String>> {
        Ok(lines(&self.run(&["ps", "--all", "--quiet"], "ps").await?))
    }

    /// Builds a service's image.
    pub async fn build(&self, service: &str) -> Result<()> {
        self.run(&["build", service], "build").await.map(drop)
    }

    /// Creates and starts a service's first containers, and those that they depend on where these do not run.
    pub async fn start_first(&self, service: &str, count: usize) -> Result<()> {
        let scale = format!("{service}={count}");
        self.run(&["up", "-d", "--no-recreate", "--scale", &scale, service], "up").await.map(drop)
    }

    /// Creates containers of a service, until there are so many. Those that are there stay as they are. `version` and `hash` amend their labels.
    pub async fn create(&self, service: &str, count: usize, amended: Option<(&str, &str)>) -> Result<()> {
        let scale = format!("{service}={count}");
        let mut words = self.words.clone();
        // It is held open until the program has read it.
        let file;
        if let Some((version, hash)) = amended {
            file = in_memory(&amendment(service, version, hash))?;
            if !self.are_given {
                words.extend(flags(&self.files)?);
            }
            words.extend(["-f".to_owned(), format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())]);
        }
        let arguments = ["up", "--no-start", "--no-deps", "--no-recreate", "--scale", &scale, service];
        run(words.into_iter().chain(arguments.map(str::to_owned)).collect(), "up").await.map(drop)
    }
}

/// The flags that name files.
fn flags(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    for file in files {
        let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
        flags.extend(["-f".to_owned(), file.to_owned()]);
    }
    Ok(flags)
}

/// Keeps other runs of `up` from working on the same project at once.
fn lock(file: &Path) -> Result<File> {
    let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(opened),
        Err(Errno::WOULDBLOCK) => Err(anyhow!("another `pod-steer up` works on {}; wait for its end", file.display())),
        // Some file systems know no locks.
        Err(_) => Ok(opened),
    }
}

/// A Compose file that adds labels. JSON is YAML.
fn amendment(service: &str, version: &str, hash: &str) -> String {
    let labels = serde_json::json!({ "pod-steer.version": version, CONFIG_HASH: hash });
    serde_json::json!({ "services": { service: { "labels": labels } } }).to_string()
}

fn in_memory(text: &str) -> Result<File> {
    let mut file = File::from(memfd_create("compose", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// `docker compose`, or else `docker-compose`, whose own error tells if that is missing too.
async fn program() -> Vec<String> {
    let plugin = ["docker", "compose"].map(str::to_owned);
    match run([&plugin[..], &["version".to_owned()]].concat(), "compose").await {
        Ok(_) => plugin.to_vec(),
        Err(_) => vec!["docker-compose".to_owned()],
    }
}

/// The files that Compose reads if none is given: those of `COMPOSE_FILE`, or the first of [`NAMES`] and its override.
fn default_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if let Some(files) = std::env::var_os("COMPOSE_FILE").filter(|files| !files.is_empty()) {
        return Ok(std::env::split_paths(&files).collect());
    }
    let own = NAMES.iter().map(|name| dir.join(name)).find(|file| file.exists());
    let own = own.context("there is no compose.yaml in this directory; name the Compose file: pod-steer up -f FILE")?;
    // Compose takes an override of any of these names.
    let amended = |name: &str| dir.join(name.replacen('.', ".override.", 1));
    let amendment = NAMES.into_iter().map(amended).find(|file| file.exists());
    Ok([own].into_iter().chain(amendment).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_those_of_compose() {
        let dir = std::env::temp_dir().join(format!("pod-steer-compose-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        assert!(default_files(&dir).unwrap_err().to_string().contains("pod-steer up -f FILE"));
        std::fs::write(at("docker-compose.yml"), "").unwrap();
        assert_eq!(default_files(&dir).unwrap(), [at("docker-compose.yml")]);
        std::fs::write(at("docker-compose.override.yml"), "").unwrap();
        assert_eq!(default_files(&dir).unwrap().len(), 2);
        std::fs::write(at("compose.yaml"), "").unwrap();
        assert_eq!(default_files(&dir).unwrap(), [at("compose.yaml"), at("docker-compose.override.yml")]);
        let held = lock(&at("compose.yaml")).unwrap();
        assert!(lock(&at("compose.yaml")).unwrap_err().to_string().contains("another `pod-steer up`"));
        drop(held);
        assert!(lock(&at("compose.yaml")).is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_amendment_is_quoted() {
        let text = amendment("we\"b", "2-1a", "h");
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["services"]["we\"b"]["labels"]["pod-steer.version"], "2-1a");
    }
}
