//! Compares the settings in effect with reread ones, and applies the difference. Pure.

use std::{collections::BTreeSet, mem};

use super::RunConfig;
use crate::settings::{Allowed, ServiceTables, Settings, names::table_name, options::KEYS};

/// The key that says which images a service takes.
const ALLOW_IMAGES: &str = "allow-images";

/// How a running daemon applies settings that were reread.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose new values are in effect.
    pub in_effect: Vec<String>,
    /// Keys whose new values wait for a restart of the daemon.
    pub at_restart: Vec<&'static str>,
    /// The engines have to be asked for all containers again.
    pub asks_engines: bool,
}

impl RunConfig {
    /// Applies the settings that can change while the daemon runs. Returns the keys that changed, and those that wait for a restart.
    pub fn follow(&mut self, new: Self) -> Changes {
        // Destructured, so that the compiler reports a new field that is not handled.
        let Self {
            engines,
            engines_named,
            runtime_dir,
            state_dir,
            bpffs,
            socket,
            metrics,
            access,
            backends_max,
            log_decisions,
            log_level,
            log_format,
            ports,
            trust_image_labels,
            services,
            file,
        } = new;
        // A file that has been read once is required from then on: without it, everything that it restricts would be allowed.
        self.file = file.or_else(|| self.file.take());
        let at_restart = [
            // The default engine depends on whether Docker's socket exists. That is not a change of the settings.
            ("engine", (engines_named || self.engines_named) && engines != self.engines),
            ("runtime-dir", runtime_dir != self.runtime_dir),
            ("state-dir", state_dir != self.state_dir),
            ("bpffs", bpffs != self.bpffs),
            ("socket", socket != self.socket),
            ("metrics", metrics != self.metrics),
            ("group", access.operators != self.access.operators),
            ("viewers", access.viewers != self.access.viewers),
            ("max-backends", backends_max != self.backends_max),
            ("log-decisions", log_decisions != self.log_decisions),
            ("log-format", log_format != self.log_format),
        ];
        let at_restart = at_restart.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();

        let mut in_effect = Vec::new();
        let mut note = |key: &str, differs: bool| in_effect.extend(differs.then(|| key.to_owned()));
        note("allow-ports", mem::replace(&mut self.ports, ports) != self.ports);
        let trusted = mem::replace(&mut self.trust_image_labels, trust_image_labels);
        note("trust-image-labels", trusted != trust_image_labels);
        note("log-level", mem::replace(&mut self.log_level, log_level) != self.log_level);
        let before = mem::replace(&mut self.services, services);
        let of_services = differences(&before, &self.services);
        // Only the engines know the containers that are not backends yet.
        let asks_engines = trusted != trust_image_labels || of_services.iter().any(|key| key.starts_with(ALLOW_IMAGES));
        in_effect.extend(of_services);
        Changes { in_effect, at_restart, asks_engines }
    }
}

/// The keys of the tables of services that differ.
fn differences(before: &ServiceTables, now: &ServiceTables) -> Vec<String> {
    let nothing = Settings::default();
    let names: BTreeSet<&String> = before.named.keys().chain(now.named.keys()).collect();
    let of = |tables: &ServiceTables, name: &String| tables.named.get(name).unwrap_or(&nothing).clone();
    let named = names.into_iter().map(|name| (name.as_str(), of(before, name), of(now, name)));
    let all = named.chain([("*", before.others.clone(), now.others.clone())]);
    all.flat_map(|(name, before, now)| {
        let keys = keys_that_differ(&before, &now);
        keys.into_iter().map(|key| format!("{key} in {}", table_name(name))).collect::<Vec<_>>()
    })
    .collect()
}

fn keys_that_differ(before: &Settings, now: &Settings) -> Vec<&'static str> {
    let Settings { options, check, allowed: Allowed { ports, images, users } } = now;
    let (written, written_before) = (options.written(), before.options.written());
    let of = |written: &[(&str, String)], key| written.iter().find(|(of, _)| *of == key).map(|(_, text)| text.clone());
    let options = KEYS.iter().map(|key| (*key, of(&written, *key) != of(&written_before, *key)));
    let others = [
        ("health", *check != before.check),
        ("allow-ports", *ports != before.allowed.ports),
        (ALLOW_IMAGES, *images != before.allowed.images),
        ("allow-users", *users != before.allowed.users),
    ];
    options.chain(others).filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::config::args::RunArgs;

    /// Settings with this file, and with this flag.
    fn config(path: &PathBuf, text: &str) -> RunConfig {
        fs::write(path, text).unwrap();
        let args = RunArgs { config: Some(path.clone()), log_level: Some("debug".into()), ..RunArgs::default() };
        RunConfig::resolve(args).unwrap()
    }

    #[test]
    fn a_file_that_appeared_at_a_reload_is_required_from_then_on() {
        let path = std::env::temp_dir().join(format!("pod-steer-appeared-{}.toml", std::process::id()));
        let read = config(&path, "allow-ports = '80'\n");
        fs::remove_file(&path).unwrap();
        let without = RunConfig { file: None, ..read.clone() };
        let mut running = without.clone();
        running.follow(read);
        assert_eq!(running.file.as_ref(), Some(&path), "the file has appeared since the start");
        running.follow(without);
        assert_eq!(running.file, Some(path));
    }

    #[test]
    fn a_reload_applies_what_it_can_and_names_the_rest() {
        let path = std::env::temp_dir().join(format!("pod-steer-changes-{}.toml", std::process::id()));
        let mut running = config(
            &path,
            "engine = ['none']\nallow-ports = '80'\n[service.web]\nrollout = 'latest'\n[service.old]\nhealth = 'tcp'\n",
        );
        let same = running.clone();
        assert_eq!(running.follow(same), Changes::default());
        let new = config(
            &path,
            "engine = ['unix:///a']\nbpffs = '/sys/fs/bpf/other'\nallow-ports = '81'\nlog-level = 'warn'\n\
             trust-image-labels = true\n[service.web]\nrollout = 'latest'\nallow-ports = '80'\n['service'.'*']\nslow-start = '1s'\n",
        );
        fs::remove_file(&path).unwrap();
        let changes = running.follow(new.clone());
        let in_effect = [
            "allow-ports",
            "trust-image-labels",
            "health in [service.old]",
            "allow-ports in [service.web]",
            "slow-start in [service.\"*\"]",
        ];
        assert_eq!(changes.in_effect, in_effect, "a flag is stronger than the file's log level");
        assert_eq!(changes.at_restart, ["engine", "bpffs"]);
        assert!(changes.asks_engines);
        assert_eq!((&running.ports, &running.services), (&new.ports, &new.services));
        assert_ne!((&running.engines, &running.bpffs), (&new.engines, &new.bpffs));
        // A key that waits for a restart is named at every reload.
        let again = running.follow(new);
        assert!(
            !again.asks_engines && again.in_effect.is_empty() && again.at_restart == ["engine", "bpffs"],
            "{again:?}"
        );
    }
}
