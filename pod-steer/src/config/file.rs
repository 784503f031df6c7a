//! The configuration file: its keys, and the lines that they are in.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use super::{ConfigError, args::LogFormat, services::Fault};
use crate::text::{quoted, visible};

/// The keys: the same names as the flags.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct File {
    pub engine: Option<Vec<String>>,
    pub runtime_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub bpffs: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub metrics: Option<String>,
    pub group: Option<String>,
    pub viewers: Option<String>,
    pub max_backends: Option<u32>,
    pub log_decisions: Option<bool>,
    pub log_level: Option<String>,
    pub log_format: Option<LogFormat>,
    pub allow_ports: Option<String>,
    pub trust_image_labels: Option<bool>,
    #[serde(skip_serializing)]
    pub service: BTreeMap<String, toml::Table>,
}

/// The text of a file that was read, for errors. Without a file it is empty.
#[derive(Debug, Default)]
pub(super) struct Source {
    path: PathBuf,
    text: String,
}

/// Reads and parses a file.
pub(super) fn read(path: &Path) -> Result<(File, Source), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let source = Source { path: path.to_owned(), text };
    match toml::from_str(&source.text) {
        Ok(file) => Ok((file, source)),
        Err(error) => Err(source.wrong_keys().unwrap_or_else(|| source.syntax_error(&error))),
    }
}

/// What is wrong with settings.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// The first wrong flag.
    of_flag: Option<ConfigError>,
    /// All that is wrong in the file, with its lines.
    of_file: Vec<(usize, String)>,
}

impl Faults {
    /// The error, if anything is wrong. A flag comes first: it may be what keeps the file from being read.
    pub(super) fn check(self, source: &Source) -> Result<(), ConfigError> {
        match self.of_flag {
            Some(error) => Err(error),
            None if self.of_file.is_empty() => Ok(()),
            None => Err(source.invalid(self.of_file)),
        }
    }
}

impl Source {
    fn syntax_error(&self, error: &toml::de::Error) -> ConfigError {
        let line = error.span().map_or(1, |span| self.line_at(span.start));
        let fault = self.fault(line, error);
        ConfigError::Invalid { path: self.path.clone(), faults: vec![fault] }
    }

    /// The error about all unknown keys and values of a wrong type, if the file is TOML.
    fn wrong_keys(&self) -> Option<ConfigError> {
        let table: toml::Table = toml::from_str(&self.text).ok()?;
        let wrong = |(key, value): (String, toml::Value)| {
            let line = self.line(&[&key]);
            let error = File::deserialize(toml::Table::from_iter([(key, value)])).err()?;
            Some((line, self.fault(line, &error)))
        };
        let mut faults: Vec<(usize, String)> = table.into_iter().filter_map(wrong).collect();
        faults.sort_unstable();
        let faults: Vec<String> = faults.into_iter().map(|(_, fault)| fault).collect();
        (!faults.is_empty()).then(|| ConfigError::Invalid { path: self.path.clone(), faults })
    }

    fn fault(&self, line: usize, error: &toml::de::Error) -> String {
        // It repeats what the file has, which may be anything.
        let said = error.message().replace('\n', " ");
        let said = visible(&said);
        match self.text.lines().nth(line - 1).map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) => format!("line {line}, {}: {said}", quoted(text)),
            None => format!("line {line}: {said}"),
        }
    }

    /// Reads the value of a flag, else that of the file. What is wrong with it is added to the faults.
    pub(super) fn choose<T, V>(
        &self,
        faults: &mut Faults,
        key: &str,
        flag: Option<T>,
        file: Option<T>,
        read: impl FnOnce(T) -> Result<V, ConfigError>,
    ) -> Option<V> {
        let is_of_file = flag.is_none();
        match flag.or(file).map(read)? {
            Ok(value) => return Some(value),
            Err(error) if is_of_file => faults.of_file.push((self.line(&[key]), crate::chain(&error))),
            Err(error) => drop(faults.of_flag.get_or_insert(error)),
        }
        None
    }

    /// Adds what is wrong with tables of services.
    pub(super) fn locate_all(&self, faults: &mut Faults, wrong: Vec<Fault>) {
        faults.of_file.extend(wrong.into_iter().map(|Fault { key, message }| (self.line(&key), message)));
    }

    fn invalid(&self, mut faults: Vec<(usize, String)>) -> ConfigError {
        faults.sort_unstable();
        let faults = faults.into_iter().map(|(line, message)| format!("line {line}: {message}")).collect();
        ConfigError::Invalid { path: self.path.clone(), faults }
    }

    /// The line of a key, else that of the innermost table around it which has a name.
    fn line(&self, key: &[impl AsRef<str>]) -> usize {
        let Ok(root) = DeTable::parse(&self.text) else { return 1 };
        let (mut table, mut at) = (root.get_ref(), 0);
        for part in key {
            let found = table.iter().find(|(name, _)| name.get_ref().as_ref() == part.as_ref());
            let Some((name, value)) = found else { break };
            at = name.span().start;
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        self.line_at(at)
    }

    fn line_at(&self, at: usize) -> usize {
        1 + self.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_line() {
        let text = "# text\nengine = [\n  'none',\n]\n\n[service.web]\nfallback = 'pass'\nhealth = 'tcp'\n\n\
                    [service.\"*\".health]\nkind = 'http'\n'a b' = 1\n";
        let source = Source { path: "f".into(), text: text.to_owned() };
        for (key, line) in [
            (&["engine"] as &[&str], 2),
            (&["service", "web"], 6),
            (&["service", "web", "fallback"], 7),
            (&["service", "web", "health", "kind"], 8),
            (&["service", "web", "none"], 6),
            (&["service", "*", "health", "kind"], 11),
            (&["service", "*", "health", "a b"], 12),
            (&["none"], 1),
        ] {
            assert_eq!(source.line(key), line, "{key:?}");
        }
    }
}
