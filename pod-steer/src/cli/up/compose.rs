//! The Compose file and its program: `docker compose`, or `docker-compose` where that is not installed. Both may be of any version: Compose 1
//! is a program of its own, which lacks some options of its successor.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write as _,
    os::fd::AsRawFd as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{
    amendment::Amendment,
    containers::{self, Container},
    definition::Definition,
    forecast::Forecast,
    lock::lock,
    programs::{run, run_for_all},
};
use crate::cli::args::up::UpArgs;

/// All profiles.
const ALL_PROFILES: [&str; 2] = ["--profile", "*"];

/// How often containers are looked at, if some are gone before they could be inspected.
const LOOKS: u32 = 3;

/// A project.
#[derive(Debug)]
pub(super) struct Compose {
    /// The program.
    program: Vec<String>,
    /// It is Compose 1.
    is_old: bool,
    /// Its options that name the files; none if it is to find them itself.
    files: Vec<String>,
    /// Its other options.
    options: Vec<String>,
    /// Held as long as this command works on the project.
    _lock: File,
}

/// Which containers `up` makes or starts.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The service.
    pub service: &'a str,
    /// Number of its containers afterwards.
    pub total: usize,
    /// Services that it depends on, and how many containers each has; none of them is touched without this.
    pub others: Option<Vec<(String, usize)>>,
}

impl Wanted<'_> {
    /// The arguments of `up`.
    fn words(&self, how: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = ["up", "--no-recreate"].iter().chain(how).map(ToString::to_string).collect();
        match &self.others {
            None => words.push("--no-deps".to_owned()),
            Some(others) => {
                words.extend(others.iter().flat_map(|(of, count)| ["--scale".to_owned(), format!("{of}={count}")]))
            }
        }
        words.extend(["--scale".to_owned(), format!("{}={}", self.service, self.total), self.service.to_owned()]);
        words
    }
}

impl Compose {
    /// Finds the program.
    pub async fn find(args: &UpArgs) -> Result<Self> {
        let lock = lock(&args.file)?;
        let (program, is_old) = program().await;
        let mut options = Vec::new();
        if let Some(name) = &args.project_name {
            options.extend(["-p".to_owned(), name.clone()]);
        }
        if let Some(file) = &args.env_file {
            let file = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
            options.extend(["--env-file".to_owned(), file.to_owned()]);
        }
        Ok(Self { program, is_old, files: flags(&args.file)?, options, _lock: lock })
    }

    fn words(&self, arguments: &[&str]) -> Vec<String> {
        let parts = self.program.iter().chain(&self.files).chain(&self.options).cloned();
        parts.chain(arguments.iter().map(ToString::to_string)).collect()
    }

    async fn run(&self, arguments: &[&str], what: &'static str) -> Result<String> {
        run(self.words(arguments), what).await
    }

    /// The services of the files that no profile disables, and the hash of the configuration of each. An error in a file is found here.
    pub async fn services(&self) -> Result<BTreeMap<String, String>> {
        hashes(&self.run(&["config", "--hash", "*"], "config").await?)
    }

    /// The names of all services of the files.
    pub async fn all_services(&self) -> Result<BTreeSet<String>> {
        // Compose 1 lists them all.
        let profiles = if self.is_old { &[][..] } else { &ALL_PROFILES[..] };
        let answer = self.run(&[profiles, &["config", "--services"]].concat(), "config").await?;
        Ok(lines(&answer).into_iter().collect())
    }

    /// What the files say of a service. `hash` is what [`Self::services`] says of it, if no profile disables it.
    pub async fn definition(&self, service: &str, hash: Option<&String>) -> Result<Definition> {
        let plain_hash = match hash {
            Some(hash) => hash.clone(),
            None => {
                let profiles = if self.is_old { &[][..] } else { &ALL_PROFILES[..] };
                let answer = self.run(&[profiles, &["config", "--hash", service]].concat(), "config").await?;
                hashes(&answer)?.remove(service).unwrap_or_default()
            }
        };
        if self.is_old {
            let read = Definition::from_yaml(&self.run(&["config"], "config").await?, service);
            return Ok(Definition { plain_hash, ..read });
        }
        let model = self.run(&["config", "--format", "json", service], "config").await?;
        let read = Definition::from_json(&model, service)?;
        // Not every model can be read again.
        let resolved_hash = self.hash_of_model(&model, service).await.ok();
        let alone_hash = match Definition::alone(&model, service) {
            Some(alone) => self.hash_of_model(&alone, service).await.ok(),
            None => None,
        };
        Ok(Definition { plain_hash, resolved_hash, alone_hash, ..read })
    }

    /// The hash of a service in a model that has the variables of `env_file` in place.
    async fn hash_of_model(&self, model: &str, service: &str) -> Result<String> {
        let file = in_memory(model)?;
        let arguments = [ALL_PROFILES[0], ALL_PROFILES[1], "config", "--hash", service].map(str::to_owned);
        let words = self.program.iter().cloned().chain(["-f".to_owned(), path(&file)]).chain(arguments);
        hashes(&run(words.collect(), "config").await?)?.remove(service).context("its model has no such service")
    }

    /// The project's containers in any state. `project` is its name, if it is known.
    pub async fn containers(&self, project: Option<&str>) -> Result<Vec<Container>> {
        let mut tries = 0;
        loop {
            let found = match project {
                Some(project) => containers::of_project(project).await,
                None => self.run(&["ps", "--all", "--quiet"], "ps").await.map(|answer| lines(&answer)),
            };
            let inspected = match found {
                Ok(ids) => containers::inspect(&ids).await,
                Err(error) => Err(error),
            };
            tries += 1;
            // One of another service may have been removed in between.
            if inspected.is_ok() || tries == LOOKS {
                return inspected;
            }
        }
    }

    /// Builds a service's image.
    pub async fn build(&self, service: &str) -> Result<()> {
        self.run(&["build", service], "build").await.map(drop)
    }

    /// Pulls a service's image.
    pub async fn pull(&self, service: &str) -> Result<()> {
        self.run(&["pull", service], "pull").await.map(drop)
    }

    /// What else Compose would do to create these containers: from version 2.31 on, it stops those that are attached to a network whose
    /// definition has changed. Compose 1 fails then, and where the dry run fails, the real one does too.
    pub async fn forecast(&self, wanted: &Wanted<'_>) -> Forecast {
        if self.is_old {
            return Forecast::default();
        }
        let mut words = self.words(&["--dry-run"]);
        words.extend(wanted.words(&["--no-start"]));
        match run_for_all(words, "up").await {
            Ok(printed) => Forecast::read(&format!("{}\n{}", printed.output, printed.messages)),
            Err(_) => Forecast::default(),
        }
    }

    /// Creates containers of a service. Those that are there stay as they are.
    pub async fn create(&self, wanted: &Wanted<'_>, amendment: Option<&Amendment>) -> Result<()> {
        let mut words = self.words(&[]);
        // It is held open until the program has read it.
        let file;
        if let Some(amendment) = amendment {
            file = in_memory(&amendment.text(wanted.service))?;
            words = self.program.clone();
            words.extend(flags(&amendment.files)?);
            words.extend(["-f".to_owned(), path(&file)].into_iter().chain(self.options.clone()));
        }
        run([words, wanted.words(&["--no-start"])].concat(), "up").await.map(drop)
    }

    /// Starts the containers that were created. `docker start` would not do: Compose 1 attaches them to their networks only now, and Compose 2
    /// writes configs and secrets into them and runs their hooks.
    pub async fn start(&self, wanted: &Wanted<'_>) -> Result<()> {
        run([self.words(&[]), wanted.words(&["-d", "--no-build"])].concat(), "up").await.map(drop)
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

fn in_memory(text: &str) -> Result<File> {
    let mut file = File::from(memfd_create("compose", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

/// The path by which another program reads it.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

fn hashes(answer: &str) -> Result<BTreeMap<String, String>> {
    let pair = |line: &String| line.split_once(' ').map(|(service, hash)| (service.to_owned(), hash.trim().to_owned()));
    lines(answer).iter().map(|line| pair(line).with_context(|| format!("it is no hash of a service: {line}"))).collect()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// `docker compose`, or else `docker-compose`, whose own error tells if that is missing too; and whether it is Compose 1.
async fn program() -> (Vec<String>, bool) {
    let version = ["version".to_owned(), "--short".to_owned()];
    let plugin = ["docker", "compose"].map(str::to_owned);
    if run([&plugin[..], &version].concat(), "compose").await.is_ok() {
        return (plugin.to_vec(), false);
    }
    let alone = vec!["docker-compose".to_owned()];
    let version = run([&alone[..], &version].concat(), "version").await.unwrap_or_default();
    (alone, version.trim().trim_start_matches('v').starts_with("1."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_left_alone_or_keep_their_number() {
        let mut wanted = Wanted { service: "web", total: 3, others: None };
        assert_eq!(wanted.words(&["-d"]).join(" "), "up --no-recreate -d --no-deps --scale web=3 web");
        wanted.others = Some(vec![("api".to_owned(), 2)]);
        assert_eq!(wanted.words(&["-d"]).join(" "), "up --no-recreate -d --scale api=2 --scale web=3 web");
    }

    #[test]
    fn hashes_are_read() {
        assert_eq!(hashes("a 1\n\nb  2 \n").unwrap().get("b").unwrap(), "2");
        assert!(hashes("nothing\n").is_err());
    }
}
